//! What is decided once and for all: runs of jobs, commands of a deploy, the end of an update.
//!
//! Pure: views come in, the first thing that does not hold comes out. Replicas lag behind each
//! other, so only what is newer than anything seen before is looked at.

use std::collections::{BTreeMap, BTreeSet};

use warren_model::event::Action;
use warren_model::job::has_done;
use warren_model::service::{Hook, Service, UpdatePhase};
use warren_model::task::{Desired, Task};
use warren_model::{Event, ServiceId, TaskId, Time};
use warren_state::State;

use super::Counts;
use super::book::Held;
use crate::{hooks, jobs};

/// Parameter of a run that says which wish it is of.
pub(crate) const WISH: &str = "day";

#[derive(Default)]
pub(crate) struct Laws {
    newest: u64,
    /// Number of the run that a wish became.
    runs: BTreeMap<(ServiceId, String), u32>,
    /// Of which run of its service a task is.
    of_run: BTreeMap<TaskId, (ServiceId, u32)>,
    /// Number of the run that a time of a schedule became.
    scheduled: BTreeMap<(ServiceId, Time), u32>,
    /// How far the update to a revision is.
    updates: BTreeMap<(ServiceId, u32), Stage>,
    deeds: hooks::Deeds,
    /// What is wanted of a task, and whether it has ended.
    tasks: BTreeMap<TaskId, (Desired, bool)>,
    met: Met,
}

/// What is counted once, however many views show it.
#[derive(Default)]
struct Met {
    updates: BTreeSet<(ServiceId, u32)>,
    hooks: BTreeSet<TaskId>,
    devices: BTreeSet<TaskId>,
    preempted: BTreeSet<String>,
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
        self.deeds.look(view)?;
        for task in view.tasks() {
            self.look_at_task(task)?;
            if task.slot > 0 && task.run > 0 {
                self.of_run.insert(task.id, (task.service, task.run));
            }
            if task.hook().is_some() && has_done(task) {
                self.met.hooks.insert(task.id);
            }
            if !task.devices.is_empty() {
                self.met.devices.insert(task.id);
            }
        }
        for service in view.services() {
            self.look_at_runs(service)?;
            self.look_at_update(view, service)?;
        }
        Ok(())
    }

    /// Nobody is wanted again, and nothing that ended goes on.
    fn look_at_task(&mut self, task: &Task) -> Held {
        let now = (task.desired, task.status.state.is_terminal());
        let known = self.tasks.insert(task.id, now).unwrap_or(now);
        if known.0 <= now.0 && known.1 <= now.1 {
            return Ok(());
        }
        Err(format!("{} was {known:?} (wanted, has ended), and is {now:?}", task.id))
    }

    fn look_at_runs(&mut self, service: &Service) -> Held {
        let runs = service.job.iter().flat_map(|job| &job.runs);
        for run in runs {
            if let Some(wish) = run.params.get(WISH) {
                self.is_run(service.id, wish, run.number)?;
            }
            if let Some(time) = run.scheduled {
                self.is_of_schedule(service, time, run.number)?;
            }
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

    /// A time of a schedule begins one run, also when clocks are set back to before it.
    fn is_of_schedule(&mut self, service: &Service, time: Time, number: u32) -> Held {
        let known = *self.scheduled.entry((service.id, time)).or_insert(number);
        if known == number {
            return Ok(());
        }
        let name = &service.spec.name;
        Err(format!("{} of the schedule of {name} is run {known} and run {number}", time.0))
    }

    /// What a replica says has happened.
    pub(crate) fn hear(&mut self, events: &[Event]) {
        let preempted = events.iter().filter(|event| event.action == Action::Preempt);
        self.met.preempted.extend(preempted.map(|event| event.id.clone()));
    }

    pub(crate) fn count(&self, counts: &mut Counts) {
        let count = |len: usize| u32::try_from(len).unwrap_or(u32::MAX);
        counts.scheduled = count(self.scheduled.len());
        counts.updates = count(self.met.updates.len());
        counts.hooks = count(self.met.hooks.len());
        counts.devices = count(self.met.devices.len());
        counts.preempted = count(self.met.preempted.len());
    }

    /// A container is given what its run is.
    pub(crate) fn is_given(&mut self, task: TaskId, params: &BTreeMap<String, String>) -> Held {
        let Some((service, number)) = self.of_run.get(&task).copied() else { return Ok(()) };
        let given = params.get(WISH);
        let wishes = self.runs.iter().filter(|((of, _), run)| *of == service && **run == number);
        let wished = wishes.map(|((_, wish), _)| wish).next();
        if wished.is_none() || wished == given {
            return Ok(());
        }
        Err(format!("{task} of run {number} is given {given:?}, wished was {wished:?}"))
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
        if stage != Stage::Done {
            self.met.updates.insert((id, service.number));
        }
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
