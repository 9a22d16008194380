//! Commands before and after a deploy in the simulation: which services have them, and what must
//! hold of them.

use std::collections::{BTreeMap, BTreeSet};

use warren_base::rng::Rng;
use warren_model::job::has_done;
use warren_model::service::{Hook, ServiceSpec, TaskTemplate, UpdatePhase};
use warren_model::{ServiceId, TaskId};
use warren_state::State;

use crate::jobs;

/// First word of a program that ends after a while, sometimes badly.
pub(crate) const UNSURE: &str = "unsure";

/// Gives a service commands, or takes them away.
pub(crate) fn make(spec: &mut ServiceSpec, rng: &dyn Rng) {
    let command = || match rng.below(3) {
        0 => vec![],
        1 => vec![jobs::PROGRAM.to_owned()],
        _ => vec![UNSURE.to_owned()],
    };
    (spec.hooks.before, spec.hooks.after) = (command(), command());
    spec.hooks.retries = u32::try_from(rng.below(3)).unwrap_or(0);
}

/// What a container runs.
pub(crate) fn program(template: &TaskTemplate) -> Option<&str> {
    let entrypoint = template.entrypoint.iter().flatten();
    entrypoint.chain(&template.command).next().map(String::as_str)
}

/// What hooks did for each template that a service ever got.
#[derive(Debug, Default)]
pub(crate) struct Deeds {
    /// The template that a service has, and how many it had before.
    deploys: BTreeMap<ServiceId, (u32, u32)>,
    done: BTreeMap<(ServiceId, u32, Hook), BTreeSet<TaskId>>,
}

impl Deeds {
    /// Takes in the state after each change. On one node a hook does its work once for each
    /// template, and nothing else of that template is made before. One that took too long has
    /// failed, though it may end well a moment later: its update is paused, and whoever lets that
    /// go on has it run again.
    ///
    /// # Errors
    /// What does not hold.
    pub(crate) fn look(&mut self, view: &State) -> Result<(), String> {
        for service in view.services() {
            let (id, name) = (service.id, &service.spec.name);
            let deploy = self.deploys.entry(id).or_insert((service.template, 0));
            if deploy.0 != service.template {
                *deploy = (service.template, deploy.1 + 1);
            }
            let number = deploy.1;
            let due = service.update.as_ref().and_then(|update| update.hook);
            let paused =
                service.update.as_ref().is_some_and(|update| update.phase == UpdatePhase::Paused);
            for task in view.tasks_of(id).filter(|task| task.template == service.template) {
                match (task.hook(), due) {
                    (Some(hook), _) if has_done(task) && !paused => {
                        let known = self.done.iter();
                        let mut earlier =
                            known.filter(|((of, at, _), _)| *of == id && *at < number);
                        if earlier.any(|(_, tasks)| tasks.contains(&task.id)) {
                            continue;
                        }
                        let done = self.done.entry((id, number, hook)).or_default();
                        done.insert(task.id);
                        if done.len() > 1 {
                            return Err(format!("{} of {name} ran twice: {done:?}", hook.as_str()));
                        }
                    }
                    (None, Some(due)) if due.hook == Hook::Before && task.created > due.since => {
                        return Err(format!("{} of {name} was made before its hook", task.id));
                    }
                    _ => {}
                }
            }
        }
        Ok(())
    }
}
