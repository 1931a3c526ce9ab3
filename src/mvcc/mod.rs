//! Versions of keys over an engine. Decides only.
