//! Reservations of published ports: who on this node holds which.
//!
//! A reservation is a bound socket that nobody listens on. It is duplicated
//! into the shim of each container that needs it, so that the port stays ours
//! while the daemon is away; a new process of the agent takes it back from
//! there. Ports of the routing mesh the node holds by itself, beside those tasks
//! or without any.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt;
use std::os::fd::OwnedFd;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use warren_model::{ServiceId, TaskId};
use warren_runtime::Runtime;

use crate::effects::chain;
use crate::mesh::{Holding, Tenant};
use crate::published::{Claim, PortKey};
use crate::seams::Network;

#[derive(Debug)]
struct Reservation {
    fd: Arc<OwnedFd>,
    service: ServiceId,
    service_name: String,
    shared: bool,
    users: BTreeSet<User>,
}

/// Who holds a reservation.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum User {
    /// The node itself, for the routing mesh.
    Node,
    Task(TaskId),
}

impl fmt::Display for User {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Node => f.write_str("the node"),
            Self::Task(task) => task.fmt(f),
        }
    }
}

/// A port that could not be had.
#[derive(Debug, thiserror::Error)]
pub(crate) enum Error {
    #[error("port {key} is taken by {holder}")]
    Taken { key: PortKey, holder: String },
    #[error(transparent)]
    Net(warren_net::Error),
}

/// Who claims.
#[derive(Debug, Clone)]
pub(crate) struct Claimant {
    pub(crate) user: User,
    pub(crate) service: ServiceId,
    pub(crate) service_name: String,
}

/// What came of a claim.
#[derive(Debug)]
pub(crate) struct Claimed {
    pub(crate) held: BTreeMap<PortKey, Arc<OwnedFd>>,
    /// Why the rest is not held.
    pub(crate) problem: Option<Error>,
}

pub(crate) struct Ports {
    network: Arc<dyn Network>,
    runtime: Arc<dyn Runtime>,
    held: Mutex<BTreeMap<PortKey, Reservation>>,
    /// Two replicas that claim at once must not find each other's socket a stranger's.
    turn: tokio::sync::Mutex<()>,
}

impl Ports {
    pub(crate) fn new(network: Arc<dyn Network>, runtime: Arc<dyn Runtime>) -> Self {
        Self {
            network,
            runtime,
            held: Mutex::new(BTreeMap::new()),
            turn: tokio::sync::Mutex::new(()),
        }
    }

    fn lock(&self) -> MutexGuard<'_, BTreeMap<PortKey, Reservation>> {
        self.held.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Takes back what the shim of `container` keeps since before this process.
    pub(crate) async fn adopt(&self, who: &Claimant, container: &str, claims: &[Claim]) {
        for claim in claims {
            if self.join(who, *claim).is_some() {
                continue;
            }
            match self.runtime.kept(container, &claim.key.label()).await {
                Ok(Some(fd)) => {
                    self.insert(who, *claim, Arc::new(fd));
                }
                // The claim of the task's service comes later and says what is wrong.
                Ok(None) => {
                    let (user, service_id) = (who.user, who.service);
                    tracing::warn!(%user, %service_id, port = %claim.key, "shim keeps no port");
                }
                Err(error) => {
                    let (user, service_id) = (who.user, who.service);
                    tracing::warn!(%user, %service_id, port = %claim.key, %error, "take back port");
                }
            }
        }
    }

    /// Makes the task hold exactly `claims`, as far as they can be had. Says also
    /// whether a port became free by it.
    pub(crate) async fn claim(&self, who: &Claimant, claims: &[Claim]) -> (Claimed, bool) {
        let freed = self.release_but(who.user, |key, _| claims.iter().any(|c| c.key == *key));
        let _turn = self.turn.lock().await;
        let mut claimed = Claimed { held: BTreeMap::new(), problem: None };
        for claim in claims {
            match self.claim_one(who, *claim) {
                Ok(fd) => {
                    claimed.held.insert(claim.key, fd);
                }
                Err(problem) => claimed.problem = Some(problem),
            }
        }
        (claimed, freed)
    }

    /// The task holds nothing any more. Says whether a port became free.
    pub(crate) fn release(&self, task: TaskId) -> bool {
        self.release_but(User::Task(task), |_, _| false)
    }

    /// Makes the node hold exactly `wanted`, as far as they can be had. Says also whether a port
    /// became free by it.
    pub(crate) async fn hold(&self, wanted: &BTreeMap<PortKey, Tenant>) -> (Holding, bool) {
        let stays = |key: &PortKey, service| {
            wanted.get(key).is_some_and(|tenant| tenant.service == service)
        };
        let freed = self.release_but(User::Node, stays);
        let _turn = self.turn.lock().await;
        let mut holding = Holding::default();
        for (key, tenant) in wanted {
            let who = Claimant {
                user: User::Node,
                service: tenant.service,
                service_name: tenant.service_name.clone(),
            };
            match self.claim_one(&who, Claim { key: *key, shared: true }) {
                Ok(_) => drop(holding.held.insert(*key, tenant.service)),
                Err(Error::Net(warren_net::Error::NoAddress { .. })) => holding.absent = true,
                Err(error) => drop(holding.refused.insert(*key, chain(&error))),
            }
        }
        (holding, freed)
    }

    /// Whether `claim` could be had by a new task of `service`: tried out and given back.
    ///
    /// # Errors
    /// Who holds it.
    pub(crate) fn probe(&self, service: Option<ServiceId>, claim: Claim) -> Result<(), Error> {
        if let Some(held) = self.lock().get(&claim.key) {
            // Its own replicas hold it: they make room, or share it.
            return match service == Some(held.service) {
                true => Ok(()),
                false => Err(taken(claim.key, held)),
            };
        }
        self.reserve(claim.key).map(drop)
    }

    fn claim_one(&self, who: &Claimant, claim: Claim) -> Result<Arc<OwnedFd>, Error> {
        if let Some(known) = self.join(who, claim) {
            return known;
        }
        let fd = Arc::new(self.reserve(claim.key)?);
        Ok(self.insert(who, claim, fd))
    }

    fn insert(&self, who: &Claimant, claim: Claim, fd: Arc<OwnedFd>) -> Arc<OwnedFd> {
        let reservation = Reservation {
            fd: Arc::clone(&fd),
            service: who.service,
            service_name: who.service_name.clone(),
            shared: claim.shared,
            users: BTreeSet::from([who.user]),
        };
        self.lock().insert(claim.key, reservation);
        fd
    }

    /// Joins a reservation that exists, or says who has it; `None` when nobody does.
    fn join(&self, who: &Claimant, claim: Claim) -> Option<Result<Arc<OwnedFd>, Error>> {
        let mut held = self.lock();
        let found = held.get_mut(&claim.key)?;
        let ours = found.users.contains(&who.user) && found.service == who.service;
        let shares = found.service == who.service && found.shared && claim.shared;
        if !ours && !shares {
            return Some(Err(taken(claim.key, found)));
        }
        found.users.insert(who.user);
        Some(Ok(Arc::clone(&found.fd)))
    }

    fn reserve(&self, key: PortKey) -> Result<OwnedFd, Error> {
        self.network.reserve(key.net_protocol(), key.bind, key.port).map_err(Error::Net)
    }

    fn release_but(&self, user: User, stays: impl Fn(&PortKey, ServiceId) -> bool) -> bool {
        let mut freed = false;
        self.lock().retain(|key, held| {
            let wanted = stays(key, held.service);
            if !wanted && held.users.remove(&user) && held.users.is_empty() {
                freed = true;
                return false;
            }
            true
        });
        freed
    }
}

fn taken(key: PortKey, held: &Reservation) -> Error {
    Error::Taken { key, holder: format!("service {}", held.service_name) }
}
