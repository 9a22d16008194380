//! Something moved: what `events` shows and what wakes those who wait.

use crate::quantity::Time;

#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Event {
    pub revision: u64,
    pub time: Time,
    pub kind: Kind,
    pub action: Action,
    /// Id of the object, as text.
    pub id: String,
    /// Name of the object: a service's name, `web.2` for a task, a node's hostname.
    pub name: String,
    /// What happened, for people; may be empty.
    pub message: String,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Kind {
    Cluster,
    Node,
    Service,
    Task,
    Operator,
    Network,
    Policy,
}

impl Kind {
    pub const ALL: [Self; 7] = [
        Self::Cluster,
        Self::Node,
        Self::Service,
        Self::Task,
        Self::Operator,
        Self::Network,
        Self::Policy,
    ];

    pub fn as_str(self) -> &'static str {
        match self {
            Self::Cluster => "cluster",
            Self::Node => "node",
            Self::Service => "service",
            Self::Task => "task",
            Self::Operator => "operator",
            Self::Network => "network",
            Self::Policy => "policy",
        }
    }
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Action {
    Create,
    Update,
    Remove,
    /// Whether a task is healthy is another answer than before.
    Health,
    /// A task is ended for one of higher priority.
    Preempt,
}

impl Action {
    pub const ALL: [Self; 5] =
        [Self::Create, Self::Update, Self::Remove, Self::Health, Self::Preempt];

    pub fn as_str(self) -> &'static str {
        match self {
            Self::Create => "create",
            Self::Update => "update",
            Self::Remove => "remove",
            Self::Health => "health",
            Self::Preempt => "preempt",
        }
    }
}
