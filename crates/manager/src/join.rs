//! How a node becomes a member, and how it stays one.
//!
//! A token that this cluster made lets a node in, with a key of its own; the
//! state pins that key. A retry with the same id and key gets another
//! certificate; another key with a known id gets nothing. Renewal keeps the
//! key, so that open connections stay good, and works with an expired
//! certificate too, since a cluster that was off for long must come back.
//!
//! Any manager serves this. Before a token is judged the manager catches up
//! with its leader: a token that was just made is good at once everywhere, one
//! that was just replaced good nowhere.

mod clock;
mod limit;

use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use tonic::metadata::MetadataValue;
use tonic::{Request, Response, Status};
use warren_model::cluster::JoinToken as Kept;
use warren_model::node::Description;
use warren_model::overlap::{HostRoute, overlap};
use warren_model::{Cluster, Node, NodeId};
use warren_proto::v1;
use warren_state::State;
use warren_state::change::{Expect, Key, Mutation, Transaction};
use warren_trust::{Bundle, Issued, JoinRole, JoinToken, Subject, TokenRefusal};

use crate::api::authorize::{Who, removed};
use crate::api::cluster::{authority, settings};
use crate::api::nodes::WARNING_KEY;
use crate::api::table::Rpc;
use crate::api::{RACES_MAX, call, propose};
use crate::core::Core;
use crate::describe;
use crate::dispatch::membership;
use crate::founding::Pools;
use crate::metrics::count;
use crate::quorum;
use crate::refusal::Refusal;
use limit::Limiter;

/// Of one machine; who has more sends no more than that.
const ROUTES_MAX: usize = 4096;

/// Shows how clocks differ, and refuses tokens that come too often.
#[derive(Default)]
pub(crate) struct Door {
    limiter: Mutex<Limiter>,
}

/// The service that nodes call to become members and to renew their certificates.
#[derive(Clone)]
pub struct JoinService {
    core: Arc<Core>,
}

impl JoinService {
    pub(crate) fn new(core: Arc<Core>) -> Self {
        Self { core }
    }
}

#[tonic::async_trait]
impl v1::join_server::Join for JoinService {
    async fn join(
        &self,
        request: Request<v1::JoinRequest>,
    ) -> Result<Response<v1::Joined>, Status> {
        call(&self.core, Rpc::Join, request, |core, who, wire| async move {
            let address = who.address;
            let joined = join(&core, &who, wire).await;
            let result = joined.as_ref().map_or_else(|refused| refused.reason, |_| "ok");
            count(&core.metrics.joins, "result", result);
            joined.map_err(|refused| {
                tracing::warn!(?address, refusal = %refused.refusal, result, "a node may not join");
                Status::from(refused.refusal)
            })
        })
        .await
    }

    async fn renew(
        &self,
        request: Request<v1::RenewRequest>,
    ) -> Result<Response<v1::Renewed>, Status> {
        call(&self.core, Rpc::Renew, request, |core, who, wire| async move {
            Ok(Response::new(renew(&core, &who, &wire.signing_request).await?))
        })
        .await
    }
}

/// A refusal with the word that it is counted under.
struct Refused {
    reason: &'static str,
    refusal: Refusal,
}

impl From<Refusal> for Refused {
    fn from(refusal: Refusal) -> Self {
        let reason = match refusal.code {
            tonic::Code::InvalidArgument => "bad_request",
            tonic::Code::Unavailable => "unavailable",
            _ => "refused",
        };
        Self { reason, refusal }
    }
}

fn refused(reason: &'static str, refusal: Refusal) -> Refused {
    Refused { reason, refusal }
}

/// A node that wants in, checked for shape.
struct Applicant {
    node: NodeId,
    description: Description,
    role: JoinRole,
    worker: bool,
    signing_request: Vec<u8>,
}

async fn join(
    core: &Core,
    who: &Who,
    wire: v1::JoinRequest,
) -> Result<Response<v1::Joined>, Refused> {
    check_limit(core, who)?;
    let token = wire.token.parse::<JoinToken>().map_err(|error| {
        failed(core, who);
        let refusal = Refusal::bad_input(format!("token: {error}"))
            .hint("copy it whole: warren cluster token worker|manager shows it");
        refused("bad_token", refusal)
    })?;
    quorum::barrier(core).await?;
    let view = core.store.view();
    let cluster = settings(&view)?;
    check_token(core, who, cluster, &token)?;
    let warning = clock::check(wire.time, core.now().0)
        .map_err(|text| refused("clock", Refusal::not_now(text).hint(clock::HINT)))?;
    check_routes(cluster, &wire.routes)?;
    let applicant = applicant(&token, wire)?;
    let joined = admit(core, &applicant).await?;
    let mut answer = Response::new(joined);
    if let Some(value) = warning.and_then(|text| MetadataValue::try_from(text).ok()) {
        answer.metadata_mut().insert(WARNING_KEY, value);
    }
    Ok(answer)
}

fn check_limit(core: &Core, who: &Who) -> Result<(), Refused> {
    let Some(ip) = who.ip() else { return Ok(()) };
    let limiter = core.door.limiter.lock().unwrap_or_else(PoisonError::into_inner);
    let Some(wait_ms) = limiter.wait_ms(ip, core.clock.monotonic_ms()) else { return Ok(()) };
    let text = format!("{} wrong tokens from {ip} within a minute", limit::FAILURES_MAX);
    let hint = format!("wait {} s, and use the right token", wait_ms.div_ceil(1000));
    Err(refused("limited", Refusal::busy(text).hint(hint)))
}

fn failed(core: &Core, who: &Who) {
    if let Some(ip) = who.ip() {
        let mut limiter = core.door.limiter.lock().unwrap_or_else(PoisonError::into_inner);
        limiter.failed(ip, core.clock.monotonic_ms());
    }
}

fn check_token(
    core: &Core,
    who: &Who,
    cluster: &Cluster,
    token: &JoinToken,
) -> Result<(), Refused> {
    let role = token.role;
    let hint = format!("get the current one from a manager: warren cluster token {role}");
    let deny = |reason, text: String| {
        failed(core, who);
        Err(refused(reason, Refusal::unauthenticated(text).hint(hint)))
    };
    let prints = cluster.ca.iter().flat_map(|ca| &ca.certificates);
    let known = prints
        .filter_map(|der| Bundle::new(std::slice::from_ref(der)).ok())
        .any(|bundle| bundle.fingerprint() == token.fingerprint);
    if !known {
        let text = "the join token is of another cluster, or older than its authority";
        return deny("foreign_token", text.to_owned());
    }
    let kept: Option<&Kept> = match role {
        JoinRole::Worker => cluster.worker_token.as_ref(),
        JoinRole::Manager => cluster.manager_token.as_ref(),
    };
    match kept.map_or(Err(TokenRefusal::Unknown), |kept| token.check(kept, core.now())) {
        Ok(()) => Ok(()),
        Err(error @ TokenRefusal::Unknown) => deny("bad_token", error.to_string()),
        Err(error @ TokenRefusal::Expired { .. }) => deny("expired_token", error.to_string()),
    }
}

/// Whether the cluster's addresses are apart from what the machine reaches otherwise.
fn check_routes(cluster: &Cluster, routes: &[v1::HostRoute]) -> Result<(), Refused> {
    let count = routes.len();
    if count > ROUTES_MAX {
        let text = format!("routes: {count} of them, at most {ROUTES_MAX} are allowed");
        return Err(Refusal::bad_input(text).into());
    }
    let routes = routes.iter().cloned().map(HostRoute::try_from);
    let routes = routes.collect::<Result<Vec<_>, _>>().map_err(Refusal::from)?;
    let Some(found) = overlap(&Pools::of(cluster).named(), &routes) else { return Ok(()) };
    let hint = "give that network another range, or make the cluster with other pools: \
                warren cluster init --pool CIDR --vip-pool CIDR";
    Err(refused("overlap", Refusal::not_now(found.to_string()).hint(hint)))
}

fn applicant(token: &JoinToken, wire: v1::JoinRequest) -> Result<Applicant, Refusal> {
    let node = warren_proto::node_id("node_id", &wire.node_id)?;
    let description = describe::parse(wire.description.unwrap_or_default())?;
    if description.hostname.is_empty() {
        return Err(Refusal::bad_input("description.hostname: is missing"));
    }
    if token.role == JoinRole::Manager {
        describe::reachable_at(&description.address)?;
    }
    if wire.manager_only && token.role == JoinRole::Worker {
        return Err(Refusal::bad_input("manager_only: the token is for workers")
            .hint("use the other one: warren cluster token manager"));
    }
    let worker = !wire.manager_only;
    let signing_request = wire.signing_request;
    Ok(Applicant { node, description, role: token.role, worker, signing_request })
}

/// Makes a member of it, or finds that it is one already.
async fn admit(core: &Core, applicant: &Applicant) -> Result<v1::Joined, Refused> {
    let mut race = 0;
    loop {
        let view = core.store.view();
        let cluster = settings(&view)?;
        let subject = Subject::Node {
            id: applicant.node,
            manager: match view.node(applicant.node) {
                // As it is now: it may have been promoted since its first try.
                Some(member) => member.manager,
                None => applicant.role == JoinRole::Manager,
            },
        };
        let issued = issue(core, cluster, &applicant.signing_request, subject)?;
        check_free(&view, applicant.node, &issued)?;
        let transaction = admission(core, &view, applicant, &issued);
        match propose(core, transaction).await {
            // Another try of the same node was faster.
            Err(refusal) if refusal.code == tonic::Code::Aborted && race < RACES_MAX => race += 1,
            Err(refusal) => return Err(refusal.into()),
            Ok(revision) => {
                tracing::info!(
                    node_id = %applicant.node,
                    hostname = applicant.description.hostname,
                    role = %applicant.role,
                    "a node joined"
                );
                return Ok(joined(core, applicant.node, issued, revision)?);
            }
        }
    }
}

fn issue(
    core: &Core,
    cluster: &Cluster,
    signing_request: &[u8],
    subject: Subject,
) -> Result<Issued, Refusal> {
    let lifetime = Duration::from_millis(cluster.certificate_lifetime_ms);
    let issued = authority(cluster)?.issue(signing_request, &subject, lifetime, core.now());
    issued.map_err(|error| Refusal::bad_input(format!("signing_request: {error}")))
}

/// Whether an id may be used with a key.
fn check_free(view: &State, node: NodeId, issued: &Issued) -> Result<(), Refused> {
    if view.tombstone(node).is_some() {
        let text = format!("node {node} was removed from the cluster");
        let hint = "remove its data folder: then it joins as a new node";
        return Err(refused("removed", Refusal::denied(text).hint(hint)));
    }
    match view.node(node) {
        Some(member) if member.key_hash != issued.key_hash => {
            let host = &member.description.hostname;
            let text = format!("node {node} is a member already, as {host}, with another key");
            let hint = "a data folder was copied or lost its key: remove it, and the member that \
                        is gone (warren node rm)";
            Err(refused("taken", Refusal::taken(text).hint(hint)))
        }
        Some(_) | None => Ok(()),
    }
}

fn admission(core: &Core, view: &State, applicant: &Applicant, issued: &Issued) -> Transaction {
    let id = applicant.node;
    let (key_hash, not_after, issuer_hash) =
        (issued.key_hash, issued.not_after, issued.issuer_hash);
    let member = view.node(id);
    let mutation = match member {
        Some(_) => Mutation::SetCertificate { id, key_hash, not_after, issuer_hash },
        None => Mutation::CreateNode(Node {
            manager: applicant.role == JoinRole::Manager,
            worker: applicant.worker,
            key_hash,
            certificate_not_after: not_after,
            issuer_hash,
            joined: core.now(),
            ..Node::new(id, applicant.description.clone())
        }),
    };
    let revision = member.map_or(0, |member| member.revision);
    Transaction {
        expects: vec![Expect { key: Key::Node(id), revision }],
        mutations: vec![mutation],
        // The token is what let it in; who passed that on is not known.
        principal: Some(format!("node:{id}")),
        request: None,
    }
}

fn joined(core: &Core, node: NodeId, issued: Issued, revision: u64) -> Result<v1::Joined, Refusal> {
    let view = core.store.view();
    let cluster = settings(&view)?;
    let member = view.node(node);
    let member = member.ok_or_else(|| Refusal::not_found("the node was removed meanwhile"))?;
    Ok(v1::Joined {
        cluster_id: core.cluster_id.as_bytes().to_vec(),
        certificates: issued.chain,
        authorities: cluster.ca.as_ref().map(|ca| ca.certificates.clone()).unwrap_or_default(),
        manager: member.manager,
        worker: member.worker,
        number: member.number,
        managers: membership::managers(&view),
        revision,
        epoch: cluster.epoch,
        time: core.now().0,
        pool: Some((&cluster.pool).into()),
    })
}

/// Another certificate for the same key, by the authority of now, for the role of now.
async fn renew(core: &Core, who: &Who, signing_request: &[u8]) -> Result<v1::Renewed, Refusal> {
    let id = who.node.ok_or_else(|| Refusal::denied("only nodes renew certificates"))?;
    let view = core.store.view();
    let cluster = settings(&view)?;
    let member = view.node(id).ok_or_else(|| removed(id))?;
    let subject = Subject::Node { id, manager: member.manager };
    let issued = issue(core, cluster, signing_request, subject)?;
    if issued.key_hash != member.key_hash {
        return Err(Refusal::denied(format!(
            "node {id} asks for a certificate for another key than its own"
        ))
        .hint("renewal keeps the key; for a new one remove the node and join anew"));
    }
    let mutation = Mutation::SetCertificate {
        id,
        key_hash: issued.key_hash,
        not_after: issued.not_after,
        issuer_hash: issued.issuer_hash,
    };
    let transaction = Transaction { mutations: vec![mutation], ..Transaction::default() };
    propose(core, transaction).await?;
    Ok(v1::Renewed {
        certificates: issued.chain,
        authorities: cluster.ca.as_ref().map(|ca| ca.certificates.clone()).unwrap_or_default(),
        not_after: issued.not_after.0,
    })
}
