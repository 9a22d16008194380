//! Made-up clusters for the tests of this crate.

use std::time::Duration;

use warren_model::{ClusterId, NodeId, Time};

use crate::{Authority, Identity, Issued, NodeKey, Subject};

/// 2026-01-01, far from the edges of X.509's time.
pub(crate) const NOW: Time = Time(1_767_225_600_000);
pub(crate) const DAY_MS: u64 = 86_400_000;
pub(crate) const LIFETIME: Duration = Duration::from_secs(90 * 86_400);

pub(crate) fn cluster(number: u8) -> ClusterId {
    ClusterId::from_bytes([number; 10])
}

pub(crate) fn node(number: u8) -> NodeId {
    NodeId::from_bytes([number; 10])
}

pub(crate) fn authority(number: u8) -> Authority {
    Authority::generate(cluster(number), NOW).unwrap()
}

pub(crate) fn manager(number: u8) -> Subject {
    Subject::Node { id: node(number), manager: true }
}

pub(crate) fn worker(number: u8) -> Subject {
    Subject::Node { id: node(number), manager: false }
}

pub(crate) fn issue(ca: &Authority, key: &NodeKey, subject: &Subject, now: Time) -> Issued {
    let request = key.signing_request("whatever").unwrap();
    ca.issue(&request, subject, LIFETIME, now).unwrap()
}

/// A certificate of `ca`, trusting what `ca` trusts.
pub(crate) fn identity(ca: &Authority, subject: &Subject, now: Time) -> Identity {
    let key = NodeKey::generate().unwrap();
    let issued = issue(ca, &key, subject, now);
    Identity::new(key, &issued.chain, ca.bundle()).unwrap()
}
