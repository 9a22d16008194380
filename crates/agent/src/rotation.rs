//! Replacing the key of this node's end of the tunnel, without a break.
//!
//! ```text
//! one key ── made ──▶ both accepted, the old one offered   told to all nodes, all act upon it
//!          ── offered ─▶ both accepted, the new one offered told to all nodes, all act upon it
//!          ── forgotten ▶ the new one alone                 told to all nodes
//! ```
//!
//! What a node says of itself names both keys, the offered one first; managers put both into the
//! tables of all others and say when these act upon it. Nodes that are not heard of hold it up, for
//! [`OVERLAP_MAX_MS`] at most: they may still reach this one by the tunnel, and know the old key
//! alone. Each step is on disk before it is told, so a daemon that ends in between goes on there.
//!
//! A key is replaced when it is [`LIFETIME_MS`] old, or when somebody asks for it.
//!
//! Pure in [`decide`]; [`run`] looks, does one step, and looks again when something moves.
//!
//! Not here: the keys and their file (`Tunnel`), how peers take two keys (`warren_wireguard`).

use std::sync::Arc;

use tokio::sync::{mpsc, oneshot, watch};
use tonic::Status;
use warren_model::{NodeId, NodeTable};
use warren_proto::v1;
use warren_proto::v1::dispatch_client::DispatchClient;

use crate::effects::chain;
use crate::restart::doubled;
use crate::tunnel::{KeyChange, OwnKey};
use crate::worker::{Message, Tools};

/// A key is good for much longer; a copy that somebody made of it is so for no longer than this.
const LIFETIME_MS: u64 = 30 * 24 * 3_600_000;
/// Nodes of one age do not all begin at the same time.
const SPREAD_MS: u64 = 3 * 24 * 3_600_000;
/// Who was away for so long finds its way by managers again, before it needs the tunnel.
const OVERLAP_MAX_MS: u64 = 24 * 3_600_000;
/// Between questions whether all have it.
const AGAIN_FIRST_MS: u64 = 1_000;
const AGAIN_MAX_MS: u64 = 300_000;
/// Managers wait for their nodes for two seconds, and for each other.
const ANSWER_MAX_MS: u64 = 6_000;
/// Kernels are told beside data planes, not behind them: these get a moment more.
const SETTLE_MS: u64 = 1_000;
/// Who may wait for a new key at the same time.
pub(crate) const WISHES_MAX: usize = 8;

/// The offered key and the other, as a node says them of itself; zeros: none.
pub(crate) type Said = [[u8; 32]; 2];

/// Somebody wants another key; answered with the key that is offered, once it is the only one.
pub(crate) type Wish = oneshot::Sender<[u8; 32]>;

/// What is decided from.
#[derive(Debug, Clone, Copy)]
struct Look<'a> {
    keys: &'a [OwnKey],
    /// What managers tell of this node; nothing: they tell nothing of it.
    told: Option<Said>,
    /// All others act upon that.
    taken: bool,
    /// How long there have been the same two keys in the same order.
    since_ms: u64,
    /// Somebody asked for another key.
    wanted: bool,
    /// When the key is due, by its age.
    lifetime_ms: u64,
    now_ms: u64,
}

/// What follows.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Step {
    /// Nothing, for so long at most; for ever.
    Wait(Option<u64>),
    Change(KeyChange),
    /// Have all others taken it?
    Ask,
}

fn decide(look: &Look<'_>) -> Step {
    let (first, second) = match look.keys {
        [] => return Step::Wait(None),
        [only] => {
            let age_ms = look.now_ms.saturating_sub(only.made_ms);
            let told = look.told == Some(said(look.keys));
            return match (look.wanted || age_ms >= look.lifetime_ms, told) {
                (true, true) => Step::Change(KeyChange::Make),
                // Nobody may be left with a key that is gone: first they know this one.
                (true, false) => Step::Wait(None),
                (false, _) => Step::Wait(Some(look.lifetime_ms - age_ms)),
            };
        }
        [first, second, ..] => (first, second),
    };
    let late = look.since_ms >= OVERLAP_MAX_MS;
    if !late && look.told != Some(said(look.keys)) {
        return Step::Wait(Some(OVERLAP_MAX_MS - look.since_ms));
    }
    if !late && !look.taken {
        return Step::Ask;
    }
    match first.made_ms < second.made_ms {
        true => Step::Change(KeyChange::Offer),
        false => Step::Change(KeyChange::Forget),
    }
}

/// As a node says its keys.
pub(crate) fn said(keys: &[OwnKey]) -> Said {
    let key = |at: usize| keys.get(at).map_or([0; 32], |key| key.public);
    [key(0), key(1)]
}

/// A lifetime and a part of [`SPREAD_MS`], the same for a node each time.
fn lifetime_ms(node: NodeId) -> u64 {
    let hash = node
        .as_bytes()
        .iter()
        .fold(0_u64, |hash, byte| hash.wrapping_mul(31).wrapping_add(u64::from(*byte)));
    LIFETIME_MS + hash % SPREAD_MS
}

/// What the task remembers.
struct Rotation {
    tools: Arc<Tools>,
    tables: watch::Receiver<Arc<NodeTable>>,
    wishes: mpsc::Receiver<Wish>,
    waiting: Vec<Wish>,
    /// What all others act upon.
    taken: Option<Said>,
    /// When the keys became what they are, on the monotonic clock.
    since_ms: u64,
    /// Questions that were answered with no.
    asked: u32,
}

/// Replaces keys, until the agent stops.
pub(crate) async fn run(
    tools: Arc<Tools>,
    tables: watch::Receiver<Arc<NodeTable>>,
    wishes: mpsc::Receiver<Wish>,
) {
    let since_ms = tools.clock.monotonic_ms();
    let (waiting, taken) = (Vec::new(), None);
    let stopping = tools.stopping.clone();
    let rotation = Rotation { tools, tables, wishes, waiting, taken, since_ms, asked: 0 };
    // Cut off anywhere it goes on from what is on disk.
    stopping.run_until_cancelled(rotation.go()).await;
}

impl Rotation {
    async fn go(mut self) {
        loop {
            let wait_ms = match self.look() {
                Step::Wait(wait_ms) => wait_ms,
                Step::Change(change) => self.change(change).await,
                Step::Ask => self.ask().await,
            };
            let clock = Arc::clone(&self.tools.clock);
            let wake = clock.sleep(wait_ms.unwrap_or(u64::MAX));
            tokio::select! {
                moved = self.tables.changed() => if moved.is_err() { return },
                Some(wish) = self.wishes.recv() => self.waiting.push(wish),
                () = wake, if wait_ms.is_some() => {}
            }
        }
    }

    fn look(&mut self) -> Step {
        let tools = &self.tools;
        let keys = tools.tunnel.as_ref().map(|tunnel| tunnel.keys()).unwrap_or_default();
        let table = Arc::clone(&self.tables.borrow_and_update());
        let told =
            table.peers.get(&tools.node).map(|peer| [peer.overlay_key, peer.overlay_key_other]);
        self.waiting.retain(|wish| !wish.is_closed());
        decide(&Look {
            keys: &keys,
            told,
            taken: told.is_some() && self.taken == told,
            since_ms: tools.clock.monotonic_ms().saturating_sub(self.since_ms),
            wanted: !self.waiting.is_empty(),
            lifetime_ms: lifetime_ms(tools.node),
            now_ms: tools.clock.now_ms(),
        })
    }

    /// How long to wait before the next look.
    async fn change(&mut self, change: KeyChange) -> Option<u64> {
        let tunnel = self.tools.tunnel.clone()?;
        if let Err(error) = tunnel.change_keys(change).await {
            tracing::error!(%error, ?change, "replace the key of the tunnel");
            self.asked = self.asked.saturating_add(1);
            return Some(doubled(AGAIN_FIRST_MS, self.asked, AGAIN_MAX_MS));
        }
        tracing::info!(?change, "the key of the tunnel is being replaced");
        let keys = tunnel.keys();
        (self.asked, self.since_ms) = (0, self.tools.clock.monotonic_ms());
        // The session says it.
        self.tools.said.send_replace(said(&keys));
        if let (KeyChange::Forget, Some(key)) = (change, keys.first()) {
            for wish in self.waiting.drain(..) {
                // Whoever wished may have gone.
                let _ = wish.send(key.public);
            }
        }
        Some(0)
    }

    /// Asks whether all others act upon what they are told of this node.
    async fn ask(&mut self) -> Option<u64> {
        let told = self
            .tables
            .borrow()
            .peers
            .get(&self.tools.node)
            .map(|peer| [peer.overlay_key, peer.overlay_key_other]);
        let (reply, held) = oneshot::channel();
        self.tools.tell(Message::Hello(reply)).await;
        // Of the set that this table is of, or of a later one.
        let revision = held.await.ok()?.revision;
        let answer = tokio::select! {
            answer = everyone(&self.tools, revision) => answer,
            () = self.tools.clock.sleep(ANSWER_MAX_MS) => Err(Status::deadline_exceeded("no answer")),
        };
        match answer {
            Ok(true) => {
                self.tools.clock.sleep(SETTLE_MS).await;
                (self.taken, self.asked) = (told, 0);
                return Some(0);
            }
            Ok(false) => tracing::debug!(revision, "not all nodes have this node's keys yet"),
            Err(error) => {
                tracing::debug!(error = chain(&error), "nobody says who has this node's keys");
            }
        }
        self.asked = self.asked.saturating_add(1);
        Some(doubled(AGAIN_FIRST_MS, self.asked - 1, AGAIN_MAX_MS))
    }
}

async fn everyone(tools: &Tools, revision: u64) -> Result<bool, Status> {
    let channel = tools.channel.borrow().clone();
    let channel = channel.ok_or_else(|| Status::unavailable("no session with a manager"))?;
    let node_id = tools.node.as_bytes().to_vec();
    let asked = v1::PartedRequest { node_id, revision, everyone: true };
    Ok(DispatchClient::new(channel).parted(asked).await?.into_inner().all)
}

#[cfg(test)]
mod tests {
    use super::*;

    const DAY_MS: u64 = 24 * 3_600_000;

    /// Keys as `number@day`, the offered one first; what managers tell as numbers, `-` nothing.
    #[track_caller]
    fn check(keys: &str, told: &str, flags: &str, since_h: u64, expected: Step) {
        let keys: Vec<OwnKey> = keys
            .split_whitespace()
            .map(|word| {
                let (key, day) = word.split_once('@').unwrap();
                let made_ms = day.parse::<u64>().unwrap() * DAY_MS;
                OwnKey { public: [key.parse().unwrap(); 32], made_ms }
            })
            .collect();
        let told = (told != "-").then(|| {
            let mut words = told.split_whitespace().map(|word| [word.parse().unwrap(); 32]);
            [words.next().unwrap(), words.next().unwrap_or_default()]
        });
        let look = Look {
            keys: &keys,
            told,
            taken: flags.contains('t'),
            since_ms: since_h * 3_600_000,
            wanted: flags.contains('w'),
            lifetime_ms: 30 * DAY_MS,
            now_ms: 100 * DAY_MS,
        };
        assert_eq!(decide(&look), expected, "{keys:?} {told:?} {flags}");
    }

    #[test]
    fn one_step_after_the_other() {
        use KeyChange::{Forget, Make, Offer};
        check("", "-", "", 0, Step::Wait(None));
        check("", "-", "w", 0, Step::Wait(None));
        check("1@90", "1", "", 0, Step::Wait(Some(20 * DAY_MS)));
        check("1@70", "1", "", 0, Step::Change(Make));
        check("1@90", "1", "w", 0, Step::Change(Make));
        // From the future: the clock went back.
        check("1@200", "1", "", 0, Step::Wait(Some(30 * DAY_MS)));
        // Managers do not tell this key yet.
        check("1@70", "-", "", 0, Step::Wait(None));
        check("1@70", "9", "w", 0, Step::Wait(None));
        // Made.
        check("1@70 2@100", "1", "", 0, Step::Wait(Some(DAY_MS)));
        check("1@70 2@100", "1 2", "", 0, Step::Ask);
        check("1@70 2@100", "1 2", "t", 0, Step::Change(Offer));
        check("1@70 2@100", "1 2", "", 23, Step::Ask);
        check("1@70 2@100", "1 2", "", 24, Step::Change(Offer));
        check("1@70 2@100", "-", "", 24, Step::Change(Offer));
        // Offered.
        check("2@100 1@70", "1 2", "t", 0, Step::Wait(Some(DAY_MS)));
        check("2@100 1@70", "2 1", "", 0, Step::Ask);
        check("2@100 1@70", "2 1", "wt", 0, Step::Change(Forget));
        check("2@100 1@70", "2 1", "", 24, Step::Change(Forget));
    }

    #[test]
    fn nodes_differ_in_when() {
        let times: std::collections::BTreeSet<u64> =
            (0..50).map(|n| lifetime_ms(NodeId::from_bytes([n; 10]))).collect();
        assert!(times.len() > 40);
        assert!(times.iter().all(|ms| (LIFETIME_MS..LIFETIME_MS + SPREAD_MS).contains(ms)));
    }
}
