//! Commands before and after a deploy: flags of `service create` and `service update`.

use clap::Args;
use serde_json::{Value, json};
use warren_model::ServiceSpec;
use warren_model::quantity::format_duration_ms;
use warren_model::service::{Hook, Hooks};

use super::failure::Failure;
use super::spec::{count, duration};

/// As a check of health runs one.
const SHELL: [&str; 2] = ["/bin/sh", "-c"];

#[derive(Debug, Clone, Default, Args)]
pub(crate) struct HookFlags {
    /// Run once in a container of the new image before any replica gets it, and stop the update if
    /// that fails: a line for /bin/sh, or a JSON array of words; '' takes it away
    #[arg(long, value_name = "COMMAND", allow_hyphen_values = true)]
    pre_deploy_cmd: Option<String>,
    /// Run once when all replicas are new and good: as before
    #[arg(long, value_name = "COMMAND", allow_hyphen_values = true)]
    post_deploy_cmd: Option<String>,
    /// For all tries of one of them [default: 10m]
    #[arg(long, value_name = "DURATION", allow_hyphen_values = true, value_parser = duration)]
    hook_timeout: Option<u64>,
    /// Tries after the first, on the same node [default: 0]
    #[arg(long, value_name = "N", allow_hyphen_values = true, value_parser = count)]
    hook_retries: Option<u32>,
}

impl HookFlags {
    pub(crate) fn apply(&self, spec: &mut ServiceSpec) -> Result<(), Failure> {
        let hooks = &mut spec.hooks;
        let given = [(Hook::Before, &self.pre_deploy_cmd), (Hook::After, &self.post_deploy_cmd)];
        for (hook, text) in given {
            let Some(text) = text else { continue };
            let words = words(hook, text)?;
            match hook {
                Hook::Before => hooks.before = words,
                Hook::After => hooks.after = words,
            }
        }
        hooks.timeout_ms = self.hook_timeout.unwrap_or(hooks.timeout_ms);
        hooks.retries = self.hook_retries.unwrap_or(hooks.retries);
        if hooks.is_any() {
            return Ok(());
        }
        let tuned = [
            (self.hook_timeout.is_some(), "--hook-timeout"),
            (self.hook_retries.is_some(), "--hook-retries"),
        ];
        *hooks = Hooks::default();
        match tuned.into_iter().find(|(given, _)| *given) {
            None => Ok(()),
            Some((_, flag)) => {
                Err(Failure::input(format!("{flag} is of no use without a command"))
                    .hint("say what to run: --pre-deploy-cmd or --post-deploy-cmd"))
            }
        }
    }
}

fn words(hook: Hook, text: &str) -> Result<Vec<String>, Failure> {
    if text.is_empty() {
        return Ok(Vec::new());
    }
    match serde_json::from_str(text) {
        Ok(words) => Ok(words),
        Err(_) if text.trim_start().starts_with("[\"") => Err(Failure::input(format!(
            "--{}-cmd: {text:?} is neither a line for a shell nor a JSON array of texts, e.g. [\"/migrate\",\"--up\"]",
            hook.as_str()
        ))),
        Err(_) => Ok(SHELL.iter().copied().chain([text]).map(str::to_owned).collect()),
    }
}

/// In the words of the flags; null: none.
pub(crate) fn hooks_json(hooks: &Hooks) -> Value {
    if !hooks.is_any() {
        return Value::Null;
    }
    let command = |hook| Some(hooks.command(hook)).filter(|words| !words.is_empty());
    json!({
        "pre_deploy_cmd": command(Hook::Before),
        "post_deploy_cmd": command(Hook::After),
        "timeout": format_duration_ms(hooks.timeout_ms),
        "retries": hooks.retries,
    })
}
