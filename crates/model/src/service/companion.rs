//! The other containers of a task: those that run before its own, and those beside it.
//!
//! *Init containers* run one after another, each to its end, before anything else of the task.
//! *Sidecars* start after them, before the task's own container, run beside it, and are stopped
//! after it in reverse order. All of them share the network namespace, the addresses and the host
//! name of the task; each has its own image, processes, limits and log.
//!
//! Not here: who starts what when (`agent::crew`).

use std::borrow::Cow;
use std::collections::BTreeSet;
use std::fmt;
use std::str::FromStr;

use super::{LogOptions, RestartPolicy, SpecError, TaskTemplate, wrong};
use crate::health::Healthcheck;
use crate::resources::{Resource, Resources};

/// Name of a container within its task: `migrate`.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct CompanionName(Box<str>);

impl CompanionName {
    /// A container's id has room for so many characters after the task and the attempt.
    pub const LEN_MAX: usize = 32;
    /// How the task's own container is called.
    pub const MAIN: &str = "main";

    pub fn as_str(&self) -> &str {
        &self.0
    }
}

/// Why a text is no name of a container.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum CompanionNameError {
    #[error("is the name of the service's own container; take another")]
    Main,
    #[error(
        "is not a name of a container: a-z, 0-9 and '-', a letter first, a letter or digit last, at most {max} characters",
        max = CompanionName::LEN_MAX
    )]
    Malformed,
}

impl FromStr for CompanionName {
    type Err = CompanionNameError;

    fn from_str(text: &str) -> Result<Self, CompanionNameError> {
        let plain = |c: char| c.is_ascii_lowercase() || c.is_ascii_digit() || c == '-';
        let good = text.len() <= Self::LEN_MAX
            && text.starts_with(|c: char| c.is_ascii_lowercase())
            && !text.ends_with('-')
            && text.chars().all(plain);
        match text {
            Self::MAIN => Err(CompanionNameError::Main),
            _ if good => Ok(Self(text.into())),
            _ => Err(CompanionNameError::Malformed),
        }
    }
}

impl fmt::Display for CompanionName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(&self.0)
    }
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum CompanionKind {
    /// Before everything else, to its end.
    Init,
    /// Beside the task's own container, for as long as that runs.
    Sidecar,
}

impl CompanionKind {
    /// As the flags call it.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Init => "init_container",
            Self::Sidecar => "sidecar",
        }
    }

    /// For people: `init container`.
    pub fn words(self) -> &'static str {
        match self {
            Self::Init => "init container",
            Self::Sidecar => "sidecar",
        }
    }
}

/// One more container of a task.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Companion {
    pub name: CompanionName,
    pub kind: CompanionKind,
    /// What it is made of. Host name, restarts, logs and labels are those of the task.
    pub task: TaskTemplate,
}

impl TaskTemplate {
    /// Init containers and sidecars of one task.
    pub const COMPANIONS_MAX: usize = 16;

    /// What a task reserves on its node: for itself and its sidecars together, or for the largest
    /// init container where that is more, as these run before all others (as Kubernetes counts,
    /// with sidecars that start after init containers).
    pub fn reserved(&self) -> Cow<'_, Resources> {
        if self.companions.is_empty() {
            return Cow::Borrowed(&self.reserve);
        }
        let mut sum = self.reserve.clone();
        for sidecar in self.of_kind(CompanionKind::Sidecar) {
            sum.add(&sidecar.task.reserve);
        }
        for init in self.of_kind(CompanionKind::Init) {
            let reserve = &init.task.reserve;
            let mut more = reserve.clone();
            more.subtract(&sum);
            // What it needs beyond the others, kind by kind: the larger of the two.
            sum.add(&more);
        }
        Cow::Owned(sum)
    }

    /// [`Self::reserved`], kind by kind.
    pub fn needs(&self) -> Vec<(Resource<'_>, u64)> {
        let sum = self.reserved();
        let companions = self.companions.iter().map(|companion| &companion.task.reserve);
        let all = std::iter::once(&self.reserve).chain(companions);
        let kinds: BTreeSet<_> = all.flat_map(|reserve| reserve.iter().map(|(of, _)| of)).collect();
        kinds.into_iter().map(|of| (of, sum.get(of))).collect()
    }

    /// In the order in which they are started.
    pub fn of_kind(&self, kind: CompanionKind) -> impl DoubleEndedIterator<Item = &Companion> {
        self.companions.iter().filter(move |companion| companion.kind == kind)
    }

    pub fn companion(&self, name: &str) -> Option<&Companion> {
        self.companions.iter().find(|companion| companion.name.as_str() == name)
    }

    pub(super) fn check_companions(&self) -> Result<(), SpecError> {
        let count = self.companions.len();
        if count > Self::COMPANIONS_MAX {
            let problem = format!(
                "is more than {} init containers and sidecars together",
                Self::COMPANIONS_MAX
            );
            return Err(wrong("companions", count, problem));
        }
        let mut names = BTreeSet::new();
        for companion in &self.companions {
            let Companion { name, kind, task } = companion;
            if !names.insert(name) {
                let problem = "is the name of two containers of the service";
                return Err(wrong(kind.as_str(), name, problem));
            }
            let within = |error: SpecError| SpecError {
                field: format!("{} {name}: {}", kind.as_str(), error.field),
                ..error
            };
            task.validate().map_err(within)?;
            check_own(companion).map_err(within)?;
        }
        self.check_sum()
    }

    /// Kinds of resources of all together are bounded as those of one are.
    fn check_sum(&self) -> Result<(), SpecError> {
        let reserved = self.reserved();
        let kinds = reserved.iter().filter(|(kind, _)| matches!(kind, Resource::Generic(_)));
        let count = kinds.count();
        if count > Resources::GENERIC_MAX {
            let problem = format!("kinds are more than {}", Resources::GENERIC_MAX);
            return Err(wrong("reserve", count, problem));
        }
        Ok(())
    }

    pub(super) fn companions_text_len(&self) -> usize {
        let each = self.companions.iter().map(|c| c.name.as_str().len() + c.task.text_len());
        each.sum()
    }
}

/// What a companion cannot have of its own.
fn check_own(companion: &Companion) -> Result<(), SpecError> {
    let Companion { name: _, kind, task } = companion;
    let shared = "is that of the task, and cannot be another for one of its containers";
    if let Some(hostname) = &task.hostname {
        return Err(wrong("hostname", hostname, shared));
    }
    if !task.container_labels.is_empty() {
        return Err(wrong("container_labels", task.container_labels.len(), shared));
    }
    if task.restart != RestartPolicy::default() {
        return Err(wrong("restart", "", shared));
    }
    if task.log != LogOptions::default() {
        return Err(wrong("log", "", shared));
    }
    if task.force != 0 {
        return Err(wrong("force", task.force, shared));
    }
    if task.privileges.host_network {
        return Err(wrong("network", "host", shared));
    }
    if let Some(key) = task.privileges.sysctls.keys().find(|key| key.starts_with("net.")) {
        return Err(wrong("sysctl", key, shared));
    }
    if !task.companions.is_empty() {
        return Err(wrong(
            "companions",
            task.companions.len(),
            "cannot have containers of its own",
        ));
    }
    match (kind, &task.health) {
        (_, Healthcheck::Implicit) | (CompanionKind::Sidecar, Healthcheck::Explicit(_)) => Ok(()),
        (CompanionKind::Init, _) => {
            Err(wrong("health", "", "cannot be asked of what runs to its end; leave it out"))
        }
        (CompanionKind::Sidecar, Healthcheck::Off | Healthcheck::Image(_)) => {
            Err(wrong("health", "", "is a check, or nothing"))
        }
    }
}

#[cfg(test)]
mod tests;
