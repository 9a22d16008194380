//! Whether nodes are heard of, and when what runs on a silent one may have a successor.
//!
//! Only transitions are written. Silence counts from the last beat, and before a
//! node is down never from before this leader began to observe: what its
//! predecessor heard is lost. The silence of a node that is down goes on over a
//! change of leaders (`Beats::seen`), or waits of an hour would never end; but
//! nothing has a successor before a window of this leader's own.
//! The window grows with the node's measured round trip, so that a far node is
//! not taken for a dead one. After a time without any leader nodes look for one
//! ever more seldom, so that they get longer then (`Beats::unheard_ms`).
//!
//! A node that is down has lost its tasks, which says nothing yet of their
//! successors: each service says for itself how long to wait (`OnDisconnect`).
//!
//! Times here are the leader's own, as those of the beats; they are not
//! compared with times of the state, which another leader's clock may have
//! stamped.

use warren_model::Time;
use warren_model::node::NodeStatus;
use warren_model::service::{OnDisconnect, TaskTemplate};
use warren_state::change::Mutation;

use crate::draft::Draft;
use crate::nodes::Site;
use crate::{Beats, Seen};

/// Silence after which a node on the same network counts as down: five or six beats, a second of
/// which a node needs to find another manager.
pub const SUSPICION_MS: u64 = 3_000;
/// A beat, its answer and both once more, should one be lost.
const SUSPICION_ROUND_TRIPS: u64 = 4;
/// Whatever the round trip is said to be, silence is noticed at last.
pub const SUSPICION_MAX_MS: u64 = 15_000;
/// Beats that may be missed before a node counts as down, where these are further apart than
/// [`SUSPICION_MS`] allows for: in clusters of more than a thousand nodes.
pub const BEATS_MISSED: u64 = 3;
/// How long a node may take to find a manager after none was to be found for a while: its pause
/// between rounds, and a try of each manager that does not answer.
pub const RETURN_MS: u64 = 20_000;
/// How much slower the node's clock may go than the leader's, as a fraction of the time measured:
/// 1 in 1000, ten times what quartz does.
const DRIFT_PART: u64 = 1_000;

/// Silence after which a node counts as down.
pub fn suspicion_ms(rtt_ms: u32) -> u64 {
    let window = SUSPICION_MS.saturating_add(SUSPICION_ROUND_TRIPS * u64::from(rtt_ms));
    window.min(SUSPICION_MAX_MS)
}

/// What a leader knows of a node's silence.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Silence {
    /// Since when; of nodes that are not down the leader's own beginning at the earliest.
    since: Time,
    /// When this leader began to listen.
    listens_since: Time,
    window_ms: u64,
}

impl Silence {
    /// When a node counts as down: later than the window, not at its end.
    fn deadline(self) -> Time {
        self.since.plus_ms(self.window_ms).plus_ms(1)
    }

    /// When a task of this template that was lost with its node may have a successor, if ever.
    pub(crate) fn due(self, policy: OnDisconnect, template: &TaskTemplate) -> Option<Time> {
        match policy {
            OnDisconnect::Keep => None,
            OnDisconnect::ReplaceAfter { ms } => {
                Some(self.since.plus_ms(ms.max(self.window_ms)).plus_ms(1))
            }
            // The node stops it at `ms`, counted from an answer that may have been under way for
            // as long as a window after the leader heard the node last.
            OnDisconnect::StopAfter { ms } => {
                let grace = template.stop_grace_ms.unwrap_or(TaskTemplate::STOP_GRACE_MS);
                let allowed = ms.saturating_add(grace).saturating_add(ms / DRIFT_PART);
                Some(self.since.plus_ms(allowed).plus_ms(self.window_ms).plus_ms(1))
            }
        }
    }

    /// The same, once this leader has listened for a window: it may be that the node came back and
    /// was not heard yet.
    pub(crate) fn successor_at(self, policy: OnDisconnect, task: &TaskTemplate) -> Option<Time> {
        let listened = self.listens_since.plus_ms(self.window_ms).plus_ms(1);
        self.due(policy, task).map(|due| due.max(listened))
    }
}

pub(crate) fn judge(draft: &mut Draft<'_>, beats: &Beats) {
    let beats_ms = BEATS_MISSED.saturating_mul(beats.beat_ms);
    for at in 0..draft.nodes.len() {
        let site = draft.nodes.site(at);
        let id = site.node.id;
        let seen = beats.seen.get(&id).copied();
        let rtt_ms = seen.map_or(0, |seen| seen.rtt_ms);
        let is_heard = seen.is_some_and(|seen| seen.at > beats.since);
        let unheard_ms = if is_heard { 0 } else { beats.unheard_ms };
        let mut silence = Silence {
            since: seen.map_or(beats.since, |seen| seen.at.max(beats.since)),
            listens_since: beats.since,
            window_ms: suspicion_ms(rtt_ms).max(beats_ms).max(unheard_ms),
        };
        let status = status(site, seen, silence, beats_ms, draft.clock);
        if let (NodeStatus::Down, Some(seen)) = (status, seen) {
            silence.since = seen.at;
        }
        if status == NodeStatus::Ready {
            draft.wake(Some(silence.deadline()));
        }
        draft.nodes.set_silence(at, silence);
        if draft.nodes.site(at).status != status && draft.room(1) {
            draft.nodes.set_status(at, status);
            draft.nodes_changed = true;
            draft.push(Mutation::SetNodeStatus { id, status });
        }
    }
}

fn status(
    site: &Site<'_>,
    seen: Option<Seen>,
    silence: Silence,
    beats_ms: u64,
    now: Time,
) -> NodeStatus {
    match site.status {
        NodeStatus::Ready if now < silence.deadline() => NodeStatus::Ready,
        NodeStatus::Ready => NodeStatus::Down,
        // Only word of it brings it back: a new leader's patience does not.
        NodeStatus::Down => match seen {
            Some(seen) if now <= seen.at.plus_ms(suspicion_ms(seen.rtt_ms).max(beats_ms)) => {
                NodeStatus::Ready
            }
            Some(_) | None => NodeStatus::Down,
        },
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[track_caller]
    fn check(policy: OnDisconnect, rtt_ms: u32, expected: Option<u64>) {
        let (since, window_ms) = (Time(1_000), suspicion_ms(rtt_ms));
        let silence = Silence { since, listens_since: Time(0), window_ms };
        let template = TaskTemplate { stop_grace_ms: Some(2_000), ..TaskTemplate::default() };
        assert_eq!(silence.successor_at(policy, &template), expected.map(Time));
    }

    #[test]
    fn successors_wait_as_the_service_says() {
        check(OnDisconnect::Keep, 0, None);
        check(OnDisconnect::ReplaceAfter { ms: 0 }, 0, Some(4_001));
        check(OnDisconnect::ReplaceAfter { ms: 3_000 }, 200, Some(4_801));
        check(OnDisconnect::ReplaceAfter { ms: 60_000 }, 200, Some(61_001));
        check(OnDisconnect::StopAfter { ms: 10_000 }, 0, Some(16_011));
        check(OnDisconnect::StopAfter { ms: 10_000 }, 100, Some(16_411));
        check(OnDisconnect::StopAfter { ms: u64::MAX }, 0, Some(u64::MAX));
    }

    #[test]
    fn a_new_leader_listens_for_a_window_first() {
        let template = TaskTemplate::default();
        let due = |listens_since: u64| {
            let (since, listens_since) = (Time(1_000), Time(listens_since));
            let silence = Silence { since, listens_since, window_ms: SUSPICION_MS };
            silence.successor_at(OnDisconnect::ReplaceAfter { ms: 60_000 }, &template)
        };
        assert_eq!(due(50_000), Some(Time(61_001)));
        assert_eq!(due(90_000), Some(Time(93_001)));
    }

    #[test]
    fn windows_grow_with_distance_but_not_for_ever() {
        let windows = [0, 50, 500, 3_000, u32::MAX].map(suspicion_ms);
        assert_eq!(windows, [3_000, 3_200, 5_000, 15_000, 15_000]);
    }
}
