//! Init containers and sidecars.

use warren_model::service::{Companion, CompanionKind, SharedFolder};
use warren_model::task::{CompanionState, CompanionStatus};

use super::{Digest, add_exit, add_template};

pub(super) fn add_all(digest: &mut Digest, all: &[Companion]) {
    digest.word(all.len() as u64);
    for Companion { name, kind, task } in all {
        digest.text(name.as_str());
        digest.word(kind_word(*kind));
        add_template(digest, task);
    }
}

pub(super) fn add_shared(digest: &mut Digest, all: &[SharedFolder]) {
    digest.word(all.len() as u64);
    for SharedFolder { name, target, read_only } in all {
        digest.text(name.as_str());
        digest.text(target);
        digest.word(u64::from(*read_only));
    }
}

pub(super) fn add_statuses(digest: &mut Digest, all: &[CompanionStatus]) {
    digest.word(all.len() as u64);
    for CompanionStatus { name, kind, state, since, pid, restarts, exit } in all {
        digest.text(name.as_str());
        let state = match state {
            CompanionState::Waiting => 1,
            CompanionState::Running => 2,
            CompanionState::Exited => 3,
        };
        digest.word(kind_word(*kind) << 8 | state);
        digest.word(since.0);
        digest.word(u64::from(*restarts) << 32 | u64::from(*pid));
        digest.option(*exit, add_exit);
    }
}

fn kind_word(kind: CompanionKind) -> u64 {
    match kind {
        CompanionKind::Init => 1,
        CompanionKind::Sidecar => 2,
    }
}
