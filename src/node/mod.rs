//! The host of many groups.

pub mod formation;
pub mod identity;
pub mod formation_driver;
