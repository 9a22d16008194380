//! Commands before and after a deploy: one container that runs to its end, once for each template
//! that a service gets.
//!
//! The one before runs before any task of the new template is made, and stops the update if it
//! fails; the one after runs once every slot has its new task. Both are of the new template: its
//! image, variables, user, networks and reservations, with another command.

use super::{ServiceSpec, SpecError, wrong};
use crate::Time;
use crate::quantity::format_duration_ms;
use crate::task::Task;

/// What is to run before and after a template takes over.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Hooks {
    /// Program and arguments; none: nothing.
    pub before: Vec<String>,
    pub after: Vec<String>,
    /// For all tries of one of them, from when it is due.
    pub timeout_ms: u64,
    /// Tries after the first, on the same node.
    pub retries: u32,
}

impl Hooks {
    pub const TIMEOUT_MS: u64 = 600_000;
    /// A day: what takes longer is a job.
    pub const TIMEOUT_MAX_MS: u64 = 86_400_000;
    pub const RETRIES_MAX: u32 = 100;
    /// Bytes of a command, all words together.
    pub const COMMAND_MAX: usize = 64 << 10;

    /// What one of them runs; empty: nothing.
    pub fn command(&self, hook: Hook) -> &[String] {
        match hook {
            Hook::Before => &self.before,
            Hook::After => &self.after,
        }
    }

    /// Whether anything is to run.
    pub fn is_any(&self) -> bool {
        Hook::ALL.into_iter().any(|hook| !self.command(hook).is_empty())
    }

    pub(crate) fn text_len(&self) -> usize {
        self.before.iter().chain(&self.after).map(String::len).sum()
    }
}

impl Default for Hooks {
    fn default() -> Self {
        Self { before: vec![], after: vec![], timeout_ms: Self::TIMEOUT_MS, retries: 0 }
    }
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Hook {
    Before,
    After,
}

impl Hook {
    pub const ALL: [Self; 2] = [Self::Before, Self::After];

    /// As flags, listings and logs call it.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Before => "pre-deploy",
            Self::After => "post-deploy",
        }
    }

    /// In the place of a run, of a task that is none of a slot.
    pub fn number(self) -> u32 {
        match self {
            Self::Before => 1,
            Self::After => 2,
        }
    }

    /// What nodes call a template whose command is this hook's. A service gets nowhere near as many
    /// templates.
    pub fn template(self, number: u32) -> u32 {
        number | self.number() << 30
    }

    /// The reverse: the template, and which hook's command it has.
    pub fn of_template(number: u32) -> (u32, Option<Self>) {
        (number & ((1 << 30) - 1), Self::from_number(number >> 30))
    }

    pub fn from_number(number: u32) -> Option<Self> {
        Self::ALL.into_iter().find(|hook| hook.number() == number)
    }
}

/// That a hook of an update is due.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct HookStatus {
    pub hook: Hook,
    /// What was made before is of an earlier try.
    pub since: Time,
}

impl Task {
    /// Which hook of its service it is; none of a task that has a slot.
    pub fn hook(&self) -> Option<Hook> {
        if self.slot == 0 { Hook::from_number(self.run) } else { None }
    }

    /// What it is called beside its service: `2`, `pre-deploy`.
    pub fn label(&self) -> String {
        self.hook().map_or_else(|| self.slot.to_string(), |hook| hook.as_str().to_owned())
    }
}

impl ServiceSpec {
    pub(super) fn check_hooks(&self) -> Result<(), SpecError> {
        let hooks = &self.hooks;
        if self.mode.is_job() && *hooks != Hooks::default() {
            let problem = "is for services that go on: a job is a command itself";
            let given = hooks.before.first().or_else(|| hooks.after.first());
            return Err(wrong("pre_deploy_cmd", given.map_or("", String::as_str), problem));
        }
        for hook in Hook::ALL {
            let field = format!("{}_cmd", hook.as_str().replace('-', "_"));
            let words = hooks.command(hook);
            let bytes = words.iter().map(String::len).sum::<usize>();
            if bytes > Hooks::COMMAND_MAX {
                let problem = format!("is more than {} bytes", Hooks::COMMAND_MAX);
                return Err(wrong(&field, format!("{bytes} bytes"), problem));
            }
            if words.first().is_some_and(|program| program.trim().is_empty()) {
                return Err(wrong(&field, "", "has an empty program name"));
            }
            if let Some(word) = words.iter().find(|word| word.contains('\0')) {
                return Err(wrong(&field, word.escape_debug(), "contains a zero byte"));
            }
        }
        if hooks.timeout_ms == 0 || hooks.timeout_ms > Hooks::TIMEOUT_MAX_MS {
            let max = format_duration_ms(Hooks::TIMEOUT_MAX_MS);
            let given = format_duration_ms(hooks.timeout_ms);
            return Err(wrong("hook_timeout", given, format!("is not between 1ms and {max}")));
        }
        if hooks.retries > Hooks::RETRIES_MAX {
            let problem = format!("is more than {}", Hooks::RETRIES_MAX);
            return Err(wrong("hook_retries", hooks.retries, problem));
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::service::{Mode, RestartCondition, TaskTemplate};

    #[track_caller]
    fn check(hooks: Hooks, mode: Option<Mode>, expected: &str) {
        let task = TaskTemplate { image: "a".into(), ..TaskTemplate::default() };
        let mut spec = ServiceSpec::new("web".parse().unwrap(), task);
        if let Some(mode) = mode {
            (spec.mode, spec.task.restart.condition) = (mode, RestartCondition::OnFailure);
        }
        spec.hooks = hooks;
        let said = spec.validate().map_or_else(|error| error.to_string(), |()| "fine".to_owned());
        assert_eq!(said, expected);
    }

    #[test]
    fn what_is_allowed() {
        let before = |words: &[&str]| Hooks {
            before: words.iter().map(|word| (*word).to_owned()).collect(),
            ..Hooks::default()
        };
        check(Hooks::default(), None, "fine");
        check(before(&["/migrate", ""]), None, "fine");
        check(
            before(&["/migrate"]),
            Some(Mode::GlobalJob),
            "pre_deploy_cmd: \"/migrate\" is for services that go on: a job is a command itself",
        );
        check(before(&[" "]), None, "pre_deploy_cmd: \"\" has an empty program name");
        check(
            Hooks { after: vec!["x".repeat(65537)], ..Hooks::default() },
            None,
            "post_deploy_cmd: \"65537 bytes\" is more than 65536 bytes",
        );
        check(
            Hooks { timeout_ms: 86_400_001, ..Hooks::default() },
            None,
            "hook_timeout: \"1d1ms\" is not between 1ms and 1d",
        );
        check(
            Hooks { timeout_ms: 0, ..Hooks::default() },
            None,
            "hook_timeout: \"0s\" is not between 1ms and 1d",
        );
        check(
            Hooks { retries: 101, ..Hooks::default() },
            None,
            "hook_retries: \"101\" is more than 100",
        );
    }

    #[test]
    fn numbers_and_words() {
        for hook in Hook::ALL {
            assert_eq!(Hook::from_number(hook.number()), Some(hook));
            assert_eq!(Hook::of_template(hook.template(7)), (7, Some(hook)));
        }
        assert_eq!(Hook::of_template(7), (7, None));
        assert_eq!((Hook::from_number(0), Hook::from_number(3)), (None, None));
    }
}
