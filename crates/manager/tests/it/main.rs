//! The manager through its doors: a tool's client on one side, a scripted
//! agent on the other, a real store underneath.

#![allow(clippy::unwrap_used)] // clippy knows test functions, not their helpers

mod agent;
mod house;

mod services;
mod sessions;
mod streams;
