//! Machines, the switch between them, and the real program on them.
//!
//! Names start with `host_`: these tests make namespaces and control groups,
//! need root, and run one at a time. Those of `soak_` take long: `make soak`.

// Clippy tells tests from helpers of tests, which fail in the same way.
#![allow(clippy::unwrap_used, clippy::print_stderr, clippy::cast_precision_loss)]

mod access;
mod churn;
mod docker;
mod doctor;
mod edge;
mod failover;
mod figures;
mod formation;
mod health;
mod kernel;
mod keys;
mod machines;
mod moving;
mod names;
mod network;
mod pods;
mod policies;
mod register;
mod relay;
mod scenarios;
mod secrets;
mod soak;
mod support;
mod traffic;
mod weather;
