//! A new cluster: its authority, its first node's certificate, its first
//! transaction.

use std::sync::Arc;
use std::time::Duration;

use warren_base::clock::Clock;
use warren_base::rng::Rng;
use warren_manager::{Founding, founding};
use warren_model::{Cluster, Time};
use warren_state::change::Transaction;
use warren_trust::{Authority, Credentials, Issued, JoinToken, KeyFile, NodeKey, Subject};

use super::failed;
use super::files::{Files, assemble};
use super::machine;
use crate::address::Address;
use crate::cli::failure::Failure;
use crate::identity::Identity;

/// What a founder has before there is a store.
pub(super) struct Founder {
    pub(super) key: KeyFile,
    pub(super) credentials: Credentials,
    authority: Authority,
    issued: Issued,
}

impl Founder {
    /// Keys, authority and certificate; the certificate is kept in `files`.
    ///
    /// # Errors
    /// The disk refuses.
    pub(super) fn new(
        identity: &Identity,
        files: &Files,
        clock: &Arc<dyn Clock>,
        rng: &dyn Rng,
    ) -> Result<Self, Failure> {
        let now = Time(clock.now_ms());
        let key = KeyFile::read_or_create(&files.key(), rng).map_err(|e| failed(&e))?;
        let authority = Authority::generate(identity.cluster, now).map_err(|e| failed(&e))?;
        let node_key = NodeKey::generate().map_err(|e| failed(&e))?;
        let request =
            node_key.signing_request(&identity.node.to_string()).map_err(|e| failed(&e))?;
        let subject = Subject::Node { id: identity.node, manager: true };
        let lifetime = Duration::from_millis(Cluster::CERTIFICATE_LIFETIME_MS);
        let issued = authority.issue(&request, &subject, lifetime, now).map_err(|e| failed(&e))?;
        let bundle: Vec<Vec<u8>> =
            authority.bundle().certificates().iter().map(|der| der.to_vec()).collect();
        let own = assemble(&node_key, &issued.chain, &bundle)?;
        files.keep(&own, &key).map_err(|e| failed(&e))?;
        let credentials = Credentials::new(authority.bundle(), Arc::clone(clock));
        credentials.set(&own).map_err(|e| failed(&e))?;
        Ok(Self { key, credentials, authority, issued })
    }

    /// What the store is to begin with.
    pub(super) fn transaction(
        authority: Authority,
        issued: &Issued,
        identity: &Identity,
        advertise: &Address,
        clock: &dyn Clock,
        rng: &dyn Rng,
    ) -> Transaction {
        founding(Founding {
            cluster: identity.cluster,
            node: identity.node,
            description: machine::describe(advertise),
            worker: identity.role.worker,
            authority: authority.to_state(),
            key_hash: issued.key_hash,
            not_after: issued.not_after,
            issuer_hash: issued.issuer_hash,
            worker_secret: *JoinToken::new_secret(rng),
            manager_secret: *JoinToken::new_secret(rng),
            now: Time(clock.now_ms()),
        })
    }

    /// The parts: what is kept, and what the first transaction is made of.
    pub(super) fn split(self) -> (KeyFile, Credentials, Authority, Issued) {
        (self.key, self.credentials, self.authority, self.issued)
    }
}
