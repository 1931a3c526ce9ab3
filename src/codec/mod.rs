//! Bytes: how values are laid out on disk. Decides only.

pub mod record;
