//! The state from outside: rules as tables, laws as random transactions.

mod props;
mod rules;
mod script;
