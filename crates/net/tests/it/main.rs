//! The network of one node against the real kernel.
//!
//! Each test makes a host in a network namespace of its own, joined to a second one
//! that plays another machine. Nothing of the machine's own network is touched, and
//! all of it is gone when the test's process ends, however it ends.
//! They need root, `ip` and `nft`; without them they say so and pass.

#![allow(clippy::unwrap_used, clippy::print_stderr)]

mod cluster;
mod docker;
mod drift;
mod guard;
mod isolation;
mod lifecycle;
mod mesh;
mod overlay;
mod policies;
mod ports;
mod reserve;
mod services;
mod wireguard;
mod world;
