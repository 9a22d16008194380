//! The state from outside: rules as tables, laws as random transactions.

// Of helpers: `allow-unwrap-in-tests` sees test functions alone.
#![allow(clippy::unwrap_used, clippy::or_fun_call)]

mod audit;
mod jobs;
mod members;
mod networks;
mod policies;
mod props;
mod reservations;
mod revisions;
mod rules;
mod script;
