//! What a member tells of itself: whether it leads, who does, whether it is in touch.
//!
//! Woken by changes and by deadlines; a member that is alone has none, so an
//! idle single manager sleeps.

use std::time::Duration;

use openraft::async_runtime::watch::WatchReceiver;
use openraft::{Instant as _, ServerState};
use tokio::sync::watch;
use tokio::time::Instant;

use super::Node;
use super::types::LeaderId;

/// A leader without a majority, and a follower without a leader, for so long are on their own.
pub(crate) const SILENCE_MAX: Duration = Duration::from_secs(1);

/// What is told.
#[derive(Clone)]
pub(crate) struct Signals {
    /// Leads, has applied an entry of its own term, and a majority answered within a second.
    pub(crate) leads: watch::Receiver<bool>,
    /// Who leads, as far as this member is in touch.
    pub(crate) leader: watch::Receiver<Option<u64>>,
    /// In touch with a majority: leads it, or hears its leader.
    pub(crate) in_touch: watch::Receiver<bool>,
    /// Others said that this member was removed.
    pub(crate) removed: watch::Receiver<bool>,
}

struct Told {
    leads: watch::Sender<bool>,
    leader: watch::Sender<Option<u64>>,
    in_touch: watch::Sender<bool>,
}

/// What is known at a moment.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Seen {
    number: u64,
    leads: bool,
    /// The only voter.
    alone: bool,
    /// Has applied an entry of the term it leads in.
    ready: bool,
    leader: Option<u64>,
    /// Since when nobody was heard: a majority, by a leader; the leader, by others.
    silent_for: Option<Duration>,
}

#[derive(Debug, PartialEq, Eq)]
struct Verdict {
    leads: bool,
    leader: Option<u64>,
    in_touch: bool,
    /// When it changes by itself.
    within: Option<Duration>,
}

fn judge(seen: Seen) -> Verdict {
    if seen.leads && seen.alone {
        let leader = Some(seen.number);
        return Verdict { leads: seen.ready, leader, in_touch: true, within: None };
    }
    let left = seen.silent_for.and_then(|silent| SILENCE_MAX.checked_sub(silent));
    let within = left.filter(|left| !left.is_zero());
    let in_touch = within.is_some();
    let leader = if seen.leads { Some(seen.number) } else { seen.leader };
    Verdict {
        leads: seen.leads && seen.ready && in_touch,
        leader: leader.filter(|_| in_touch),
        in_touch,
        within,
    }
}

fn tell<T: PartialEq>(told: &watch::Sender<T>, now: T) {
    told.send_if_modified(|known| {
        let changed = *known != now;
        *known = now;
        changed
    });
}

impl Node {
    /// Starts telling; ends with the member.
    pub(super) fn follow(&self, applied_by: watch::Receiver<Option<LeaderId>>) -> Signals {
        let (leads, leads_seen) = watch::channel(false);
        let (leader, leader_seen) = watch::channel(None);
        let (in_touch, in_touch_seen) = watch::channel(false);
        let told = Told { leads, leader, in_touch };
        tokio::spawn(self.clone().tell_changes(applied_by, told));
        Signals {
            leads: leads_seen,
            leader: leader_seen,
            in_touch: in_touch_seen,
            removed: self.shared.removed.subscribe(),
        }
    }

    async fn tell_changes(self, mut applied_by: watch::Receiver<Option<LeaderId>>, told: Told) {
        let mut server = self.raft.server_metrics();
        let mut data = self.raft.data_metrics();
        // When this member began to lead, until a majority has answered.
        let mut began = None;
        loop {
            let applied = *applied_by.borrow_and_update();
            let seen = self.look(&mut server, applied, &mut began);
            let verdict = judge(seen);
            tell(&told.in_touch, verdict.in_touch);
            tell(&told.leader, verdict.leader);
            tell(&told.leads, verdict.leads);
            let deadline = async {
                match verdict.within {
                    Some(within) => tokio::time::sleep(within).await,
                    None => std::future::pending().await,
                }
            };
            // Only what could bring back what is missing wakes this.
            let lonely = seen.leads && !verdict.in_touch;
            let alive = tokio::select! {
                biased;
                changed = server.changed() => changed.is_ok(),
                changed = applied_by.changed() => changed.is_ok(),
                () = self.shared.contact.heard(), if !seen.leads => true,
                changed = data.changed(), if lonely => changed.is_ok(),
                () = deadline => true,
            };
            if !alive {
                tell(&told.leads, false);
                tell(&told.leader, None);
                tell(&told.in_touch, false);
                return;
            }
        }
    }

    fn look(
        &self,
        server: &mut super::members::ServerWatch,
        applied_by: Option<LeaderId>,
        began: &mut Option<Instant>,
    ) -> Seen {
        let (leads, leadership, leader, voters) = {
            let now = server.borrow_and_update();
            let membership = now.membership_config.membership();
            let voters: Vec<u64> = membership.voter_ids().collect();
            let leads = now.state == ServerState::Leader;
            let leadership = super::types::granted(&now.vote);
            (leads, leadership, now.current_leader, voters)
        };
        if !leads {
            *began = None;
        }
        let silent_for = if leads {
            let began = *began.get_or_insert_with(Instant::now);
            let acked = self.raft.metrics().borrow_watched().last_quorum_acked;
            let led = began.elapsed();
            Some(acked.map_or(led, |acked| acked.elapsed().min(led)))
        } else {
            self.shared.contact.last().map(|last| last.elapsed())
        };
        Seen {
            number: self.shared.number,
            leads,
            alone: voters == [self.shared.number],
            ready: leads && leadership.is_some() && leadership == applied_by,
            leader,
            silent_for,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn verdicts() {
        let seen = Seen {
            number: 1,
            leads: false,
            alone: false,
            ready: false,
            leader: Some(2),
            silent_for: None,
        };
        let ms = |ms| Some(Duration::from_millis(ms));
        let check = |seen: Seen, leads, leader, in_touch, within| {
            assert_eq!(judge(seen), Verdict { leads, leader, in_touch, within }, "{seen:?}");
        };
        check(seen, false, None, false, None);
        check(Seen { silent_for: ms(200), ..seen }, false, Some(2), true, ms(800));
        check(Seen { silent_for: ms(1000), ..seen }, false, None, false, None);
        let leads = Seen { leads: true, leader: Some(1), silent_for: ms(10), ..seen };
        check(leads, false, Some(1), true, ms(990));
        check(Seen { ready: true, ..leads }, true, Some(1), true, ms(990));
        check(Seen { ready: true, silent_for: ms(1500), ..leads }, false, None, false, None);
        let alone = Seen { alone: true, ready: true, silent_for: ms(9999), ..leads };
        check(alone, true, Some(1), true, None);
    }
}
