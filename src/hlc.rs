//! The hybrid logical clock. Decides only.
