//! The planner from outside: decisions as tables, laws on random clusters.

mod props;
mod tables;
mod world;
