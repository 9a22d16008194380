//! Engines against the real kernel: two hosts, each a network namespace, joined by a veth pair.
//!
//! Nothing of the machine's own network is touched, and all of it is gone when the test's process
//! ends, however it ends. They need root and `ip`; without them they say so and pass.

#![allow(clippy::unwrap_used, clippy::print_stderr)]

mod carry;
mod faults;
mod guard;
mod keys;
mod world;
