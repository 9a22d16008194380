//! What things are: services, tasks, nodes, networks, operators, the cluster; their
//! names, ids, quantities and rules.
//!
//! Pure data and validation. No I/O, no clock, no randomness: whoever makes an
//! id brings the bytes, whoever needs the time passes a [`Time`].

pub mod allowance;
pub mod audit;
pub mod bind;
pub mod cluster;
pub mod defaults;
pub mod device;
pub mod event;
pub mod health;
pub mod id;
pub mod image;
pub mod ipv6;
pub mod job;
pub mod moving;
pub mod name;
pub mod network;
pub mod node;
pub mod node_table;
pub mod operator;
pub mod overlap;
mod overlay;
pub mod placement;
pub mod policy;
pub mod quantity;
pub mod resources;
mod schedule;
mod secret;
pub mod service;
pub mod task;

pub use allowance::Allowed;
pub use audit::AuditRecord;
pub use bind::BindRule;
pub use cluster::Cluster;
pub use defaults::Defaults;
pub use event::Event;
pub use health::{HealthSpec, Healthcheck};
pub use id::{ClusterId, NetworkId, NodeId, PolicyId, ServiceId, TaskId};
pub use name::{Alias, NetworkName, PolicyName, ServiceName};
pub use network::Network;
pub use node::Node;
pub use node_table::NodeTable;
pub use operator::{Operator, OperatorName};
pub use overlay::{OverlayKind, OverlayKindError};
pub use placement::Placement;
pub use policy::Policy;
pub use quantity::Time;
pub use resources::Resources;
pub use secret::Secret;
pub use service::{ServiceSpec, TaskTemplate};
pub use task::Task;
