//! The wire: generated messages and services, and their way to and from the model.
//!
//! Messages never travel further than the door they came in by: `TryFrom`
//! checks everything that arrives, `From` writes what leaves.

mod convert;
mod secretive;

pub use convert::{
    Error, amounts, amounts_from, cluster_id, given, hash, hook, network_id, node_id,
    operator_name, policy_id, relay, service_id, table_change, task_id, wire_relay,
};

#[allow(clippy::all, unused_qualifications, unreachable_pub, missing_docs)]
#[rustfmt::skip] // the freshness check compares with what the generator writes
#[path = "generated/warren.v1.rs"]
pub mod v1;

/// The health protocol of gRPC, which Warren asks containers by.
#[allow(clippy::all, unused_qualifications, unreachable_pub, missing_docs)]
#[rustfmt::skip]
#[path = "generated/grpc.health.v1.rs"]
pub mod grpc_health;
