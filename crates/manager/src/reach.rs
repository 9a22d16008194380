//! Which managers answer now, asked by this one, and whether the group can do
//! without one of them.
//!
//! Asked when a person wants to know, not all the time; an answer is good for
//! [`KEPT_MS`], so that a script that lists in a loop costs nothing, and until
//! there are managers that were not asked. The rules about leaving and about
//! newcomers are pure.

use std::collections::{BTreeMap, BTreeSet};

use futures::StreamExt;
use futures::stream::FuturesUnordered;
use tokio::sync::Mutex;
use tonic::Request;
use tonic::metadata::MetadataValue;
use warren_proto::v1;
use warren_proto::v1::control_client::ControlClient;

use crate::api::authorize::RELAYED_KEY;
use crate::core::Core;
use crate::peers;
use crate::quorum;
use crate::refusal::Refusal;

/// An answer within a cluster takes milliseconds; a listing must not wait long for the dead.
const ANSWER_MS: u64 = 400;
const KEPT_MS: u64 = 1000;
/// A new manager fetches the state before it answers anybody: that long nothing is wrong with it.
const NEW_MS: u64 = 3000;

/// The last answers.
#[derive(Default)]
pub(crate) struct Reach {
    kept: Mutex<Option<Kept>>,
}

struct Kept {
    at_ms: u64,
    answers: Answers,
    newcomers: Newcomers,
}

/// Managers by number, as of one look.
#[derive(Debug, Clone, Default)]
pub(crate) struct Answers {
    /// Those that answer, this one among them.
    pub(crate) there: BTreeSet<u64>,
    /// Those that do not yet, and need not.
    pub(crate) joining: BTreeSet<u64>,
    asked: BTreeSet<u64>,
}

/// Since when managers are asked that never answered; none for those that did.
#[derive(Debug, Default)]
struct Newcomers(BTreeMap<u64, Option<u64>>);

impl Newcomers {
    /// Takes note of a look; says who is new.
    fn note(&mut self, asked: &BTreeSet<u64>, there: &BTreeSet<u64>, now_ms: u64) -> BTreeSet<u64> {
        self.0.retain(|number, _| asked.contains(number));
        let mut joining = BTreeSet::new();
        for number in asked {
            let since = self.0.entry(*number).or_insert(Some(now_ms));
            if there.contains(number) {
                *since = None;
            }
            if since.is_some_and(|since_ms| now_ms.saturating_sub(since_ms) < NEW_MS) {
                joining.insert(*number);
            }
        }
        joining
    }
}

impl Reach {
    /// Who answers; perhaps as of a second ago.
    pub(crate) async fn lately(&self, core: &Core) -> Answers {
        // Held while asking: those who come meanwhile wait for the same answer.
        let mut kept = self.kept.lock().await;
        let now_ms = core.clock.monotonic_ms();
        if let Some(kept) = &*kept
            && now_ms.saturating_sub(kept.at_ms) < KEPT_MS
            && quorum::others(core).iter().all(|(number, _)| kept.answers.asked.contains(number))
        {
            return kept.answers.clone();
        }
        look(core, &mut kept).await
    }

    /// Numbers of those that answer, asked now.
    pub(crate) async fn now(&self, core: &Core) -> BTreeSet<u64> {
        look(core, &mut *self.kept.lock().await).await.there
    }
}

async fn look(core: &Core, kept: &mut Option<Kept>) -> Answers {
    let others = quorum::others(core);
    let asked: BTreeSet<u64> = others.iter().map(|(number, _)| *number).collect();
    let there = ask(core, &others).await;
    let at_ms = core.clock.monotonic_ms();
    let mut newcomers = kept.take().map(|kept| kept.newcomers).unwrap_or_default();
    let joining = newcomers.note(&asked, &there, at_ms);
    let answers = Answers { there, joining, asked };
    *kept = Some(Kept { at_ms, answers: answers.clone(), newcomers });
    answers
}

async fn ask(core: &Core, others: &[(u64, String)]) -> BTreeSet<u64> {
    let mut asked: FuturesUnordered<_> = others
        .iter()
        .map(|(number, address)| async move {
            tokio::select! {
                answers = answers(core, *number, address) => answers.then_some(*number),
                () = core.clock.sleep(ANSWER_MS) => None,
            }
        })
        .collect();
    let mut numbers = BTreeSet::from([quorum::own_number(core)]);
    while let Some(number) = asked.next().await {
        numbers.extend(number);
    }
    numbers
}

async fn answers(core: &Core, number: u64, address: &str) -> bool {
    let Ok(channel) = peers::channel(core, number, address).await else { return false };
    let mut request = Request::new(v1::GetInfoRequest {});
    request.metadata_mut().insert(RELAYED_KEY, MetadataValue::from_static("1"));
    match ControlClient::new(channel).get_info(request).await {
        Ok(_) => true,
        // Refusals come from somebody who is there: a new manager knows nobody yet, us included.
        // Only what never came from the other side has a source.
        Err(status) => std::error::Error::source(&status).is_none(),
    }
}

/// Whether the voters can do without one of them: those that are left and answer must be a
/// majority of those that are left.
///
/// # Errors
/// With the numbers.
pub(crate) fn may_leave(
    voters: &BTreeSet<u64>,
    reachable: &BTreeSet<u64>,
    number: u64,
    name: &str,
) -> Result<(), Refusal> {
    if !voters.contains(&number) {
        return Ok(());
    }
    let left: BTreeSet<u64> = voters.iter().copied().filter(|voter| *voter != number).collect();
    if left.is_empty() {
        return Err(Refusal::not_now(format!("node {name} is the only manager"))
            .hint("promote another one first, or let one join: warren cluster token manager"));
    }
    let (left, there) = (left.len(), left.intersection(reachable).count());
    let needed = left / 2 + 1;
    if there >= needed {
        return Ok(());
    }
    let text = format!(
        "without node {name} there would be {left} managers, of which {there} can be reached and \
         {needed} are needed: the cluster could decide nothing any more"
    );
    Err(Refusal::not_now(text)
        .hint("bring other managers back first; after a loss for good: warren cluster recover"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[track_caller]
    fn check(voters: &[u64], reachable: &[u64], number: u64, expected: &str) {
        let set = |numbers: &[u64]| numbers.iter().copied().collect::<BTreeSet<u64>>();
        let got = may_leave(&set(voters), &set(reachable), number, "x");
        let got = got.map_or_else(|refusal| refusal.to_string(), |()| "ok".to_owned());
        assert!(got.contains(expected), "{voters:?} {reachable:?} {number}: {got}");
    }

    /// Looks: a moment, who is asked and who answers.
    #[test]
    fn newcomers_have_a_while() {
        let set = |numbers: &[u64]| numbers.iter().copied().collect::<BTreeSet<u64>>();
        let mut newcomers = Newcomers::default();
        type Row = (u64, &'static [u64], &'static [u64], &'static [u64]);
        let table: [Row; 7] = [
            (0, &[2], &[2], &[]),
            (100, &[2, 3], &[2], &[3]),
            (3000, &[2, 3], &[2], &[3]),
            (3100, &[2, 3], &[2], &[]),
            // One that answered once is not new any more.
            (3200, &[2, 3], &[3], &[]),
            // Gone, and there under the next number.
            (4000, &[2], &[2], &[]),
            (4100, &[2, 4], &[2], &[4]),
        ];
        for (at_ms, asked, there, joining) in table {
            assert_eq!(newcomers.note(&set(asked), &set(there), at_ms), set(joining), "{at_ms}");
        }
    }

    #[test]
    fn who_may_leave() {
        check(&[1, 2, 3], &[1, 2, 3], 3, "ok");
        check(&[1, 2, 3], &[1, 2], 3, "ok");
        check(&[1, 2, 3], &[1, 2], 2, "2 managers, of which 1 can be reached and 2 are needed");
        check(&[1, 2, 3, 4, 5], &[1, 2, 3], 1, "of which 2 can be reached and 3 are needed");
        check(&[1, 2, 3, 4, 5], &[1, 2, 3], 4, "ok");
        check(&[1], &[1], 1, "only manager");
        check(&[1], &[1], 2, "ok");
        check(&[1, 2], &[1], 2, "ok");
    }
}
