//! Bytes: how values are laid out on disk. Decides only.

pub mod ordered;
pub mod layout;
pub mod value;
pub mod frame;
pub mod record;
