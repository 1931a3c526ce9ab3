//! The doors to the world: clock, chance, files and tasks.

pub mod clock;
pub mod rng;
pub mod files;
pub mod life;
pub mod tasks;
pub mod faults;
