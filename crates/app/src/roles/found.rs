//! A new cluster: its authority, its first node's certificate, its first
//! transaction. And an old one, of a single node that never listened to others:
//! what it lacks of these ([`adopt`]).

use std::sync::Arc;
use std::time::Duration;

use warren_base::clock::Clock;
use warren_base::rng::Rng;
use warren_manager::{Founding, Terms, founding};
use warren_model::node::Description;
use warren_model::{Cluster, NetworkId, Time, cluster};
use warren_state::change::{Mutation, Transaction};
use warren_store::Store;
use warren_trust::{Authority, Credentials, Issued, JoinToken, KeyFile, NodeKey, Subject};

use super::failed;
use super::files::{Files, assemble};
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
        description: Description,
        terms: Terms,
        clock: &dyn Clock,
        rng: &dyn Rng,
    ) -> Transaction {
        founding(Founding {
            cluster: identity.cluster,
            node: identity.node,
            description,
            worker: identity.role.worker,
            authority: authority.to_state(),
            key_hash: issued.key_hash,
            not_after: issued.not_after,
            issuer_hash: issued.issuer_hash,
            worker_secret: *JoinToken::new_secret(rng),
            manager_secret: *JoinToken::new_secret(rng),
            now: Time(clock.now_ms()),
            network: NetworkId::from_bytes(rng.id_bytes()),
            terms,
        })
    }

    /// The parts: what is kept, and what the first transaction is made of.
    pub(super) fn split(self) -> (KeyFile, Credentials, Authority, Issued) {
        (self.key, self.credentials, self.authority, self.issued)
    }
}

/// Gives a node without a certificate one, and its cluster an authority if it has none. The node
/// must be its cluster's only manager.
///
/// The state knows of the certificate before it is kept: what is interrupted is begun anew.
///
/// # Errors
/// The store does not take it, the disk refuses.
pub(super) async fn adopt(
    store: &Store,
    identity: &Identity,
    files: &Files,
    key: &KeyFile,
    rng: &dyn Rng,
    now: Time,
) -> Result<(), Failure> {
    let view = store.view();
    let cluster = view.cluster().ok_or_else(|| Failure::failed("the store holds no cluster"))?;
    let authority = match &cluster.ca {
        Some(kept) => Authority::from_state(kept).map_err(|e| failed(&e))?,
        None => Authority::generate(identity.cluster, now).map_err(|e| failed(&e))?,
    };
    let token = || Some(cluster::JoinToken { secret: *JoinToken::new_secret(rng), expires: None });
    let kept = authority.to_state();
    let settings = Cluster {
        ca: Some(kept.clone()),
        worker_token: cluster.worker_token.clone().or_else(token),
        manager_token: cluster.manager_token.clone().or_else(token),
        ..cluster.clone()
    };
    let node_key = NodeKey::generate().map_err(|e| failed(&e))?;
    let request = node_key.signing_request(&identity.node.to_string()).map_err(|e| failed(&e))?;
    let subject = Subject::Node { id: identity.node, manager: true };
    let lifetime = Duration::from_millis(cluster.certificate_lifetime_ms);
    let issued = authority.issue(&request, &subject, lifetime, now).map_err(|e| failed(&e))?;
    let (id, worker) = (identity.node, identity.role.worker);
    let (key_hash, not_after, issuer_hash) =
        (issued.key_hash, issued.not_after, issued.issuer_hash);
    let mutations = vec![
        Mutation::SetCluster(settings),
        // Gives it its number, if it has none yet.
        Mutation::SetRole { id, manager: true, worker },
        Mutation::SetCertificate { id, key_hash, not_after, issuer_hash },
    ];
    let transaction = Transaction { mutations, ..Transaction::default() };
    store.propose(transaction).await.map_err(|e| failed(&e))?;
    let own = assemble(&node_key, &issued.chain, &kept.certificates)?;
    files.keep(&own, key).map_err(|e| failed(&e))
}
