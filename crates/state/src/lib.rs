//! The replicated state machine: tables, indices, transactions in, events out.
//!
//! Deterministic: the same transactions in the same order give the same bytes
//! on every replica and every version. No clock, randomness or hash order; the
//! time of an entry comes with it. Cloning a [`State`] is cheap (persistent maps).

pub mod change;
