//! The doors to the world: clock, chance, files and tasks. And the faults that are put in to try the tests.

pub mod mutant;
pub mod clock;
pub mod rng;
pub mod files;
pub mod handles;
pub mod life;
pub mod tasks;
pub mod faults;
