//! Two nodes in namespaces of their own, each with a data plane in a process of its own.
//!
//! Needs root, `ip` and `dig`.

mod lives;
mod world;
