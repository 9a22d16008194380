//! What this node knows of the cluster and of its own place in it.
//!
//! Comes with assignments and is kept with them, so that a node that starts
//! alone knows where to look for managers and what it is.

use warren_model::node::{Forgotten, ForgottenChoice};
use warren_proto::{Error, v1};

/// As managers said last.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct MembershipView {
    /// Recovery epoch: bumped when the cluster is restored or recovered.
    pub epoch: u64,
    /// Where managers can be reached, `host:port`.
    pub managers: Vec<String>,
    /// Whether this node is to be a manager.
    pub manager: bool,
    /// Its number among the managers, if it ever was one.
    pub number: Option<u64>,
    /// Whether it may run containers.
    pub worker: bool,
    pub beat_ms: u64,
    /// Certificates to trust, DER; the first one issues.
    pub authorities: Vec<Vec<u8>>,
    /// By whom certificates are to be issued; one by another is to be renewed.
    pub issuer_hash: [u8; 32],
    pub certificate_lifetime_ms: u64,
    /// What people said of tasks that managers of this epoch do not know any more.
    pub forgotten: Option<ForgottenChoice>,
}

impl TryFrom<v1::Membership> for MembershipView {
    type Error = Error;

    fn try_from(wire: v1::Membership) -> Result<Self, Error> {
        let issuer_hash = match wire.issuer_hash.as_slice() {
            // Of a cluster that has no authority yet.
            [] => [0; 32],
            hash => warren_proto::hash("membership.issuer_hash", hash)?,
        };
        let forgotten = wire.forgotten.map(Forgotten::try_from).transpose()?;
        Ok(Self {
            epoch: wire.epoch,
            managers: wire.managers,
            manager: wire.manager,
            number: wire.number,
            worker: wire.worker,
            beat_ms: wire.beat_ms.into(),
            authorities: wire.authorities,
            issuer_hash,
            certificate_lifetime_ms: wire.certificate_lifetime_ms,
            forgotten: forgotten.filter(|said| said.epoch == wire.epoch).map(|said| said.choice),
        })
    }
}

impl From<&MembershipView> for v1::Membership {
    fn from(view: &MembershipView) -> Self {
        Self {
            epoch: view.epoch,
            managers: view.managers.clone(),
            manager: view.manager,
            number: view.number,
            beat_ms: u32::try_from(view.beat_ms).unwrap_or(u32::MAX),
            authorities: view.authorities.clone(),
            issuer_hash: view.issuer_hash.to_vec(),
            certificate_lifetime_ms: view.certificate_lifetime_ms,
            worker: view.worker,
            forgotten: view.forgotten.map(|choice| Forgotten { epoch: view.epoch, choice }.into()),
        }
    }
}
