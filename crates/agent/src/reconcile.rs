//! From what is assigned, held and found to what must change.
//!
//! Pure and total: called after every assignment, it looks at everything; a
//! missed call heals with the next one.
//!
//! Before the first complete assignment there is nothing to compare with, so
//! nothing that is found is touched.

use std::collections::BTreeMap;

use warren_model::{ServiceId, TaskId};

use crate::assignments::Set;
use crate::task::Wanted;

/// A machine that runs already.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Held {
    pub(crate) service: ServiceId,
    pub(crate) wanted: Wanted,
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Action {
    /// A task without a container on this node.
    Make(TaskId),
    /// A task whose containers were found, by attempt; the newest counts.
    Adopt(TaskId),
    /// Something else is wanted of it now.
    Want(TaskId, Wanted),
    /// Found, and nobody's: remove it.
    Discard(TaskId),
}

/// What follows from `set`. `found` are tasks with containers that no machine owns yet.
pub(crate) fn reconcile<T>(
    set: &Set,
    held: &BTreeMap<TaskId, Held>,
    found: &BTreeMap<TaskId, T>,
) -> Vec<Action> {
    if set.revision == 0 {
        return vec![];
    }
    let mut actions = Vec::new();
    for task in set.all() {
        match held.get(&task.id) {
            Some(held) if held.wanted < task.wanted() => {
                actions.push(Action::Want(task.id, task.wanted()));
            }
            Some(_) => {}
            None if found.contains_key(&task.id) => actions.push(Action::Adopt(task.id)),
            None => actions.push(Action::Make(task.id)),
        }
    }
    for (id, held) in held {
        if !set.holds(*id) && held.wanted < Wanted::Forget {
            actions.push(Action::Want(*id, Wanted::Forget));
        }
    }
    for id in found.keys() {
        if !set.holds(*id) && !held.contains_key(id) {
            actions.push(Action::Discard(*id));
        }
    }
    actions
}

#[cfg(test)]
mod tests {
    use warren_model::quantity::Time;
    use warren_model::task::{Desired, TaskState, TaskStatus};

    use super::*;
    use crate::assignments::AssignedTask;

    fn task_id(letter: char) -> TaskId {
        TaskId::from_bytes([u8::try_from(letter).unwrap(); 10])
    }

    /// Tasks are letters with a mark: assigned `+` running, `-` shutdown, `x` remove; held the same
    /// and `!` forget.
    #[track_caller]
    fn check(revision: u64, assigned: &str, held: &str, found: &str, expected: &str) {
        let mut set = Set { revision, ..Set::default() };
        let service = ServiceId::MIN;
        for word in assigned.split_whitespace() {
            let id = task_id(word.chars().next().unwrap());
            let desired = match &word[1..] {
                "+" => Desired::Running,
                "-" => Desired::Shutdown,
                _ => Desired::Remove,
            };
            let known = TaskStatus::new(TaskState::Assigned, Time(0));
            let task = AssignedTask {
                id,
                service,
                slot: 1,
                template: 1,
                desired,
                address: None,
                devices: Default::default(),
                known,
                given: Default::default(),
            };
            set.tasks.insert(id, task);
        }
        let held = held
            .split_whitespace()
            .map(|word| {
                let wanted = match &word[1..] {
                    "+" => Wanted::Running,
                    "-" => Wanted::Shutdown,
                    "x" => Wanted::Remove,
                    _ => Wanted::Forget,
                };
                (task_id(word.chars().next().unwrap()), Held { service, wanted })
            })
            .collect();
        let found = found.chars().filter(|c| *c != ' ').map(|c| (task_id(c), ())).collect();
        let name = |id: &TaskId| char::from(id.as_bytes()[0]);
        let got: Vec<String> = reconcile(&set, &held, &found)
            .iter()
            .map(|action| match action {
                Action::Make(id) => format!("make:{}", name(id)),
                Action::Adopt(id) => format!("adopt:{}", name(id)),
                Action::Want(id, Wanted::Running) => format!("run:{}", name(id)),
                Action::Want(id, Wanted::Shutdown) => format!("stop:{}", name(id)),
                Action::Want(id, Wanted::Remove) => format!("remove:{}", name(id)),
                Action::Want(id, Wanted::Forget) => format!("forget:{}", name(id)),
                Action::Discard(id) => format!("discard:{}", name(id)),
            })
            .collect();
        assert_eq!(got.join(" "), expected);
    }

    #[test]
    fn nothing_is_touched_before_the_first_set() {
        check(0, "", "", "ab", "");
    }

    #[test]
    fn differences() {
        check(1, "a+ b-", "", "", "make:a make:b");
        check(1, "a+ b+", "a+", "b", "adopt:b");
        check(1, "a-", "a+", "", "stop:a");
        check(1, "a+", "a-", "", "");
        check(1, "ax", "a-", "", "remove:a");
        check(1, "", "a+ b!", "", "forget:a");
        check(1, "a+", "", "ab", "adopt:a discard:b");
        check(2, "", "", "", "");
    }
}
