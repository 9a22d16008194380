//! What the daemon and the shim say to each other, and the formats both must agree on.
//!
//! - [`message`]: the flat specification of a container or an exec, handed over in a sealed
//!   memory file, and the small datagrams of the shim's socket;
//! - [`record`]: the files that a shim leaves behind for whoever comes next;
//! - [`line`]: one line of a log file;
//! - [`account`]: lines of `/etc/passwd` and `/etc/group`;
//! - [`protection`]: what a test-only build can leave out, by name.
//!
//! Decoding never allocates and never panics, whatever the bytes: the shim calls it between
//! `clone` and `execve`. Encoding allocates and is the daemon's side.
//!
//! Not here: any system call. Those are in the `warren-shim` binary.

#![cfg_attr(feature = "bare", no_std)]

pub mod account;
#[cfg(test)]
mod fuzz;
pub mod line;
pub mod message;
pub mod protection;
pub mod record;
