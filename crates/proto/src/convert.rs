//! Messages to model objects and back.
//!
//! What arrives is checked here for shape alone: lengths of ids, known enum
//! values, numbers in range, parts that must be there. Rules between fields
//! are the model's (`ServiceSpec::validate`). A missing `restart`, `log`,
//! `update` or `limits` means the model's default, so that small clients stay
//! small; a missing `mode` or `task` is an error.
//!
//! Not here: transactions and log entries, which `store` writes with the same
//! pieces, since this crate knows nothing of the state machine.

mod cluster;
mod companion;
mod defaults;
mod event;
mod health;
mod job;
mod mounts;
mod moving;
mod network;
mod operator;
mod placement;
mod policy;
mod privileges;
mod service;
mod table;
mod task;
#[cfg(test)]
mod tests;
mod update;

use std::net::Ipv4Addr;

pub use cluster::{relay, wire_relay};
pub use job::given;
pub use placement::{amounts, amounts_from};
pub use table::table_change;
pub use update::hook;
use warren_model::OperatorName;
use warren_model::id::{ClusterId, NetworkId, NodeId, PolicyId, ServiceId, TaskId};

/// What is wrong with a message: `spec.ports[0].target: 70000 is more than 65535`.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{field}: {problem}")]
pub struct Error {
    /// Path of the field, e.g. `task.limits`.
    pub field: String,
    /// What is wrong with its value.
    pub problem: String,
}

impl Error {
    pub(crate) fn new(field: &str, problem: impl Into<String>) -> Self {
        Self { field: field.to_owned(), problem: problem.into() }
    }

    pub(crate) fn missing(field: &str) -> Self {
        Self::new(field, "is missing")
    }

    /// The same error as seen from the message that holds `parent`.
    #[must_use]
    pub fn within(self, parent: &str) -> Self {
        Self { field: format!("{parent}.{}", self.field), problem: self.problem }
    }
}

fn id_bytes(field: &str, bytes: &[u8]) -> Result<[u8; 10], Error> {
    bytes
        .try_into()
        .map_err(|_| Error::new(field, format!("an id has 10 bytes, this has {}", bytes.len())))
}

/// The id of a cluster in `field`.
///
/// # Errors
/// When there are not ten bytes.
pub fn cluster_id(field: &str, bytes: &[u8]) -> Result<ClusterId, Error> {
    id_bytes(field, bytes).map(ClusterId::from_bytes)
}

/// The id of a node in `field`.
///
/// # Errors
/// When there are not ten bytes.
pub fn node_id(field: &str, bytes: &[u8]) -> Result<NodeId, Error> {
    id_bytes(field, bytes).map(NodeId::from_bytes)
}

/// The id of a service in `field`.
///
/// # Errors
/// When there are not ten bytes.
pub fn service_id(field: &str, bytes: &[u8]) -> Result<ServiceId, Error> {
    id_bytes(field, bytes).map(ServiceId::from_bytes)
}

/// The id of a task in `field`.
///
/// # Errors
/// When there are not ten bytes.
pub fn task_id(field: &str, bytes: &[u8]) -> Result<TaskId, Error> {
    id_bytes(field, bytes).map(TaskId::from_bytes)
}

/// The id of a network in `field`.
///
/// # Errors
/// When there are not ten bytes.
pub fn network_id(field: &str, bytes: &[u8]) -> Result<NetworkId, Error> {
    id_bytes(field, bytes).map(NetworkId::from_bytes)
}

/// The id of a policy in `field`.
///
/// # Errors
/// When there are not ten bytes.
pub fn policy_id(field: &str, bytes: &[u8]) -> Result<PolicyId, Error> {
    id_bytes(field, bytes).map(PolicyId::from_bytes)
}

/// A SHA-256 in `field`.
///
/// # Errors
/// When there are not 32 bytes.
pub fn hash(field: &str, bytes: &[u8]) -> Result<[u8; 32], Error> {
    bytes
        .try_into()
        .map_err(|_| Error::new(field, format!("a hash has 32 bytes, this has {}", bytes.len())))
}

/// A SHA-256 in `field`, zeros if it is empty.
fn hash_or_zeros(field: &str, bytes: &[u8]) -> Result<[u8; 32], Error> {
    if bytes.is_empty() { Ok([0; 32]) } else { hash(field, bytes) }
}

fn hash_if_any(field: &str, bytes: &[u8]) -> Result<Option<[u8; 32]>, Error> {
    if bytes.is_empty() { Ok(None) } else { hash(field, bytes).map(Some) }
}

/// The name of an operator in `field`.
///
/// # Errors
/// When it cannot be one.
pub fn operator_name(field: &str, text: &str) -> Result<OperatorName, Error> {
    text.parse().map_err(|problem| Error::new(field, format!("{problem}")))
}

fn required<T>(field: &str, value: Option<T>) -> Result<T, Error> {
    value.ok_or_else(|| Error::missing(field))
}

/// A message inside another one that must be there.
fn part<W, M: TryFrom<W, Error = Error>>(field: &str, value: Option<W>) -> Result<M, Error> {
    M::try_from(required(field, value)?).map_err(|e| e.within(field))
}

/// A message inside another one that may be absent.
fn part_if_any<W, M>(field: &str, value: Option<W>) -> Result<Option<M>, Error>
where
    M: TryFrom<W, Error = Error>,
{
    value.map(|v| M::try_from(v).map_err(|e| e.within(field))).transpose()
}

/// A message inside another one whose absence is the default.
fn part_or_default<W, M>(field: &str, value: Option<W>) -> Result<M, Error>
where
    M: TryFrom<W, Error = Error> + Default,
{
    value.map_or_else(|| Ok(M::default()), |v| M::try_from(v).map_err(|e| e.within(field)))
}

fn each<W, M: TryFrom<W, Error = Error>>(field: &str, values: Vec<W>) -> Result<Vec<M>, Error> {
    let convert =
        |(at, value)| M::try_from(value).map_err(|e: Error| e.within(&format!("{field}[{at}]")));
    values.into_iter().enumerate().map(convert).collect()
}

/// An enum field: a number that the wire knows and that is not "unspecified".
fn choice<W, M>(field: &str, number: i32) -> Result<M, Error>
where
    W: TryFrom<i32>,
    M: TryFrom<W, Error = Error>,
{
    let known = W::try_from(number)
        .map_err(|_| Error::new(field, format!("{number} is not a known value")))?;
    M::try_from(known).map_err(|e| Error::new(field, e.problem))
}

fn up_to(field: &str, value: u32, max: u32) -> Result<u32, Error> {
    let problem = || Error::new(field, format!("{value} is more than {max}"));
    (value <= max).then_some(value).ok_or_else(problem)
}

fn byte_up_to(field: &str, value: u32, max: u8) -> Result<u8, Error> {
    let small = up_to(field, value, u32::from(max))?;
    u8::try_from(small).map_err(|_| Error::new(field, format!("{value} is more than {max}")))
}

fn port(field: &str, value: u32) -> Result<u16, Error> {
    u16::try_from(value)
        .map_err(|_| Error::new(field, format!("{value} is more than {}", u16::MAX)))
}

fn address(value: u32) -> Ipv4Addr {
    Ipv4Addr::from(value)
}

/// Both directions of an enum whose variants have the same names on both sides.
macro_rules! enums {
    ($($model:path, $wire:path { $($variant:ident)* })*) => {$(
        impl From<$model> for $wire {
            fn from(value: $model) -> Self {
                use $model as Model;
                match value { $(Model::$variant => Self::$variant,)* }
            }
        }

        impl TryFrom<$wire> for $model {
            type Error = $crate::Error;

            fn try_from(value: $wire) -> Result<Self, $crate::Error> {
                use $wire as Wire;
                match value {
                    Wire::Unspecified => Err($crate::Error::missing(stringify!($model))),
                    $(Wire::$variant => Ok(Self::$variant),)*
                }
            }
        }
    )*};
}
use enums;
