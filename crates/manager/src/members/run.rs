//! Carries out what [`super::decide`] says, as long as this manager leads.
//!
//! Calm costs nothing: who can be reached is asked only when something is to
//! be changed. What cannot be done now is looked at again every half second.

use std::collections::BTreeSet;
use std::sync::Arc;

use crate::core::Core;
use crate::members::{Held, Look, Step, decide, is_even};
use crate::metrics::count;
use crate::quorum;

/// While something is wanted that cannot be done: a manager is away, a learner is behind.
const AGAIN_MS: u64 = 500;

pub(crate) async fn run(core: Arc<Core>) {
    let mut moved = core.store.watch();
    loop {
        moved.mark_unchanged();
        let topology = core.store.view().topology();
        let settled = match next(&core).await {
            Next::Settled => true,
            Next::Waiting => false,
            Next::Step(step) => {
                if carry_out(&core, step).await {
                    continue;
                }
                false
            }
        };
        let again = (!settled).then(|| core.clock.monotonic_ms() + AGAIN_MS);
        // What is wanted changes with nodes alone.
        let nodes_moved = async {
            while core.store.view().topology() == topology {
                if moved.changed().await.is_err() {
                    return false;
                }
            }
            true
        };
        tokio::select! {
            goes_on = nodes_moved => if !goes_on { return },
            () = core.sleep_until(again) => {}
        }
    }
}

enum Next {
    /// All is as wanted.
    Settled,
    /// Something is wanted, but not now.
    Waiting,
    Step(Step),
}

async fn next(core: &Core) -> Next {
    let mut look = look(core);
    // As if everybody could be reached: then there may be nothing to ask.
    look.reachable = look.wanted.keys().chain(look.held.keys()).copied().collect();
    let learning = look.held.values().any(|held| !held.voter);
    if decide(&look).is_none() {
        return if learning { Next::Waiting } else { Next::Settled };
    }
    look.reachable = core.reach.lately(core).await.there;
    decide(&look).map_or(Next::Waiting, Next::Step)
}

fn look(core: &Core) -> Look {
    let view = core.store.view();
    let group = quorum::group(core);
    let wanted = view
        .nodes()
        .filter(|node| node.manager)
        .filter_map(|node| node.number.map(|number| (number, node.description.address.clone())));
    let held = group.members.into_iter().map(|(number, member)| {
        let quorum::Member { address, voter, caught_up } = member;
        (number, Held { address, voter, caught_up })
    });
    Look {
        me: quorum::own_number(core),
        wanted: wanted.collect(),
        held: held.collect(),
        reachable: BTreeSet::new(),
    }
}

/// Says whether it was done.
async fn carry_out(core: &Core, step: Step) -> bool {
    let what = format!("{step:?}");
    let (name, outcome) = match step {
        Step::Learn { number, address } => {
            ("learn", core.store.add_learner(number, &address).await)
        }
        Step::Vote(voters) => {
            if is_even(voters.len()) {
                let voters = voters.len();
                tracing::warn!(voters, "an even number of managers survives no more losses");
            }
            ("vote", core.store.set_voters(voters).await)
        }
        Step::Forget(number) => ("forget", core.store.remove(number).await),
        Step::HandOver(number) => ("hand_over", core.store.hand_over(Some(number)).await.map(drop)),
    };
    count(&core.metrics.member_steps, "step", name);
    match outcome {
        Ok(()) => {
            tracing::info!(step = what, "managers changed");
            true
        }
        Err(error) => {
            tracing::warn!(step = what, %error, "change the managers");
            false
        }
    }
}
