//! The ledger.

pub mod disk;
pub mod log;
pub mod sim_disk;
