//! The parts of the sum that are about moving tasks.

use warren_model::moving::{Cause, MinAvailable, Moving, Origin, Rebalance};

use super::Digest;

pub(super) fn rebalance_word(rebalance: Rebalance) -> u64 {
    match rebalance {
        Rebalance::Auto => 1,
        Rebalance::Never => 2,
        Rebalance::Always => 3,
    }
}

pub(super) fn add(digest: &mut Digest, moving: Moving) {
    let Moving { min_available, rebalance } = moving;
    digest.option(min_available, |digest, least| match least {
        MinAvailable::Count(count) => digest.word(u64::from(count) << 1),
        MinAvailable::Percent(percent) => digest.word(u64::from(percent) << 1 | 1),
    });
    digest.word(rebalance_word(rebalance));
}

pub(super) fn add_origin(digest: &mut Digest, origin: Origin) {
    let Origin { cause, revision } = origin;
    digest.word(match cause {
        Cause::Wanted => 1,
        Cause::Update => 2,
        Cause::Failure => 3,
        Cause::Lost => 4,
        Cause::Drain => 5,
        Cause::Placement => 6,
        Cause::Deadline => 7,
        Cause::Balance => 8,
    });
    digest.word(revision);
}
