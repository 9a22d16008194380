//! Who is at the other end of a connection, as its certificate says.
//!
//! A [`Peer`] is made by `bundle` from a verified certificate alone. What it
//! may do is decided elsewhere: by role, by the state (removed nodes, pinned
//! keys) and by `expired`.

use warren_model::operator::{OperatorName, OperatorRole};
use warren_model::{ClusterId, NodeId, Time};

use crate::key::Hash;
use crate::x509::Fields;

/// Leaf certificates begin this long before they are issued, for clocks that are behind.
pub const BACKDATED_MS: u64 = 3_600_000;

/// Organizational units of leaf certificates.
pub(crate) const MANAGER: &str = "manager";
pub(crate) const WORKER: &str = "worker";
pub(crate) const OPERATOR_PREFIX: &str = "operator:";

/// The owner of a verified certificate.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Peer {
    /// `None` for operators.
    pub node: Option<NodeId>,
    /// `None` for nodes.
    pub operator: Option<OperatorName>,
    pub role: PeerRole,
    pub cluster: ClusterId,
    /// SHA-256 of the public key.
    pub key_hash: Hash,
    pub not_before: Time,
    pub not_after: Time,
    /// Past `not_after` when it was looked at: good for consensus and renewal at most.
    pub expired: bool,
    /// SHA-256 of the authority's public key; compare with [`crate::Authority::issuer_hash`].
    pub issuer_hash: Hash,
}

/// What a certificate was issued for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum PeerRole {
    /// Also of nodes that are worker as well.
    Manager,
    Worker,
    Operator(OperatorRole),
}

impl std::fmt::Display for PeerRole {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::Manager => f.write_str(MANAGER),
            Self::Worker => f.write_str(WORKER),
            Self::Operator(role) => write!(f, "{OPERATOR_PREFIX}{role}"),
        }
    }
}

impl Peer {
    /// When its owner should ask for the next certificate: after two thirds of its life, counted
    /// from when it was issued.
    pub fn renew_at(&self) -> Time {
        let issued = self.not_before.plus_ms(BACKDATED_MS).min(self.not_after);
        let life = self.not_after.since_ms(issued);
        issued.plus_ms(life - life / 3)
    }
}

/// Why a certificate does not make its owner a peer.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum PeerError {
    #[error("the other side showed no certificate")]
    None,
    #[error("the other side showed {found} certificates, at most {max} are read")]
    TooMany { found: usize, max: usize },
    #[error("the certificate of the other side is not one of Warren's: {reason}")]
    Shape { reason: String },
    #[error("the certificate of {owner} is not signed by this cluster's authority")]
    Foreign { owner: String },
    #[error("the certificate of {owner} cannot be verified: {reason}")]
    Chain { owner: String, reason: String },
    #[error("the certificate of {owner} belongs to cluster {found}, not to {expected}")]
    Cluster { owner: String, found: String, expected: ClusterId },
    #[error(
        "the certificate of {owner} is valid from {not_before} on, but the clock here says {now}: set the clocks of both machines"
    )]
    NotYetValid { owner: String, not_before: Time, now: Time },
    #[error(
        "the certificate of {owner} was valid until {not_after}, the clock here says {now}: if the clock is right, join through another manager"
    )]
    Expired { owner: String, not_after: Time, now: Time },
    #[error("{owner} calls itself a manager, but its certificate says {role}")]
    NotManager { owner: String, role: PeerRole },
    #[error("node {found} answers where node {expected} was expected")]
    OtherNode { found: String, expected: NodeId },
    #[error(
        "the manager's certificate authority is not the one that the join token names: the token is of another cluster, or older than a rotation of the authority"
    )]
    NotPinned,
}

/// Names and role, read from a certificate that may yet turn out to be forged.
pub(crate) struct Claim {
    pub(crate) node: Option<NodeId>,
    pub(crate) operator: Option<OperatorName>,
    pub(crate) role: PeerRole,
    pub(crate) cluster: ClusterId,
}

impl Claim {
    pub(crate) fn parse(fields: &Fields) -> Result<Self, PeerError> {
        let shape = |reason: String| PeerError::Shape { reason };
        let name = &fields.common_name;
        let cluster = fields.organization.parse();
        let cluster = cluster.map_err(|error| shape(format!("its organization: {error}")))?;
        let node = || name.parse().map(Some).map_err(|error| shape(format!("its name: {error}")));
        let (node, operator, role) = match fields.unit.as_str() {
            MANAGER => (node()?, None, PeerRole::Manager),
            WORKER => (node()?, None, PeerRole::Worker),
            other => {
                let role = other.strip_prefix(OPERATOR_PREFIX).and_then(|role| role.parse().ok());
                let role = role.ok_or_else(|| shape(format!("its role is {other:?}")))?;
                let name = name.parse().map_err(|error| shape(format!("its name: {error}")))?;
                (None, Some(name), PeerRole::Operator(role))
            }
        };
        Ok(Self { node, operator, role, cluster })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn renewal_is_due_after_two_thirds() {
        let peer = |not_before, not_after| Peer {
            node: None,
            operator: None,
            role: PeerRole::Worker,
            cluster: ClusterId::MIN,
            key_hash: [0; 32],
            not_before: Time(not_before),
            not_after: Time(not_after),
            expired: false,
            issuer_hash: [0; 32],
        };
        for (issued, life, due) in [(10_000_000, 90_000, 10_060_000), (3_600_000, 0, 3_600_000)] {
            let peer = peer(issued - BACKDATED_MS, issued + life);
            assert_eq!(peer.renew_at(), Time(due));
        }
        // A certificate of somebody else, shorter than the backdating: at once.
        assert_eq!(peer(5, 10).renew_at(), Time(10));
    }
}
