//! The name server beside programs that others wrote: `dig` asks, `dnsmasq` is upstream.
//!
//! Each test has a network namespace of its own, in which everything is on loopback; it is gone
//! with the test's process, however that ends. They need root, `dig` and `dnsmasq`; without them
//! they say so and pass.

#![allow(clippy::unwrap_used, clippy::print_stderr)]

mod names;
mod world;
