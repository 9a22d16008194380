//! A container's own seccomp profile: JSON as Docker takes it, to BPF.
//!
//! Source of the form: moby's `profiles/seccomp` and the OCI runtime specification. Rules for one
//! call are tried in the order of the file, those with arguments before those without; names that
//! this machine does not have are passed over, and calls of other kinds of processors answer
//! ENOSYS. Refused: actions that need somebody beside the container (`SCMP_ACT_TRACE`,
//! `SCMP_ACT_NOTIFY`), flags, and keys that are not known.

use std::collections::{BTreeMap, BTreeSet};

use serde::Deserialize;

use super::assemble::{Action, Comparison, Operator, Rule, assemble_with};
use super::{PROFILE, row};
use crate::Error;
use crate::native::capability;

/// The kernel's.
const INSTRUCTIONS_MAX: usize = 4096;
const ARGUMENTS: u32 = 6;

const RET_KILL_PROCESS: u32 = 0x8000_0000;
const RET_KILL_THREAD: u32 = 0;
const RET_TRAP: u32 = 0x0003_0000;
const RET_ERRNO: u32 = 0x0005_0000;
const RET_LOG: u32 = 0x7ffc_0000;
const RET_ALLOW: u32 = 0x7fff_0000;
const ERRNO_MAX: u32 = 4095;

#[derive(Debug, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
struct Profile {
    default_action: String,
    default_errno_ret: Option<u32>,
    // Both say for which processors it is; ours are in it, or its author does not care.
    #[serde(rename = "architectures")]
    _architectures: Option<serde_json::Value>,
    #[serde(rename = "archMap")]
    _arch_map: Option<serde_json::Value>,
    #[serde(default)]
    flags: Vec<String>,
    #[serde(default)]
    syscalls: Vec<Entry>,
}

#[derive(Debug, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
struct Entry {
    name: Option<String>,
    #[serde(default)]
    names: Vec<String>,
    action: String,
    errno_ret: Option<u32>,
    #[serde(default)]
    args: Option<Vec<Argument>>,
    #[serde(rename = "comment")]
    _comment: Option<String>,
    #[serde(default)]
    includes: Filter,
    #[serde(default)]
    excludes: Filter,
}

#[derive(Debug, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
struct Argument {
    index: u32,
    value: u64,
    #[serde(default)]
    value_two: u64,
    op: String,
}

#[derive(Debug, Default, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
struct Filter {
    #[serde(default)]
    caps: Vec<String>,
    #[serde(default)]
    arches: Vec<String>,
    min_kernel: Option<String>,
}

/// The program for a container with these capabilities on a kernel of this release.
///
/// # Errors
/// [`Error::Rejected`] that says what is wrong with the profile.
pub(super) fn compile(profile: &str, capabilities: u64, kernel: &str) -> Result<Vec<u8>, Error> {
    let profile: Profile =
        serde_json::from_str(profile).map_err(|error| wrong(format!("{error}")))?;
    if let Some(flag) = profile.flags.first() {
        return Err(wrong(format!("flags: \"{flag}\" is not supported")));
    }
    let default = returned(&profile.default_action, profile.default_errno_ret)?;
    let mut rules: BTreeMap<u32, Vec<Rule>> = BTreeMap::new();
    let numbers: BTreeMap<&str, u32> =
        PROFILE.lines().filter_map(|line| row(line.trim())).collect();
    for entry in &profile.syscalls {
        let answer = returned(&entry.action, entry.errno_ret)?;
        let of_entry = rules_of(entry, answer)?;
        if !applies(entry, capabilities, kernel)? {
            continue;
        }
        for name in entry.names.iter().chain(&entry.name) {
            let Some(number) = numbers.get(name.as_str()) else { continue };
            rules.entry(*number).or_default().extend(of_entry.iter().cloned());
        }
    }
    let actions = rules.into_iter().map(|(number, mut rules)| {
        // Stable: otherwise as in the file.
        rules.sort_by_key(|rule| rule.all.is_empty());
        (number, Action::Rules(rules, default))
    });
    // What is in no profile yet is not there, rather than forbidden: programs then do without.
    let unknown = match default & 0xffff_0000 {
        RET_ERRNO => Action::Errno(libc::ENOSYS.cast_unsigned()),
        _ => Action::Rules(Vec::new(), default),
    };
    let known: BTreeMap<u32, Action> = actions.collect();
    let rest = numbers.values().filter(|number| !known.contains_key(number));
    let rest = rest.map(|number| (*number, Action::Rules(Vec::new(), default)));
    let all: BTreeMap<u32, Action> = rest.chain(known.clone()).collect();
    let program = assemble_with(&all, &unknown);
    match program.len() / 8 {
        0..=INSTRUCTIONS_MAX => Ok(program),
        many => Err(wrong(format!("{many} instructions, the kernel takes {INSTRUCTIONS_MAX}"))),
    }
}

fn rules_of(entry: &Entry, answer: u32) -> Result<Vec<Rule>, Error> {
    let mut all = Vec::new();
    for argument in entry.args.iter().flatten() {
        let Argument { index, value, value_two, op } = argument;
        if *index >= ARGUMENTS {
            return Err(wrong(format!("args: index {index} is not below {ARGUMENTS}")));
        }
        let operator = match op.as_str() {
            "SCMP_CMP_NE" => Operator::NotEqual,
            "SCMP_CMP_LT" => Operator::Less,
            "SCMP_CMP_LE" => Operator::AtMost,
            "SCMP_CMP_EQ" => Operator::Equal,
            "SCMP_CMP_GE" => Operator::AtLeast,
            "SCMP_CMP_GT" => Operator::Greater,
            "SCMP_CMP_MASKED_EQ" => Operator::Masked,
            _ => return Err(wrong(format!("op: \"{op}\" is not known, such as SCMP_CMP_EQ"))),
        };
        // With a mask, the first number is the mask.
        let (mask, value) = match operator {
            Operator::Masked => (*value, *value_two),
            _ => (u64::MAX, *value),
        };
        all.push(Comparison { arg: *index, operator, mask, value });
    }
    let indices: BTreeSet<u32> = all.iter().map(|comparison| comparison.arg).collect();
    if indices.len() == all.len() {
        return Ok(vec![Rule { all, answer }]);
    }
    // As runc: several about one argument are alternatives.
    Ok(all.into_iter().map(|one| Rule { all: vec![one], answer }).collect())
}

fn applies(entry: &Entry, capabilities: u64, kernel: &str) -> Result<bool, Error> {
    const ARCHITECTURE: &str = if cfg!(target_arch = "aarch64") { "arm64" } else { "amd64" };
    let has = |name: &String| capability::bit(name).is_some_and(|bit| capabilities & bit != 0);
    let here = |filter: &Filter| filter.arches.iter().any(|name| name == ARCHITECTURE);
    let new_enough = |filter: &Filter| match &filter.min_kernel {
        None => Ok(None),
        Some(least) => release(least)
            .map(|least| Some(release(kernel).is_some_and(|kernel| kernel >= least)))
            .ok_or_else(|| wrong(format!("minKernel: \"{least}\" is not of the form 4.8"))),
    };
    let (includes, excludes) = (&entry.includes, &entry.excludes);
    let wanted = includes.caps.iter().all(has)
        && (includes.arches.is_empty() || here(includes))
        && new_enough(includes)? != Some(false);
    let unwanted =
        excludes.caps.iter().any(has) || here(excludes) || new_enough(excludes)? == Some(true);
    Ok(wanted && !unwanted)
}

/// `4.8` of `4.8`, `6.18.33` of `6.18.33-amd64`: its first two numbers.
fn release(text: &str) -> Option<(u32, u32)> {
    let mut parts = text.split('.');
    let digits = |part: &str| part.split(|c: char| !c.is_ascii_digit()).next()?.parse().ok();
    Some((digits(parts.next()?)?, digits(parts.next()?)?))
}

fn returned(action: &str, errno: Option<u32>) -> Result<u32, Error> {
    Ok(match action {
        "SCMP_ACT_ALLOW" => RET_ALLOW,
        "SCMP_ACT_LOG" => RET_LOG,
        "SCMP_ACT_TRAP" => RET_TRAP,
        "SCMP_ACT_KILL" | "SCMP_ACT_KILL_THREAD" => RET_KILL_THREAD,
        "SCMP_ACT_KILL_PROCESS" => RET_KILL_PROCESS,
        "SCMP_ACT_ERRNO" => {
            let errno = errno.unwrap_or(libc::EPERM.cast_unsigned());
            if errno > ERRNO_MAX {
                return Err(wrong(format!("errnoRet: {errno} is more than {ERRNO_MAX}")));
            }
            RET_ERRNO | errno
        }
        _ => {
            return Err(wrong(format!(
                "action: \"{action}\" is not one of SCMP_ACT_ALLOW, ERRNO, LOG, TRAP, KILL, \
                 KILL_THREAD and KILL_PROCESS"
            )));
        }
    })
}

fn wrong(problem: String) -> Error {
    Error::Rejected(format!("seccomp profile: {problem}"))
}

#[cfg(test)]
#[path = "custom_tests.rs"]
mod tests;
