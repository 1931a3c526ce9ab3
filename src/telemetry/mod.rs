//! Logs and metrics. Pushed to by everyone, pulls from nobody.
