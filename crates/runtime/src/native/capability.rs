//! Capabilities by name: Docker's default set, with what a container adds and drops.

use crate::Error;

/// Names by bit, without `CAP_`.
const NAMES: [&str; 41] = [
    "CHOWN",
    "DAC_OVERRIDE",
    "DAC_READ_SEARCH",
    "FOWNER",
    "FSETID",
    "KILL",
    "SETGID",
    "SETUID",
    "SETPCAP",
    "LINUX_IMMUTABLE",
    "NET_BIND_SERVICE",
    "NET_BROADCAST",
    "NET_ADMIN",
    "NET_RAW",
    "IPC_LOCK",
    "IPC_OWNER",
    "SYS_MODULE",
    "SYS_RAWIO",
    "SYS_CHROOT",
    "SYS_PTRACE",
    "SYS_PACCT",
    "SYS_ADMIN",
    "SYS_BOOT",
    "SYS_NICE",
    "SYS_RESOURCE",
    "SYS_TIME",
    "SYS_TTY_CONFIG",
    "MKNOD",
    "LEASE",
    "AUDIT_WRITE",
    "AUDIT_CONTROL",
    "SETFCAP",
    "MAC_OVERRIDE",
    "MAC_ADMIN",
    "SYSLOG",
    "WAKE_ALARM",
    "BLOCK_SUSPEND",
    "AUDIT_READ",
    "PERFMON",
    "BPF",
    "CHECKPOINT_RESTORE",
];

const DEFAULT: [&str; 14] = [
    "CHOWN",
    "DAC_OVERRIDE",
    "FSETID",
    "FOWNER",
    "MKNOD",
    "NET_RAW",
    "SETGID",
    "SETUID",
    "SETFCAP",
    "SETPCAP",
    "NET_BIND_SERVICE",
    "SYS_CHROOT",
    "KILL",
    "AUDIT_WRITE",
];

/// The bit of a name, with or without `CAP_`, in any case.
pub(crate) fn bit(name: &str) -> Option<u64> {
    let upper = name.to_ascii_uppercase();
    let short = upper.strip_prefix("CAP_").unwrap_or(&upper);
    let at = NAMES.iter().position(|known| *known == short)?;
    Some(1 << at)
}

/// Names of the bits of a set.
pub(crate) fn names(set: u64) -> Vec<&'static str> {
    NAMES.iter().enumerate().filter(|(at, _)| set >> at & 1 == 1).map(|(_, name)| *name).collect()
}

/// The set of a container. `available` is what this process could hand on at all.
///
/// Adding is stronger than dropping when both name one capability, and `ALL` stands for every
/// capability, as in Docker. A privileged container begins with all that there are.
pub(crate) fn effective(
    add: &[String],
    drop: &[String],
    privileged: bool,
    available: u64,
) -> Result<u64, Error> {
    let mut set = if privileged { available } else { 0 };
    for name in DEFAULT {
        set |= bit(name).unwrap_or(0);
    }
    for name in drop {
        set &= !named(name, u64::MAX)?;
    }
    for name in add {
        let bits = named(name, available)?;
        if bits & !available != 0 {
            return Err(Error::Unsupported(format!(
                "capability {name} cannot be added: this node's daemon lacks it"
            )));
        }
        set |= bits;
    }
    // A default that the daemon itself lacks is no reason to refuse every container.
    Ok(set & available)
}

fn named(name: &str, all: u64) -> Result<u64, Error> {
    if name.eq_ignore_ascii_case("ALL") {
        return Ok(all);
    }
    bit(name).ok_or_else(|| Error::Rejected(format!("unknown capability \"{name}\"")))
}

/// What the calling process may hand on: permitted and still in its bounding set, from the text of
/// `/proc/self/status`.
pub(crate) fn available(status: &str) -> u64 {
    let mask = |key: &str| {
        let line = status.lines().find_map(|line| line.strip_prefix(key));
        line.and_then(|text| u64::from_str_radix(text.trim(), 16).ok()).unwrap_or(0)
    };
    mask("CapPrm:") & mask("CapBnd:")
}

#[cfg(test)]
mod tests {
    use super::*;

    const ALL: u64 = (1 << 41) - 1;

    #[track_caller]
    fn check(add: &[&str], drop: &[&str], expected: &str) {
        let strings =
            |names: &[&str]| names.iter().map(|name| (*name).to_owned()).collect::<Vec<_>>();
        let answer = match effective(&strings(add), &strings(drop), false, ALL & !(1 << 24)) {
            Ok(set) => format!("{set:x}"),
            Err(error) => error.to_string(),
        };
        assert_eq!(answer, expected);
    }

    #[test]
    fn sets() {
        check(&[], &[], "a80425fb");
        check(&["NET_ADMIN"], &[], "a80435fb");
        check(&["cap_net_admin"], &["NET_RAW"], "a80415fb");
        check(&["NET_RAW"], &["ALL"], "2000");
        check(&["ALL"], &[], "1fffeffffff");
        check(&["FLY"], &[], "unknown capability \"FLY\"");
        check(&[], &["FLY"], "unknown capability \"FLY\"");
        check(
            &["SYS_RESOURCE"],
            &[],
            "capability SYS_RESOURCE cannot be added: this node's daemon lacks it",
        );
        let dropped = ["NET_RAW".to_owned()];
        assert_eq!(effective(&[], &dropped, true, ALL).unwrap(), ALL & !(1 << 13));
    }

    #[test]
    fn own_set() {
        let status = "Name:\tx\nCapPrm:\t000001fffeffffff\nCapBnd:\t00000000a80425fb\n";
        assert_eq!(available(status), 0xa804_25fb);
        assert_eq!(available(""), 0);
    }
}
