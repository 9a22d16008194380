//! What things are: services, tasks, nodes, operators, the cluster; their
//! names, ids, quantities and rules.
//!
//! Pure data and validation. No I/O, no clock, no randomness: whoever makes an
//! id brings the bytes, whoever needs the time passes a [`Time`].

pub mod audit;
pub mod cluster;
pub mod event;
pub mod id;
pub mod name;
pub mod node;
pub mod operator;
pub mod quantity;
mod secret;
pub mod service;
pub mod task;

pub use audit::AuditRecord;
pub use cluster::Cluster;
pub use event::Event;
pub use id::{ClusterId, NodeId, ServiceId, TaskId};
pub use name::ServiceName;
pub use node::Node;
pub use operator::{Operator, OperatorName};
pub use quantity::Time;
pub use secret::Secret;
pub use service::{ServiceSpec, TaskTemplate};
pub use task::Task;
