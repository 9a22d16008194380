//! The time of a member: heartbeats of a leader, patience of the others.
//!
//! In place of the library's own clock, which wakes a hundred times a second on
//! every member. Here a leader wakes for its heartbeats, a voter when its
//! patience with the leader may be at an end (a few times a second), who does
//! not vote or is alone never. Whether an election may begin, the library still
//! decides: not as long as the leader's lease holds.

use std::time::Duration;

use openraft::ServerState;
use openraft::async_runtime::watch::WatchReceiver;
use rand_core::TryRng;
use tokio::time::Instant;

use super::runtime::Draw;
use super::types::Vote;
use super::{Election, Node};

/// Times of an election profile.
#[derive(Debug, Clone, Copy)]
pub(super) struct Pace {
    pub(super) heartbeat: Duration,
    pub(super) patience_min: Duration,
    /// Also the lease of a leader: nobody else is voted for as long as it holds.
    pub(super) patience_max: Duration,
}

impl Election {
    pub(super) fn pace(self) -> Pace {
        let ms = Duration::from_millis;
        let (heartbeat, patience_min, patience_max) = match self {
            Self::Lan => (ms(75), ms(150), ms(300)),
            Self::Wan => (ms(250), ms(1000), ms(2000)),
        };
        Pace { heartbeat, patience_min, patience_max }
    }
}

impl Pace {
    /// Drawn anew for each round, so that two do not stand for election at once for ever.
    fn patience(&self) -> Duration {
        let span = self.patience_max - self.patience_min;
        let Ok(drawn) = Draw.try_next_u32();
        self.patience_min + span.mul_f64(f64::from(drawn) / f64::from(u32::MAX))
    }
}

/// What a member's time is for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Duty {
    /// A leader with others to keep quiet.
    Beat,
    /// A voter that does not lead.
    Wait,
    Nothing,
}

impl Node {
    /// Keeps time; ends with the member.
    pub(super) async fn keep_time(self, pace: Pace) {
        let mut server = self.raft.server_metrics();
        let mut known: Option<Vote> = None;
        // When this member last had a reason to be patient, and how long it is.
        let (mut since, mut patience) = (Instant::now(), pace.patience_max + pace.patience());
        let mut next_beat = Instant::now();
        loop {
            let (duty, vote) = self.duty(&mut server);
            if known != Some(vote) {
                known = Some(vote);
                since = Instant::now();
                patience = pace.patience_max + pace.patience();
            }
            let due = match duty {
                Duty::Beat => Some(next_beat),
                Duty::Wait => {
                    let heard = self.shared.contact.last();
                    Some(heard.map_or(since, |heard| heard.max(since)) + patience)
                }
                Duty::Nothing => None,
            };
            let now = Instant::now();
            if due.is_none_or(|due| due > now) {
                let wait = async {
                    match due {
                        Some(due) => tokio::time::sleep_until(due).await,
                        None => std::future::pending().await,
                    }
                };
                tokio::select! {
                    biased;
                    changed = server.changed() => if changed.is_err() { return },
                    () = wait => {}
                }
                continue;
            }
            let done = if duty == Duty::Beat {
                // After a pause of the whole process the missed ones are not made up for.
                next_beat = now + pace.heartbeat;
                self.raft.trigger().heartbeat().await
            } else {
                since = now;
                patience = pace.patience();
                self.raft.trigger().elect(true).await
            };
            if done.is_err() {
                return;
            }
        }
    }

    fn duty(&self, server: &mut super::members::ServerWatch) -> (Duty, Vote) {
        let number = self.shared.number;
        let now = server.borrow_and_update();
        let membership = now.membership_config.membership();
        let votes = membership.voter_ids().any(|voter| voter == number);
        let others = membership.nodes().any(|(node, _)| *node != number);
        let duty = match now.state {
            // Learners want to hear it as well.
            ServerState::Leader if others => Duty::Beat,
            ServerState::Leader => Duty::Nothing,
            _ if votes => Duty::Wait,
            _ => Duty::Nothing,
        };
        (duty, now.vote)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn patience_is_drawn_within_its_bounds() {
        super::super::runtime::seed(5);
        let pace = Election::Lan.pace();
        let drawn: Vec<Duration> = (0..1000).map(|_| pace.patience()).collect();
        let (least, most) = (drawn.iter().min().unwrap(), drawn.iter().max().unwrap());
        assert!(*least >= pace.patience_min && *least < pace.patience_min * 11 / 10);
        assert!(*most <= pace.patience_max && *most > pace.patience_max * 9 / 10);
    }
}
