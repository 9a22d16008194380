//! The floor: clock, randomness, files, supervised tasks, telemetry, build info.
//!
//! The only crate that reads the clock, the random source, the environment and
//! signals. Everything else takes a [`clock::Clock`] and an [`rng::Rng`].

pub mod build;
pub mod clock;
pub mod file;
pub mod rng;
pub mod tasks;
pub mod telemetry;
