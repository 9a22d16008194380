//! The manager through its doors: a tool's client on one side, a scripted
//! agent on the other, a real store underneath.

#![allow(clippy::unwrap_used)] // clippy knows test functions, not their helpers

mod access;
mod agent;
mod cluster;
mod house;
mod joining;
mod networks;
mod nodes;
mod policies;

mod services;
mod sessions;
mod several;
mod streams;
mod tasks;
mod town;
