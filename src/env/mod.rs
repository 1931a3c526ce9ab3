//! The doors to the world: clock, chance, files and tasks.
