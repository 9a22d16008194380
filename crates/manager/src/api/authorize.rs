//! Who calls, and whether they may.
//!
//! On the local socket the kernel has asked already: the socket's mode lets
//! root and its group through, nobody else, and whoever holds it may do all.
//! On the TLS port a certificate or an API token says who it is, and the state
//! whether that still holds: removed nodes and operators are out at once, a
//! node's key is pinned. The transport puts a [`Caller`] into the request's
//! extensions, which cannot come from the wire.
//!
//! A node that is merely unknown may have joined through another manager a
//! moment ago: it is told so only after this manager has caught up, since a
//! node that hears that it was removed gives up for good.

use std::net::{IpAddr, SocketAddr};

use tonic::Request;
use tonic::metadata::MetadataMap;
use tonic::transport::server::UdsConnectInfo;
use warren_model::operator::{Operator, OperatorRole};
use warren_model::{NodeId, Time};
use warren_state::State;
use warren_trust::{ApiToken, Peer, PeerRole};

use crate::api::table::{Role, Rpc, may};
use crate::core::Core;
use crate::quorum;
use crate::refusal::{Mark, Refusal};

/// Metadata of a call that another manager passes on: it is served here or not at all.
pub const RELAYED_KEY: &str = "warren-relayed";
const TOKEN_KEY: &str = "authorization";
const TOKEN_PREFIX: &str = "Bearer ";

/// The other end of a connection, as the transport knows it. On a unix socket tonic's own
/// [`UdsConnectInfo`] says who it is.
#[derive(Debug, Clone)]
pub enum Caller {
    /// On a way that only the machine's owner has.
    Local { uid: u32 },
    /// Over TLS.
    Remote {
        /// Of its certificate; `None` if it showed none.
        peer: Option<Peer>,
        address: SocketAddr,
    },
    /// The agent of this manager's own node, through memory.
    OwnAgent,
}

/// Who a request comes from, e.g. `socket:0`, `operator:anna`, `node:<id>`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Principal(String);

impl Principal {
    fn node(id: NodeId) -> Self {
        Self(format!("node:{id}"))
    }

    #[cfg(test)]
    pub(crate) fn named(name: &str) -> Self {
        Self(name.to_owned())
    }

    pub(crate) fn as_str(&self) -> &str {
        &self.0
    }
}

/// A caller that was made sure of, for one call.
#[derive(Debug, Clone)]
pub(crate) struct Who {
    pub(crate) role: Role,
    pub(crate) principal: Principal,
    /// Of nodes.
    pub(crate) node: Option<NodeId>,
    /// Where it calls from; none for local callers.
    pub(crate) address: Option<SocketAddr>,
    /// Another manager passes it on.
    pub(crate) relayed: bool,
}

impl Who {
    fn local(principal: String) -> Self {
        Self {
            role: Role::Local,
            principal: Principal(principal),
            node: None,
            address: None,
            relayed: false,
        }
    }

    pub(crate) fn ip(&self) -> Option<IpAddr> {
        self.address.map(|address| address.ip())
    }

    /// For the audit log: changes of people, and of nodes about themselves.
    pub(crate) fn audit(&self) -> Option<String> {
        Some(self.principal.as_str().to_owned())
    }

    /// # Errors
    /// When a node calls for another than itself.
    pub(crate) fn must_be(&self, node: NodeId) -> Result<(), Refusal> {
        if self.node == Some(node) {
            return Ok(());
        }
        let who = self.principal.as_str();
        Err(Refusal::denied(format!("{who} calls for node {node}, which it is not")))
    }
}

/// Who calls, if they may.
///
/// # Errors
/// When the transport or the state does not know the caller, or the table says no.
pub(crate) async fn authorize<T>(
    core: &Core,
    rpc: Rpc,
    request: &Request<T>,
) -> Result<Who, Refusal> {
    let who = identify(core, rpc, request).await?;
    let passed_on = matches!(rpc, Rpc::Stream | Rpc::RotateDataKey);
    if may(who.role, rpc) && (who.role != Role::Manager || who.relayed || !passed_on) {
        return Ok(who);
    }
    let (name, call) = (who.principal.as_str(), rpc.as_str());
    Err(match who.role {
        Role::Nobody => Refusal::unauthenticated(format!("{call}: the caller is not known"))
            .hint("use a context with a certificate or a token, or the local socket of a manager"),
        Role::Worker | Role::Manager => Refusal::denied(format!("{name} may not call {call}"))
            .hint("nodes speak for themselves alone; use an operator's context"),
        Role::Admin | Role::Deploy | Role::Read
            if matches!(rpc, Rpc::LeaveCluster | Rpc::Unlock) =>
        {
            Refusal::denied(format!(
                "{call} is about the machine itself: nobody calls it from afar"
            ))
            .hint("run it on that machine; to take a node out from here: warren node rm")
        }
        Role::Local | Role::Admin | Role::Deploy | Role::Read => {
            Refusal::denied(format!("{name} may not call {call}"))
                .hint("ask somebody with the role admin, or use the local socket of a manager")
        }
    })
}

async fn identify<T>(core: &Core, rpc: Rpc, request: &Request<T>) -> Result<Who, Refusal> {
    let extensions = request.extensions();
    let caller = extensions.get::<Caller>();
    let Some(caller) = caller else {
        let socket = extensions.get::<UdsConnectInfo>().and_then(|info| info.peer_cred);
        let uid = socket.map(|credentials| credentials.uid());
        return uid.map(|uid| Who::local(format!("socket:{uid}"))).ok_or_else(|| {
            Refusal::denied("the caller is not known").hint("use the node's local socket")
        });
    };
    match caller {
        Caller::Local { uid } => Ok(Who::local(format!("socket:{uid}"))),
        Caller::OwnAgent => Ok(Who {
            role: Role::Manager,
            principal: Principal::node(core.node_id),
            node: Some(core.node_id),
            ..Who::local(String::new())
        }),
        Caller::Remote { peer, address } => {
            let mut who = remote(core, rpc, peer.as_ref(), request.metadata()).await?;
            who.address = Some(*address);
            who.relayed = who.role == Role::Manager && request.metadata().contains_key(RELAYED_KEY);
            Ok(who)
        }
    }
}

async fn remote(
    core: &Core,
    rpc: Rpc,
    peer: Option<&Peer>,
    metadata: &MetadataMap,
) -> Result<Who, Refusal> {
    if let Some(token) = metadata.get(TOKEN_KEY) {
        let text = token.to_str().ok().and_then(|text| text.strip_prefix(TOKEN_PREFIX));
        return by_token(&core.store.view(), core.now(), text);
    }
    let Some(peer) = peer else {
        return Ok(Who { role: Role::Nobody, ..Who::local("anyone".to_owned()) });
    };
    if peer.cluster != core.cluster_id {
        return Err(Refusal::unauthenticated(format!(
            "the certificate is of cluster {}, this is {}",
            peer.cluster, core.cluster_id
        )));
    }
    let Some(node) = peer.node else {
        return by_certificate(&core.store.view(), core.now(), peer);
    };
    let standing = match standing(&core.store.view(), node, peer) {
        Standing::Unknown if core.store.view().cluster().is_none() => {
            return Err(Refusal::unavailable("this manager has not been taken in yet"));
        }
        Standing::Unknown => {
            // It may have joined, or another may have taken it up again, since we last heard.
            quorum::barrier(core).await?;
            standing(&core.store.view(), node, peer)
        }
        known => known,
    };
    let role = match standing {
        Standing::Member { manager } if manager && peer.role == PeerRole::Manager => Role::Manager,
        Standing::Member { .. } => Role::Worker,
        Standing::Removed | Standing::Unknown => return Err(removed(node)),
    };
    if peer.expired && rpc != Rpc::Renew {
        let text =
            format!("the certificate of node {node} has expired, all it is good for is renewal");
        return Err(Refusal::unauthenticated(text).hint("the node's daemon renews it by itself"));
    }
    Ok(Who {
        role,
        principal: Principal::node(node),
        node: Some(node),
        ..Who::local(String::new())
    })
}

pub(crate) fn removed(node: NodeId) -> Refusal {
    Refusal::unauthenticated(format!("node {node} was removed from the cluster"))
        .hint("to take it in again, remove its data folder and join with a new token")
        .mark(Mark::Removed)
}

/// What the state says of a certificate's node.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Standing {
    Member {
        manager: bool,
    },
    Removed,
    /// Not known, or with another key.
    Unknown,
}

fn standing(view: &State, node: NodeId, peer: &Peer) -> Standing {
    let buried = view.tombstone(node).is_some_and(|stone| stone.key_hash == peer.key_hash);
    match view.node(node).filter(|member| member.key_hash == peer.key_hash) {
        Some(member) => Standing::Member { manager: member.manager },
        None if buried => Standing::Removed,
        None => Standing::Unknown,
    }
}

fn by_token(view: &State, now: Time, text: Option<&str>) -> Result<Who, Refusal> {
    let wrong = || {
        Refusal::unauthenticated("the token is not one of this cluster's")
            .hint("warren operator ls shows who has one; warren operator create makes one")
    };
    let token: ApiToken = text.ok_or_else(wrong)?.parse().map_err(|_| wrong())?;
    let hash = token.hash();
    let operator = view.operator_by_token(&hash);
    who_is(operator.ok_or_else(wrong)?, now)
}

fn by_certificate(view: &State, now: Time, peer: &Peer) -> Result<Who, Refusal> {
    let operator = view.operator_by_key(&peer.key_hash);
    let operator = operator.ok_or_else(|| {
        Refusal::unauthenticated("the certificate's operator was removed, or has another one now")
            .hint("warren operator ls shows who there is")
    })?;
    if peer.expired {
        return Err(expired(operator));
    }
    who_is(operator, now)
}

fn who_is(operator: &Operator, now: Time) -> Result<Who, Refusal> {
    if operator.expires.is_some_and(|expires| expires <= now) {
        return Err(expired(operator));
    }
    let role = match operator.role {
        OperatorRole::Admin => Role::Admin,
        OperatorRole::Deploy => Role::Deploy,
        OperatorRole::Read => Role::Read,
    };
    Ok(Who { role, ..Who::local(format!("operator:{}", operator.name)) })
}

fn expired(operator: &Operator) -> Refusal {
    Refusal::unauthenticated(format!("the access of operator {} has expired", operator.name))
        .hint("an admin makes a new one: warren operator create")
}
