//! The real program on several machines of one kernel, for tests, for
//! benchmarks and for people.
//!
//! A machine ([`Host`]) is a set of namespaces with a card on a switch of ours,
//! which can cut, delay and drop frames of each direction between two of them.
//! [`Cluster`] runs the program there and asks it questions as a person would,
//! by its command line. [`history`] records what concurrent clients saw and
//! finds out whether it can be true. [`faults`] breaks things by a seed.
//!
//! Needs root, bash, iproute2, util-linux; for images busybox-static and
//! docker-registry. Everything ends with the process that uses it, however that
//! ends; what then is left on the disk, the next run removes.

#![deny(missing_docs)]

pub mod bed;
pub mod binary;
pub mod clients;
pub mod cluster;
pub mod console;
pub mod faults;
pub mod history;
pub mod host;
pub mod http;
pub mod node;
pub mod switch;
pub mod wait;

mod namespace;
mod registry;
mod sweep;
mod tap;

pub use bed::{Kind, Testbed};
pub use cluster::{Cluster, Options};
pub use host::{Host, Process, Said};
pub use node::Node;
pub use switch::{Link, Traffic};
