//! What a node has to do about itself while it runs: become a manager or cease
//! to be one, replace its certificate, trust what the cluster trusts now.
//!
//! [`decide`] is pure: what the cluster wants of the node and what it is go in,
//! one [`Step`] comes out; the [`Keeper`] carries it out and looks again.
//!
//! What was kept of an earlier life never makes a manager or ends one: it may
//! be older than the last change. Only what a manager said in this life does.

use std::sync::Arc;
use std::time::Duration;

use tokio::sync::watch;
use tokio_util::sync::CancellationToken;
use warren_agent::{ManagerAddress, MembershipView};
use warren_model::Time;
use warren_trust::{Bundle, Peer};

use super::door::{Behind, Local};
use super::listener;
use super::managing::{self, Begin, Managing, lock};
use super::node::{Shared, persist_clock};
use super::renew::{self, Due, Renewal, Wanted};
use crate::cli::failure::Failure;
use crate::identity::{Identity, Role};

/// How long a manager that is to be none takes part yet, should nobody tell it that it is out: its
/// vote and what it holds may be what the others need to let it go.
const OUT_MAX: Duration = Duration::from_secs(60);
/// Between questions whether it is out.
const OUT_ASK: Duration = Duration::from_millis(200);
/// Between two looks at the clock that is kept; what is lost of it is no more than this.
const CLOCK_EVERY_MS: u64 = 3_600_000;

/// What the node is to do next about itself.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Step {
    Renew(Due),
    /// Becomes manager of that number.
    Promote(u64),
    /// Is no manager any more, or not of that number.
    Demote,
    /// Nothing, until that moment.
    Rest(Time),
}

/// What a node is and is to be.
#[derive(Debug, Clone)]
pub(super) struct Look<'a> {
    pub(super) wanted: Option<&'a MembershipView>,
    /// Heard in this life.
    pub(super) fresh: bool,
    /// Its certificate.
    pub(super) own: &'a Peer,
    /// The number that it is a manager of now.
    pub(super) managing: Option<u64>,
    /// Random, the same for one certificate.
    pub(super) draw: u64,
    pub(super) now: Time,
}

pub(super) fn decide(look: &Look<'_>) -> Step {
    let Some(wanted) = look.wanted else {
        let keep = Wanted { manager: is_manager(look.own), issuer_hash: [0; 32], lifetime_ms: 0 };
        return certificate(look, &keep).unwrap_or_else(Step::Rest);
    };
    // One that was a manager before there were numbers stays what it is.
    let to_be = wanted.number.or(look.managing).filter(|_| wanted.manager);
    if look.fresh && look.managing.is_some() && look.managing != to_be {
        return Step::Demote;
    }
    // A manager that is being demoted needs its certificate until it is out.
    let manager = if look.fresh { to_be.is_some() } else { is_manager(look.own) };
    let keep = Wanted {
        manager,
        issuer_hash: wanted.issuer_hash,
        lifetime_ms: wanted.certificate_lifetime_ms,
    };
    match (certificate(look, &keep), to_be) {
        (Ok(step), _) => step,
        (Err(_), Some(number)) if look.fresh && look.managing.is_none() => Step::Promote(number),
        (Err(at), _) => Step::Rest(at),
    }
}

fn is_manager(own: &Peer) -> bool {
    own.role == warren_trust::PeerRole::Manager
}

/// A step about the certificate, or when there will be one.
fn certificate(look: &Look<'_>, wanted: &Wanted) -> Result<Step, Time> {
    match renew::due(look.own, wanted, look.draw, look.now) {
        Due::At(at) => Err(at),
        due => Ok(Step::Renew(due)),
    }
}

/// Keeps the node what it should be.
pub(super) struct Keeper {
    pub(super) shared: Arc<Shared>,
    pub(super) managing: Option<Managing>,
    pub(super) local: Arc<Local>,
    pub(super) membership: watch::Receiver<Option<MembershipView>>,
    pub(super) manager: watch::Receiver<Option<ManagerAddress>>,
    pub(super) removed: watch::Receiver<bool>,
    pub(super) agent: Arc<warren_agent::Metrics>,
}

/// How a keeper ends: with the manager that is left to be stopped, and why, if nobody asked.
pub(super) struct Kept {
    pub(super) managing: Option<Managing>,
    pub(super) end: Option<End>,
}

pub(super) enum End {
    /// The cluster has removed this node.
    Removed,
    Broken(Failure),
}

impl Keeper {
    /// Runs until told to stop, or until the node can go on no longer.
    pub(super) async fn run(mut self, stop: CancellationToken) -> Kept {
        let end = self.keep(&stop).await;
        Kept { managing: self.managing, end }
    }

    async fn keep(&mut self, stop: &CancellationToken) -> Option<End> {
        let mut failures: u32 = 0;
        let draw = self.shared.rng.next_u64();
        loop {
            if *self.removed.borrow() {
                return Some(End::Removed);
            }
            let membership = self.membership.borrow_and_update().clone();
            if let Some(view) = &membership {
                self.trust(view);
            }
            self.advance();
            let credentials = self.shared.dialer.credentials();
            let Some(own) = credentials.own() else {
                return Some(End::Broken(Failure::failed("this node has no certificate")));
            };
            let step = decide(&Look {
                wanted: membership.as_ref(),
                fresh: self.is_fresh(),
                own: &own,
                managing: self.managing.as_ref().map(|managing| managing.number),
                draw,
                now: credentials.now(),
            });
            let wait_ms = match step {
                Step::Rest(at) => at.since_ms(credentials.now()).min(CLOCK_EVERY_MS),
                step => {
                    let outcome = tokio::select! {
                        outcome = self.carry_out(step, membership.as_ref()) => outcome,
                        () = stop.cancelled() => return None,
                    };
                    match outcome {
                        Ok(()) => {
                            failures = 0;
                            continue;
                        }
                        Err(failure) => {
                            let error = &failure.message;
                            tracing::warn!(error, ?step, "it is tried again");
                            failures = failures.saturating_add(1);
                            renew::pause_ms(failures, self.shared.rng.as_ref())
                        }
                    }
                }
            };
            tokio::select! {
                () = stop.cancelled() => return None,
                () = self.shared.clock.sleep(wait_ms.max(1)) => {}
                _ = self.removed.wait_for(|removed| *removed) => return Some(End::Removed),
                changed = self.membership.changed() => if changed.is_err() {
                    return Some(End::Broken(Failure::failed("the agent has ended")));
                },
                () = session(&mut self.manager) => {}
                () = ended(self.managing.as_ref()) => {
                    let failure = Failure::failed("the store has ended; the log tells why");
                    return Some(End::Broken(failure));
                }
            }
        }
    }

    /// Whether the membership was heard in this life.
    fn is_fresh(&self) -> bool {
        let applied = &self.agent.assignments_applied;
        self.manager.borrow().is_some() && applied.load(std::sync::atomic::Ordering::Relaxed) > 0
    }

    /// Trusts what the cluster trusts now.
    fn trust(&self, view: &MembershipView) {
        let credentials = self.shared.dialer.credentials();
        let known = credentials.bundle();
        let same = known
            .certificates()
            .iter()
            .map(|der| der.as_ref())
            .eq(view.authorities.iter().map(Vec::as_slice));
        if same || view.authorities.is_empty() {
            return;
        }
        match Bundle::new(&view.authorities) {
            Ok(bundle) if bundle.cluster() == known.cluster() => {
                tracing::info!(certificates = view.authorities.len(), "authorities changed");
                credentials.set_bundle(bundle);
            }
            Ok(_) => tracing::error!("authorities of another cluster came; they are not trusted"),
            Err(error) => tracing::error!(%error, "authorities came that are none"),
        }
    }

    /// Certificates are judged by the cluster's clock where that is ahead.
    fn advance(&self) {
        let credentials = self.shared.dialer.credentials();
        if let Some(managing) = &self.managing {
            credentials.advance(managing.store.view().time());
        }
        persist_clock(&self.shared, CLOCK_EVERY_MS);
    }

    async fn carry_out(
        &mut self,
        step: Step,
        membership: Option<&MembershipView>,
    ) -> Result<(), Failure> {
        match step {
            Step::Renew(due) => self.renew(due, membership).await,
            Step::Promote(number) => self.promote(number).await,
            Step::Demote => self.demote(membership.map_or(0, |view| view.epoch)).await,
            Step::Rest(_) => Ok(()),
        }
    }

    async fn renew(&self, due: Due, membership: Option<&MembershipView>) -> Result<(), Failure> {
        let shared = &self.shared;
        let local = *shared.local.borrow() == warren_agent::LocalManager::Led;
        // What was kept of an earlier life may be older than what this one was told.
        let mut managers = shared.managers();
        for known in membership.into_iter().flat_map(|view| &view.managers) {
            if !managers.contains(known) {
                managers.push(known.clone());
            }
        }
        let renewal = Renewal {
            files: &shared.files,
            key: &shared.key,
            dialer: &shared.dialer,
            pipe: shared.pipe.load().as_deref().filter(|_| local).cloned(),
            managers: &managers,
        };
        let outcome = renewal.carry_out().await;
        shared
            .metrics
            .renewals
            .get_or_create(&[(
                "result",
                match outcome {
                    Ok(_) => "ok",
                    Err(_) => "failed",
                },
            )])
            .inc();
        let peer = outcome?;
        tracing::info!(?due, role = %peer.role, not_after = %peer.not_after, "certificate renewed");
        Ok(())
    }

    async fn promote(&mut self, number: u64) -> Result<(), Failure> {
        tracing::info!(number, "this node becomes a manager");
        let socket = listener::bind(self.shared.settings.listen)?;
        // Before anything of the store is there: a store without this is nobody's.
        self.shared.note(|identity| Identity {
            role: Role { manager: Some(number), ..identity.role },
            stored: false,
            ..identity
        })?;
        let managing = take_up(&self.shared, socket, number, Begin::Join).await?;
        self.managing = Some(managing);
        Ok(())
    }

    /// `epoch` is the cluster's: those of an older one have nothing to be let go from.
    async fn demote(&mut self, epoch: u64) -> Result<(), Failure> {
        let Some(managing) = &self.managing else { return Ok(()) };
        let number = managing.number;
        tracing::info!(number, "this node is to be no manager any more");
        let view = managing.store.view();
        if view.cluster().is_some_and(|cluster| cluster.epoch >= epoch) {
            out(&managing.store, number).await;
        }
        if let Some(managing) = self.managing.take() {
            managing.stop(&self.shared).await;
        }
        self.shared.door.set(Behind::Local(Arc::clone(&self.local)));
        self.shared.note(|identity| Identity {
            role: Role { manager: None, ..identity.role },
            stored: false,
            ..identity
        })?;
        self.shared.files.remove_store()?;
        // Only managers' key files are locked.
        lock::write(&self.shared, None).await.map_err(Failure::failed)?;
        tracing::info!(number, "this node is no manager any more");
        Ok(())
    }
}

/// Makes or opens the store and starts the manager on it.
pub(super) async fn take_up(
    shared: &Arc<Shared>,
    socket: tokio::net::TcpListener,
    number: u64,
    begin: Begin,
) -> Result<Managing, Failure> {
    if begin == Begin::Join {
        shared.files.remove_store()?;
    }
    let store = managing::ledger(shared, number, begin).await?;
    if begin == Begin::Join {
        // From here on an empty store would be one that forgot its votes.
        shared.note(|identity| Identity { stored: true, ..identity })?;
    }
    Managing::start(shared, socket, store, number, shared.cluster)
}

/// Resolves when consensus has left this manager out, or will not say so any more.
async fn out(store: &warren_store::Store, number: u64) {
    let mut removed = store.removed();
    let asking = async {
        loop {
            tokio::time::sleep(OUT_ASK).await;
            store.ask_members().await;
        }
    };
    let left = async {
        tokio::select! {
            // An error means that the store has ended.
            _ = removed.wait_for(|removed| *removed) => {}
            () = asking => {}
        }
    };
    if tokio::time::timeout(OUT_MAX, left).await.is_err() {
        tracing::warn!(number, "nobody says that this manager is out; it leaves all the same");
    }
}

/// Resolves when a session begins or ends.
async fn session(manager: &mut watch::Receiver<Option<ManagerAddress>>) {
    if manager.changed().await.is_err() {
        // The agent has ended; its other channels say so.
        std::future::pending::<()>().await;
    }
}

async fn ended(managing: Option<&Managing>) {
    match managing {
        Some(managing) => {
            let mut ended = managing.store.ended();
            // An error means that it ended without a word.
            let _ = ended.wait_for(|ended| *ended).await;
        }
        None => std::future::pending().await,
    }
}

#[cfg(test)]
mod tests {
    use warren_model::ClusterId;
    use warren_trust::PeerRole;

    use super::*;

    const DAY: u64 = 86_400_000;

    /// Words of what is: `m3` manager 3, `cert-m` or `cert-w`; of what is wanted: `+m3`, `+w`,
    /// `stale` for what was kept.
    #[track_caller]
    fn check(words: &str, expected: &str) {
        let start = Time(1_800_000_000_000);
        let mut own = Peer {
            node: None,
            operator: None,
            role: PeerRole::Worker,
            cluster: ClusterId::MIN,
            key_hash: [0; 32],
            not_before: Time(start.0 - 3_600_000),
            not_after: start.plus_ms(90 * DAY),
            expired: false,
            issuer_hash: [1; 32],
        };
        let (mut wanted, mut fresh, mut managing) = (None, true, None);
        for word in words.split_whitespace() {
            let view = |number: Option<u64>| MembershipView {
                manager: number.is_some(),
                number,
                issuer_hash: [1; 32],
                certificate_lifetime_ms: 90 * DAY,
                ..MembershipView::default()
            };
            match word {
                "stale" => fresh = false,
                "cert-m" => own.role = PeerRole::Manager,
                "cert-w" => own.role = PeerRole::Worker,
                "+w" => wanted = Some(view(None)),
                "+m" => wanted = Some(MembershipView { manager: true, ..view(None) }),
                word => match word.split_once('m') {
                    Some(("+", number)) => wanted = Some(view(number.parse().ok())),
                    Some(("", number)) => managing = number.parse().ok(),
                    _ => panic!("{word}"),
                },
            }
        }
        let look =
            Look { wanted: wanted.as_ref(), fresh, own: &own, managing, draw: 0, now: start };
        let got = match decide(&look) {
            Step::Rest(_) => "rest".to_owned(),
            Step::Renew(due) => format!("renew {due:?}"),
            Step::Promote(number) => format!("promote {number}"),
            Step::Demote => "demote".to_owned(),
        };
        assert_eq!(got, expected, "{words}");
    }

    #[test]
    fn steps() {
        check("cert-w", "rest");
        check("cert-m m1", "rest");
        check("cert-w +w", "rest");
        check("cert-m m1 +m1", "rest");
        // Promotion: certificate first, others would not talk to it without.
        check("cert-w +m3", "renew Role");
        check("cert-m +m3", "promote 3");
        check("cert-m m3 +m3", "rest");
        // Demotion: certificate last.
        check("cert-m m3 +w", "demote");
        check("cert-m +w", "renew Role");
        check("cert-m m3 +m5", "demote");
        check("cert-m m1 +m", "rest");
        // What was kept changes nothing.
        check("cert-m m3 +w stale", "rest");
        check("cert-w +m3 stale", "rest");
        check("cert-m +m3 stale", "rest");
    }
}
