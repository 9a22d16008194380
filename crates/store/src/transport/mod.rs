//! How managers reach each other: calls with an answer, whoever carries them.
//!
//! [`Transport`] is the seam: [`tcp`] carries calls over streams that the
//! application dials, simulations over memory. Calls are few and of known
//! kinds; what is in them only the receiving store knows.
//!
//! Not here: who may call (the application knows its peers), encryption (the
//! streams have it).

pub mod frame;
mod lane;
pub mod serve;
pub mod tcp;
#[cfg(test)]
mod tests;

use std::time::Duration;

use bytes::Bytes;
use futures::future::BoxFuture;

/// Another manager, as consensus knows it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Member {
    /// Given by the state, never twice.
    pub number: u64,
    pub address: String,
}

/// What a call asks for.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
#[repr(u8)]
pub enum Call {
    /// Entries of the log, or a heartbeat.
    Append = 16,
    Vote = 17,
    /// Whether a vote would be granted.
    PreVote = 18,
    /// The leader hands over.
    Transfer = 19,
    /// A part of a snapshot.
    Snapshot = 32,
    /// A transaction for the leader.
    Propose = 33,
    /// Up to where the log must be applied for a read to be current.
    ReadIndex = 34,
    /// What a follower heard of nodes; not for the store, which passes it on.
    Beats = 35,
}

/// Calls that may hold each other up. A snapshot must not hold up a heartbeat.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
#[repr(u8)]
pub enum Lane {
    Consensus = 1,
    Rest = 2,
}

impl Lane {
    pub const ALL: [Self; 2] = [Self::Consensus, Self::Rest];

    pub fn from_byte(byte: u8) -> Option<Self> {
        Self::ALL.into_iter().find(|lane| *lane as u8 == byte)
    }
}

impl Call {
    pub const ALL: [Self; 8] = [
        Self::Append,
        Self::Vote,
        Self::PreVote,
        Self::Transfer,
        Self::Snapshot,
        Self::Propose,
        Self::ReadIndex,
        Self::Beats,
    ];

    pub fn from_byte(byte: u8) -> Option<Self> {
        Self::ALL.into_iter().find(|call| *call as u8 == byte)
    }

    pub fn lane(self) -> Lane {
        match self {
            Self::Append | Self::Vote | Self::PreVote | Self::Transfer => Lane::Consensus,
            Self::Snapshot | Self::Propose | Self::ReadIndex | Self::Beats => Lane::Rest,
        }
    }

    /// How long a caller waits for an answer.
    pub fn deadline(self) -> Duration {
        match self {
            // A sync of a busy disk is part of it; heartbeats have a shorter one of their own.
            Self::Append => Duration::from_secs(3),
            Self::Vote | Self::PreVote | Self::Transfer | Self::Beats => Duration::from_secs(1),
            // The last part is answered when the whole snapshot is in use.
            Self::Snapshot => Duration::from_secs(120),
            Self::Propose => crate::forward::TOTAL,
            Self::ReadIndex => Duration::from_secs(2),
        }
    }
}

/// Why there is no answer.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum TransportError {
    /// The call never left.
    #[error("manager {to} cannot be reached: {why}")]
    Unreachable { to: u64, why: String },
    /// The call may have been carried out.
    #[error("manager {to} did not answer: {why}")]
    Lost { to: u64, why: String },
    /// The other side says why it does not do it.
    #[error("manager {to} refuses: {why}")]
    Refused { to: u64, why: String },
}

/// A way to other managers.
pub trait Transport: Send + Sync + 'static {
    /// Makes a call. It is handed over before this returns: calls of one lane to one member
    /// arrive in the order in which they were made, as long as nothing is lost. Ends within
    /// [`Call::deadline`], dropped or not.
    fn call(
        &self,
        to: &Member,
        kind: Call,
        payload: Bytes,
    ) -> BoxFuture<'static, Result<Bytes, TransportError>>;
}

#[cfg(test)]
mod kinds {
    use super::*;

    #[test]
    fn bytes_name_calls_and_lanes() {
        for call in Call::ALL {
            assert_eq!(Call::from_byte(call as u8), Some(call));
        }
        assert_eq!(Call::from_byte(0), None);
        assert_eq!(Lane::from_byte(Lane::Rest as u8), Some(Lane::Rest));
        assert_eq!(Lane::from_byte(9), None);
    }
}
