//! What is decided once and for all: runs of jobs, commands of a deploy, the end of an update.
//!
//! Pure: views come in, the first thing that does not hold comes out. Replicas lag behind each
//! other, so only what is newer than anything seen before is looked at.

use std::collections::BTreeMap;

use warren_model::ServiceId;
use warren_model::service::{Hook, Service, UpdatePhase};
use warren_state::State;

use super::book::Held;
use crate::jobs;

/// Parameter of a run that says which wish it is of.
pub(crate) const WISH: &str = "day";

#[derive(Default)]
pub(crate) struct Laws {
    newest: u64,
    /// Number of the run that a wish became.
    runs: BTreeMap<(ServiceId, String), u32>,
    /// How far the update to a revision is.
    updates: BTreeMap<(ServiceId, u32), Stage>,
}

/// In this order, and never back.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
enum Stage {
    Before,
    Slots,
    After,
    Done,
}

impl Laws {
    /// A state that somebody has.
    pub(crate) fn look(&mut self, view: &State) -> Held {
        if view.revision() <= self.newest {
            return Ok(());
        }
        self.newest = view.revision();
        jobs::check(view)?;
        for service in view.services() {
            self.look_at_runs(service)?;
            self.look_at_update(view, service)?;
        }
        Ok(())
    }

    fn look_at_runs(&mut self, service: &Service) -> Held {
        let runs = service.job.iter().flat_map(|job| &job.runs);
        for run in runs {
            let Some(wish) = run.params.get(WISH) else { continue };
            self.is_run(service.id, wish, run.number)?;
        }
        Ok(())
    }

    /// What somebody wished for once, or was told, is one run.
    pub(crate) fn is_run(&mut self, service: ServiceId, wish: &str, number: u32) -> Held {
        let known = *self.runs.entry((service, wish.to_owned())).or_insert(number);
        if known == number {
            return Ok(());
        }
        Err(format!("wish {wish} of {service} is run {known} and run {number}"))
    }

    fn look_at_update(&mut self, view: &State, service: &Service) -> Held {
        let Some(update) = &service.update else { return Ok(()) };
        let (id, name) = (service.id, &service.spec.name);
        let due = update.hook;
        let stage = match (update.phase, due.map(|due| due.hook)) {
            (UpdatePhase::Done, _) => Stage::Done,
            (_, Some(Hook::Before)) => Stage::Before,
            (_, None) => Stage::Slots,
            (_, Some(Hook::After)) => Stage::After,
        };
        let known = self.updates.entry((id, service.number)).or_insert(stage);
        if stage < *known {
            let number = service.number;
            return Err(format!("update {number} of {name} went from {known:?} to {stage:?}"));
        }
        *known = stage;
        let Some(due) = due.filter(|due| due.hook == Hook::Before) else { return Ok(()) };
        let early = view.tasks_of(id).find(|task| {
            task.template == service.template && task.hook().is_none() && task.created > due.since
        });
        match early {
            Some(task) => Err(format!("{} of {name} was made before its hook", task.id)),
            None => Ok(()),
        }
    }
}
