//! Two nodes in namespaces of their own, each with a data plane in a process of its own.
//!
//! Needs root, `ip` and `dig`.

// Clippy tells tests from helpers of tests, which fail in the same way.
#![allow(clippy::unwrap_used, clippy::print_stderr)]

mod clients;
mod lives;
mod world;
