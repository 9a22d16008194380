//! How updates go, and what was before them.

use warren_model::service::{
    Change, ChangeKind, FailureAction, HookStatus, Hooks, Revision, RollbackPolicy, UpdateKind,
    UpdateOrder, UpdatePhase, UpdatePolicy, UpdateStatus,
};

use super::{Digest, add_spec, add_spec_added};

pub(super) fn order_word(order: UpdateOrder) -> u64 {
    match order {
        UpdateOrder::StartFirst => 1,
        UpdateOrder::StopFirst => 2,
    }
}

fn action_word(action: FailureAction) -> u64 {
    match action {
        FailureAction::Pause => 1,
        FailureAction::Continue => 2,
        FailureAction::Rollback => 3,
    }
}

pub(super) fn add_policies(digest: &mut Digest, update: &UpdatePolicy, rollback: &RollbackPolicy) {
    let UpdatePolicy {
        parallelism: _,
        delay_ms: _,
        order: _,
        monitor_ms,
        max_failure_millis,
        failure_action,
        max_surge,
        max_unavailable,
        deadline_ms,
    } = update;
    let monitor = Some(*monitor_ms).filter(|ms| *ms != UpdatePolicy::MONITOR_MS);
    digest.added(84, monitor, Digest::word);
    let failures = Some(u64::from(*max_failure_millis)).filter(|millis| *millis != 0);
    digest.added(85, failures, Digest::word);
    let action = Some(*failure_action).filter(|action| *action != FailureAction::Pause);
    digest.added(86, action.map(action_word), Digest::word);
    digest.added(87, max_surge.map(u64::from), Digest::word);
    digest.added(88, max_unavailable.map(u64::from), Digest::word);
    digest.added(89, *deadline_ms, Digest::word);
    let rollback = Some(rollback).filter(|policy| **policy != RollbackPolicy::default());
    digest.added(90, rollback, |digest, policy| {
        let RollbackPolicy {
            parallelism,
            delay_ms,
            order,
            monitor_ms,
            max_failure_millis,
            failure_action,
        } = policy;
        digest.option(parallelism.map(u64::from), Digest::word);
        digest.option(*delay_ms, Digest::word);
        digest.option(order.map(order_word), Digest::word);
        digest.option(*monitor_ms, Digest::word);
        digest.option(max_failure_millis.map(u64::from), Digest::word);
        digest.option(failure_action.map(action_word), Digest::word);
    });
}

pub(super) fn add_change(digest: &mut Digest, change: &Change) {
    let Change { by, kind } = change;
    digest.option(by.as_deref(), Digest::text);
    let (kind, to) = match kind {
        ChangeKind::Create => (1, 0),
        ChangeKind::Update => (2, 0),
        ChangeKind::Rollback { to } => (3, *to),
        ChangeKind::AutomaticRollback { to } => (4, *to),
    };
    digest.word(kind << 32 | u64::from(to));
}

pub(super) fn add_status(digest: &mut Digest, status: &UpdateStatus) {
    let UpdateStatus { kind, phase, started, message, hook } = status;
    let kind = match kind {
        UpdateKind::Update => 1,
        UpdateKind::Rollback => 2,
        UpdateKind::AutomaticRollback => 3,
    };
    let phase = match phase {
        UpdatePhase::Moving => 1,
        UpdatePhase::Paused => 2,
        UpdatePhase::Done => 3,
    };
    digest.word(kind << 8 | phase);
    digest.word(started.0);
    digest.text(message);
    digest.added(147, *hook, |digest, HookStatus { hook, since }| {
        digest.word(u64::from(hook.number()));
        digest.word(since.0);
    });
}

pub(super) fn add_hooks(digest: &mut Digest, hooks: &Hooks) {
    let Hooks { before, after, timeout_ms, retries } = hooks;
    digest.texts(before);
    digest.texts(after);
    digest.word(*timeout_ms);
    digest.word(u64::from(*retries));
}

pub(super) fn add_revision(digest: &mut Digest, revision: &Revision) {
    let Revision { number, spec, time, change, good } = revision;
    digest.word(u64::from(*number) << 1 | u64::from(*good));
    digest.word(time.0);
    add_spec(digest, spec);
    add_spec_added(digest, spec);
    add_change(digest, change);
}
