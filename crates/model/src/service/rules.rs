//! What a template must obey, as far as it can be told without a node or an image.

use std::collections::BTreeSet;

use super::{
    Limits, LogOptions, SpecError, TaskTemplate, check_labels, is_capability, is_user,
    parse_signal, wrong,
};
use super::{expand, is_hostname};
use crate::device::DeviceError;
use crate::resources::{Resource, ResourceError};

impl TaskTemplate {
    /// Docker's lower bound, and the runtime's: with less a container dies before its program runs.
    pub const MEMORY_MIN: u64 = 6 << 20;

    pub(super) fn validate(&self) -> Result<(), SpecError> {
        if self.image.trim().is_empty() {
            return Err(wrong("image", &self.image, "is empty, name one such as nginx:1.27"));
        }
        let mut keys = BTreeSet::new();
        for pair in &self.env {
            let key = pair.split('=').next().unwrap_or_default();
            let bad = key.is_empty() || !pair.contains('=') || key.contains(char::is_whitespace);
            if bad || pair.contains('\0') {
                return Err(wrong("env", pair, "is not of the form KEY=value"));
            }
            if !keys.insert(key) {
                return Err(wrong("env", pair, format!("sets {key} a second time")));
            }
            check_template("env", pair)?;
        }
        for text in self.command.iter().chain(self.entrypoint.iter().flatten()) {
            if text.contains('\0') {
                return Err(wrong("command", text.escape_debug(), "contains a zero byte"));
            }
        }
        if self.entrypoint.as_ref().is_some_and(|e| e.first().is_some_and(String::is_empty)) {
            return Err(wrong("entrypoint", "", "has an empty program name"));
        }
        self.check_places()?;
        check_labels("container_labels", &self.container_labels)?;
        for value in self.container_labels.values() {
            check_template("container_labels", value)?;
        }
        self.health.validate()?;
        self.check_numbers()?;
        self.privileges.validate()?;
        self.check_shared()?;
        self.check_mounts()?;
        self.check_companions()
    }

    fn check_places(&self) -> Result<(), SpecError> {
        if let Some(dir) = &self.workdir
            && (!dir.starts_with('/') || dir.contains('\0') || dir.len() > 4096)
        {
            return Err(wrong("workdir", dir, "is not an absolute path"));
        }
        if let Some(user) = &self.user
            && !is_user(user)
        {
            let problem = "is not of the form user, uid, user:group or uid:gid";
            return Err(wrong("user", user, problem));
        }
        if let Some(host) = &self.hostname {
            check_template("hostname", host)?;
            // What a template comes to is known on the node.
            if !expand::is_template(host) && !is_hostname(host) {
                return Err(wrong(
                    "hostname",
                    host,
                    "is not a host name (letters, digits and '-', at most 64)",
                ));
            }
        }
        if let Some(signal) = &self.stop_signal
            && parse_signal(signal).is_none()
        {
            return Err(wrong(
                "stop_signal",
                signal,
                "is not a signal; write e.g. SIGTERM, INT or 15",
            ));
        }
        for cap in self.cap_add.iter().chain(&self.cap_drop) {
            if !is_capability(cap) {
                return Err(wrong(
                    "capabilities",
                    cap,
                    "is not a capability; write e.g. NET_ADMIN or ALL",
                ));
            }
        }
        Ok(())
    }

    /// What is reserved but may not be used is a slip of the pen.
    fn check_reservations(&self) -> Result<(), SpecError> {
        if let Err(error) = self.reserve.validate() {
            let value = match &error {
                ResourceError::TooMany { count } => count.to_string(),
                ResourceError::Name { name }
                | ResourceError::Known { name }
                | ResourceError::Device { name } => name.clone(),
                ResourceError::Kind(DeviceError::Kind(name) | DeviceError::Name(name)) => {
                    name.clone()
                }
            };
            return Err(SpecError {
                field: "reserve".to_owned(),
                value,
                problem: format!("cannot be reserved: {error}"),
            });
        }
        let Limits { memory_bytes, cpu_millis, pids } = self.limits;
        let limits = [
            (Resource::Cpu, cpu_millis.map(u64::from)),
            (Resource::Memory, memory_bytes),
            (Resource::Pids, pids.map(u64::from)),
        ];
        for (resource, limit) in limits {
            let reserved = self.reserve.get(resource);
            if let Some(limit) = limit.filter(|limit| *limit < reserved) {
                let (limit, reserved) = (resource.amount(limit), resource.amount(reserved));
                let problem = format!(
                    "is less than the {reserved} that are reserved; raise it or lower --reserve-{resource}"
                );
                return Err(wrong(&format!("limit_{resource}"), limit, problem));
            }
        }
        Ok(())
    }

    fn check_numbers(&self) -> Result<(), SpecError> {
        if let Some(memory) = self.limits.memory_bytes
            && memory < Self::MEMORY_MIN
        {
            return Err(wrong(
                "limit_memory",
                memory,
                format!("is less than {} bytes (6 MiB)", Self::MEMORY_MIN),
            ));
        }
        self.check_reservations()?;
        self.tuning.validate(self.limits.memory_bytes)?;
        if self.limits.pids == Some(0) {
            return Err(wrong("limit_pids", 0, "leaves no process, allowed is 1 or more"));
        }
        if self.restart.max_attempts == Some(0) {
            return Err(wrong("restart_max_attempts", 0, "is no attempt; use condition none"));
        }
        let LogOptions { max_bytes, max_files } = self.log;
        if max_files == 0 {
            return Err(wrong("log", "max-file=0", "keeps nothing, allowed is 1 or more"));
        }
        if max_bytes < LogOptions::BYTES_MIN {
            let problem = format!("is less than {} bytes", LogOptions::BYTES_MIN);
            return Err(wrong("log", format!("max-size={max_bytes}"), problem));
        }
        Ok(())
    }
}

/// Whether what is to be filled in can be: Docker Swarm's templates.
pub(super) fn check_template(field: &str, text: &str) -> Result<(), SpecError> {
    expand::check(text).map_err(|error| {
        wrong(field, text, format!("is not a template that can be filled in, {error}"))
    })
}
