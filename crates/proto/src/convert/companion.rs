//! Init containers and sidecars: what they are made of, and what became of them.

use std::sync::Arc;

use warren_model::Time;
use warren_model::service::{Companion, CompanionKind, CompanionName, SharedFolder, TaskTemplate};
use warren_model::task::{CompanionState, CompanionStatus};

use super::{Error, choice, each, enums, part};
use crate::v1;

enums! {
    CompanionState, v1::CompanionState { Waiting Running Exited }
}

impl From<&Companion> for v1::Companion {
    fn from(companion: &Companion) -> Self {
        Self {
            name: companion.name.to_string(),
            sidecar: companion.kind == CompanionKind::Sidecar,
            task: Some((&companion.task).into()),
        }
    }
}

impl TryFrom<v1::Companion> for Companion {
    type Error = Error;

    fn try_from(wire: v1::Companion) -> Result<Self, Error> {
        Ok(Self { name: name(&wire.name)?, kind: kind(wire.sidecar), task: task(wire.task)? })
    }
}

impl From<&SharedFolder> for v1::SharedFolder {
    fn from(folder: &SharedFolder) -> Self {
        let SharedFolder { name, target, read_only } = folder;
        Self { name: name.to_string(), target: target.clone(), read_only: *read_only }
    }
}

impl TryFrom<v1::SharedFolder> for SharedFolder {
    type Error = Error;

    fn try_from(wire: v1::SharedFolder) -> Result<Self, Error> {
        Ok(Self { name: name(&wire.name)?, target: wire.target, read_only: wire.read_only })
    }
}

/// Containers of containers are read no deeper than they may be.
fn task(wire: Option<v1::TaskTemplate>) -> Result<TaskTemplate, Error> {
    if wire.as_ref().is_some_and(|task| !task.companions.is_empty()) {
        return Err(Error::new("task.companions", "cannot be of a companion itself"));
    }
    part("task", wire)
}

fn name(text: &str) -> Result<CompanionName, Error> {
    text.parse().map_err(|problem| Error::new("name", format!("{text:?} {problem}")))
}

fn kind(sidecar: bool) -> CompanionKind {
    if sidecar { CompanionKind::Sidecar } else { CompanionKind::Init }
}

/// # Errors
/// When there are more than a task can have, or one makes no sense.
pub(super) fn statuses(
    wire: Vec<v1::CompanionStatus>,
) -> Result<Option<Arc<Vec<CompanionStatus>>>, Error> {
    if wire.len() > TaskTemplate::COMPANIONS_MAX {
        let most = TaskTemplate::COMPANIONS_MAX;
        return Err(Error::new("companions", format!("are more than {most}")));
    }
    let all: Vec<CompanionStatus> = each("companions", wire)?;
    Ok((!all.is_empty()).then(|| Arc::new(all)))
}

impl From<&CompanionStatus> for v1::CompanionStatus {
    fn from(status: &CompanionStatus) -> Self {
        Self {
            name: status.name.to_string(),
            sidecar: status.kind == CompanionKind::Sidecar,
            state: v1::CompanionState::from(status.state).into(),
            since: status.since.0,
            pid: status.pid,
            restarts: status.restarts,
            exit: status.exit.as_ref().map(Into::into),
        }
    }
}

impl TryFrom<v1::CompanionStatus> for CompanionStatus {
    type Error = Error;

    fn try_from(wire: v1::CompanionStatus) -> Result<Self, Error> {
        Ok(Self {
            name: name(&wire.name)?,
            kind: kind(wire.sidecar),
            state: choice::<v1::CompanionState, _>("state", wire.state)?,
            since: Time(wire.since),
            pid: wire.pid,
            restarts: wire.restarts,
            exit: wire.exit.map(Into::into),
        })
    }
}

#[cfg(test)]
mod tests {
    use warren_model::task::{TaskExit, TaskState, TaskStatus};

    use super::*;

    fn template() -> TaskTemplate {
        let part = |image: &str| TaskTemplate { image: image.into(), ..TaskTemplate::default() };
        let companion = |name: &str, kind| Companion {
            name: name.parse().unwrap(),
            kind,
            task: TaskTemplate { command: vec![name.into()], ..part("busybox") },
        };
        let companions = vec![
            companion("migrate", CompanionKind::Init),
            companion("proxy", CompanionKind::Sidecar),
        ];
        let shared = vec![SharedFolder {
            name: "scratch".parse().unwrap(),
            target: "/work".into(),
            read_only: true,
        }];
        TaskTemplate { companions, shared, ..part("nginx") }
    }

    #[test]
    fn templates_and_statuses_survive() {
        let wire = v1::TaskTemplate::from(&template());
        assert_eq!(TaskTemplate::try_from(wire), Ok(template()));
        let status = |name: &str, kind, state| CompanionStatus {
            name: name.parse().unwrap(),
            kind,
            state,
            since: Time(7),
            pid: 3,
            restarts: 2,
            exit: Some(TaskExit { code: 1, oom_killed: true }),
        };
        let companions = vec![
            status("migrate", CompanionKind::Init, CompanionState::Exited),
            status("proxy", CompanionKind::Sidecar, CompanionState::Running),
        ];
        let status = TaskStatus {
            companions: Some(Arc::new(companions)),
            ..TaskStatus::new(TaskState::Running, Time(9))
        };
        assert_eq!(TaskStatus::try_from(v1::TaskStatus::from(&status)), Ok(status));
    }

    #[test]
    fn what_makes_no_sense_is_refused() {
        let mut wire = v1::TaskTemplate::from(&template());
        wire.companions[0].task = Some(wire.clone());
        let error = TaskTemplate::try_from(wire).unwrap_err().to_string();
        assert_eq!(error, "companions[0].task.companions: cannot be of a companion itself");
        let mut wire = v1::TaskTemplate::from(&template());
        wire.companions[1].name = "main".into();
        let error = TaskTemplate::try_from(wire).unwrap_err().to_string();
        let said = "companions[1].name: \"main\" is the name of the service's own container";
        assert!(error.starts_with(said), "{error}");
        let many = vec![v1::CompanionStatus::default(); 17];
        assert_eq!(statuses(many).unwrap_err().to_string(), "companions: are more than 16");
    }
}
