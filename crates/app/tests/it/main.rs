//! The real binary on a node of its own: data and run folder in a temporary
//! place, a network namespace of its own, everything removed at the end, also
//! when a test fails.
//!
//! Names start with `host_`: these tests make namespaces, mounts and cgroups,
//! need root, and are run one at a time.

// Clippy tells tests from helpers of tests, which fail in the same way.
#![allow(clippy::unwrap_used, clippy::print_stderr)]

mod client;
mod cluster;
mod contexts;
mod daemon;
mod damage;
mod disaster;
mod hooks;
mod images;
mod input;
mod jobs;
mod mounts;
mod node;
mod pins;
mod placement;
mod privileges;
mod registry;
mod service;
mod sidecars;
mod tasks;
mod update;
