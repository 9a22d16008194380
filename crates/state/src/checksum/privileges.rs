//! What containers may do beyond what all may.

use warren_model::service::{HostDevice, Privileges, SeccompProfile};

use super::Digest;

pub(super) fn add(digest: &mut Digest, privileges: &Privileges) {
    let Privileges {
        privileged,
        no_new_privileges,
        seccomp,
        devices,
        host_pid,
        host_ipc,
        host_network,
        groups,
        ulimits,
        sysctls,
        init,
        oom_score_adj,
    } = privileges;
    let bits = [*privileged, *host_pid, *host_ipc, *host_network, *init];
    digest.word(bits.iter().fold(0, |word, bit| word << 1 | u64::from(*bit)));
    digest.option(no_new_privileges.map(u64::from), Digest::word);
    match seccomp {
        SeccompProfile::Default => digest.word(0),
        SeccompProfile::Unconfined => digest.word(1),
        SeccompProfile::Custom(profile) => {
            digest.word(2);
            digest.text(profile);
        }
    }
    digest.texts(&devices.iter().map(HostDevice::to_string).collect::<Vec<_>>());
    digest.texts(groups);
    digest.word(ulimits.len() as u64);
    for (kind, limit) in ulimits {
        digest.word(kind.number().into());
        digest.word(limit.soft);
        digest.word(limit.hard);
    }
    digest.labels(sysctls);
    digest.option(oom_score_adj.map(|score| i64::from(score).cast_unsigned()), Digest::word);
}
