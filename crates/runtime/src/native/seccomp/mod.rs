//! Seccomp profiles as BPF programs: the default one, one per set of capabilities, and those that
//! containers bring along ([`custom`]).
//!
//! `profile.txt` is the data, [`assemble`] turns actions into instructions. A program is made once
//! and shared by all containers with the same capabilities: compiling at each start costs other
//! runtimes 9 ms.
//!
//! Not here: loading it (the shim does, right before the container's program).

mod assemble;
mod custom;
#[cfg(test)]
mod tests;

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, PoisonError};

use assemble::{Action, Test, assemble};

use warren_shim::protection::{Protection, kept};

use super::capability;
use crate::Error;

const PROFILE: &str = include_str!("profile.txt");
/// CLONE_NEWNS, NEWCGROUP, NEWUTS, NEWIPC, NEWUSER, NEWPID and NEWNET.
const CLONE_NAMESPACES: u32 = 0x7e02_0000;
const AF_ALG: u32 = 38;
const AF_VSOCK: u32 = 40;
/// PER_LINUX, PER_LINUX32, UNAME26, both, and "tell me".
const PERSONALITIES: [u32; 5] = [0, 8, 0x2_0000, 0x2_0008, u32::MAX];

/// Programs made so far.
#[derive(Debug, Default)]
pub(crate) struct Programs {
    by_capabilities: Mutex<BTreeMap<u64, Arc<[u8]>>>,
    custom: Mutex<BTreeMap<(Arc<str>, u64), Arc<[u8]>>>,
}

/// A service may ask for any capabilities; only sets in use are worth keeping.
const PROGRAMS_MAX: usize = 64;

impl Programs {
    /// The default profile for these capabilities, as raw BPF.
    pub(crate) fn default_profile(&self, capabilities: u64) -> Arc<[u8]> {
        let mut programs = self.by_capabilities.lock().unwrap_or_else(PoisonError::into_inner);
        if programs.len() >= PROGRAMS_MAX && !programs.contains_key(&capabilities) {
            programs.clear();
        }
        let program =
            programs.entry(capabilities).or_insert_with(|| assemble(&actions(capabilities)).into());
        Arc::clone(program)
    }

    /// The program of a container's own profile.
    ///
    /// # Errors
    /// [`Error::Rejected`] that says what is wrong with it.
    pub(crate) fn custom(&self, profile: &Arc<str>, capabilities: u64) -> Result<Arc<[u8]>, Error> {
        let mut programs = self.custom.lock().unwrap_or_else(PoisonError::into_inner);
        let key = (Arc::clone(profile), capabilities);
        if let Some(program) = programs.get(&key) {
            return Ok(Arc::clone(program));
        }
        let program: Arc<[u8]> = custom::compile(profile, capabilities, &kernel())?.into();
        if programs.len() >= PROGRAMS_MAX {
            programs.clear();
        }
        programs.insert(key, Arc::clone(&program));
        Ok(program)
    }
}

/// Whether a profile in the form of Docker's can be used.
///
/// # Errors
/// [`Error::Rejected`] that says what is wrong with it.
pub fn check(profile: &str) -> Result<(), Error> {
    [0, u64::MAX].into_iter().try_for_each(|all| custom::compile(profile, all, &kernel()).map(drop))
}

/// Its release; of one that does not tell: old.
fn kernel() -> String {
    std::fs::read_to_string("/proc/sys/kernel/osrelease").unwrap_or_default()
}

/// What to do about each known system call.
fn actions(capabilities: u64) -> BTreeMap<u32, Action> {
    let mut actions = BTreeMap::new();
    let mut section = "";
    for line in PROFILE.lines() {
        let line = line.trim();
        if line.is_empty() || line.starts_with('#') {
            continue;
        }
        if let Some(name) = line.strip_prefix('[').and_then(|line| line.strip_suffix(']')) {
            section = name;
            continue;
        }
        let Some((name, number)) = row(line) else { continue };
        let action = action(section, name, capabilities);
        // A name under several capabilities is allowed by any of them.
        let known = actions.entry(number).or_insert_with(|| action.clone());
        if action == Action::Allow {
            *known = Action::Allow;
        }
    }
    actions
}

/// Name and number on this machine.
fn row(line: &str) -> Option<(&str, u32)> {
    let mut fields = line.split_ascii_whitespace();
    let name = fields.next()?;
    let column = if cfg!(target_arch = "aarch64") { 1 } else { 0 };
    Some((name, fields.nth(column)?.parse().ok()?))
}

fn action(section: &str, name: &str, capabilities: u64) -> Action {
    match section {
        "allow" => Action::Allow,
        "socket" if !kept(Protection::SeccompSockets) => Action::Allow,
        "personality" if !kept(Protection::SeccompPersonality) => Action::Allow,
        "socket" => Action::AllowIf(vec![Test {
            arg: 0,
            mask: u32::MAX,
            values: vec![AF_ALG, AF_VSOCK],
            equal: false,
        }]),
        "personality" => Action::AllowIf(vec![Test {
            arg: 0,
            mask: u32::MAX,
            values: PERSONALITIES.to_vec(),
            equal: true,
        }]),
        _ => {
            let wanted = section.strip_prefix("with ").and_then(capability::bit);
            if wanted.is_some_and(|wanted| capabilities & wanted != 0) {
                return Action::Allow;
            }
            match name {
                "clone" if !kept(Protection::SeccompClone) => Action::Allow,
                "clone3" if !kept(Protection::SeccompClone3) => {
                    Action::Errno(libc::EPERM.cast_unsigned())
                }
                "clone" => Action::AllowIf(vec![Test {
                    arg: 0,
                    mask: CLONE_NAMESPACES,
                    values: vec![0],
                    equal: true,
                }]),
                "clone3" => Action::Errno(libc::ENOSYS.cast_unsigned()),
                _ if !kept(Protection::SeccompCalls) => Action::Allow,
                _ => Action::Errno(libc::EPERM.cast_unsigned()),
            }
        }
    }
}
