//! Without managers, and with managers that lost their memory: what runs on,
//! what stops, and for how long.

use std::collections::BTreeSet;
use std::sync::Arc;

use warren_model::node::ForgottenChoice;
use warren_model::quantity::format_duration_ms;
use warren_model::service::OnDisconnect;
use warren_model::{NodeTable, TaskId};

use super::{Cached, Changed, Command, Core, Event, FoundTask, Held, Now};
use crate::task::FoundState;

/// A kept set is acted upon after so long without a manager's: one that is there answers within
/// tens of milliseconds, and a node that comes back must not start what moved away meanwhile.
pub const ALONE_MS: u64 = 1_000;
/// For so long after that the kernel keeps the rules of an earlier process, if its containers run
/// still: the network's table is written every few seconds, so what is kept of it may be older
/// than what the kernel holds, and an old address may be another service's by now.
pub const RULES_KEPT_MS: u64 = 3_000;
/// How long tasks run on that managers of a new epoch do not know: time for people to look.
pub const KEPT_MS: u64 = 10 * 60_000;
/// Ids in a note; more are counted.
const NAMED_MAX: usize = 20;

impl Core {
    /// What was kept from an earlier life: held from now on, acted upon after [`ALONE_MS`].
    #[must_use]
    pub fn with_cached(mut self, cached: Cached, now: Now) -> Self {
        self.lease.recall(cached.contact, now.mono_ms);
        if cached.set.revision > 0 {
            self.alone_at_ms = Some(now.mono_ms.saturating_add(ALONE_MS));
        }
        self.set = cached.set;
        if *self.set.table != NodeTable::default() {
            self.commands.push(Command::Table(Arc::clone(&self.set.table)));
            self.table_came();
        }
        if !self.set.kept.tasks.is_empty() && self.choice() != Some(ForgottenChoice::Keep) {
            let left = cached.kept_left_ms.min(KEPT_MS);
            self.kept_until_ms = Some(now.mono_ms.saturating_add(left));
        }
        if self.has_leases() {
            // A process that follows this one soon is to wait no longer than this one would have.
            self.changed = Some(Changed::Set);
        }
        self
    }

    /// Whether something here must not go on without managers for ever.
    pub fn has_leases(&self) -> bool {
        let mut services = self.set.all_services();
        services.any(|(_, held)| matches!(held.on_disconnect, OnDisconnect::StopAfter { .. }))
    }

    /// What to keep on disk: the set, with what is known of its tasks here.
    pub fn cached(&self, now: Now) -> Cached {
        let mut set = self.set.clone();
        let tasks = set.tasks.values_mut().chain(set.kept.tasks.values_mut());
        for task in tasks {
            if let Some(held) = self.tasks.get(&task.id) {
                task.known = held.machine.status().clone();
            }
        }
        let until = self.kept_until_ms.unwrap_or(0);
        let kept_left_ms = until.saturating_sub(now.mono_ms);
        Cached { set, kept_left_ms, contact: self.lease.contact() }
    }

    /// What differs from what was last asked for.
    pub fn take_changed(&mut self) -> Option<Changed> {
        self.changed.take()
    }

    pub(super) fn heard(&mut self, sent_ms: u64, now: Now) {
        if self.lease.heard(sent_ms) {
            self.contact_changed();
        }
        if self.current {
            self.let_go_on(now);
        }
    }

    fn beat_ms(&self) -> u64 {
        self.set.membership.as_ref().map_or(0, |membership| membership.beat_ms)
    }

    fn contact_changed(&mut self) {
        if self.has_leases() {
            self.changed = self.changed.max(Some(Changed::Statuses));
        }
    }

    /// Tasks that waited for a manager go on, where their lease is held again.
    pub(super) fn let_go_on(&mut self, now: Now) {
        let ready = self.tasks.iter().filter(|(_, held)| {
            held.machine.is_cut_off() && self.lease.is_held(self.policy(held), now.mono_ms)
        });
        let ready: Vec<TaskId> = ready.map(|(id, _)| *id).collect();
        for id in ready {
            self.step(id, Event::Heard, now);
        }
    }

    fn policy(&self, held: &Held) -> OnDisconnect {
        let service = self.set.service(held.spec.service);
        service.map(|service| service.on_disconnect).unwrap_or_default()
    }

    pub(super) fn alone_wake_at(&self) -> Option<u64> {
        let alone = self.alone_at_ms.filter(|_| !self.live);
        let ends = self.tasks.values().filter(|held| held.machine.may_be_cut_off());
        let ends = ends.filter_map(|held| self.lease.ends_ms(self.policy(held)));
        let silent = self.lease.silent_at_ms(self.beat_ms()).filter(|_| self.has_leases());
        alone.into_iter().chain(self.kept_until_ms).chain(ends).chain(silent).min()
    }

    /// Deadlines that have passed.
    pub(super) fn look_around(&mut self, now: Now) {
        if !self.live && self.alone_at_ms.is_some_and(|at| at <= now.mono_ms) {
            self.go_alone(now);
        }
        if self.live && self.kept_until_ms.is_some_and(|at| at <= now.mono_ms) {
            self.end_keeping(now);
        }
        let beat_ms = self.beat_ms();
        if self.lease.notice_silence(beat_ms, now.mono_ms) {
            self.contact_changed();
        }
        let ended = self.tasks.iter().filter(|(_, held)| held.machine.may_be_cut_off());
        let ended = ended.filter_map(|(id, held)| {
            let policy = self.policy(held);
            let up = held.machine.is_up();
            let over = if up {
                self.lease.ends_ms(policy).is_some_and(|at| at <= now.mono_ms)
            } else {
                !self.lease.is_held(policy, now.mono_ms)
            };
            over.then(|| (*id, self.lease.why(policy, up)))
        });
        let ended: Vec<(TaskId, String)> = ended.collect();
        for (id, why) in ended {
            self.step(id, Event::CutOff(why), now);
        }
    }

    fn go_alone(&mut self, now: Now) {
        self.live = true;
        self.alone_at_ms = None;
        self.table_stale = true;
        let runs = |found: &FoundTask| !matches!(found.newest.state, FoundState::Exited { .. });
        if self.found.values().any(runs) {
            self.rules_kept_until_ms = Some(now.mono_ms.saturating_add(RULES_KEPT_MS));
        }
        let tasks = self.set.all().count();
        self.note(format!(
            "no manager answers: {tasks} tasks are run as they were assigned last, at revision {}",
            self.set.revision
        ));
        self.reconcile(now);
    }

    /// A new epoch has begun; what managers do not know is not touched for a while.
    pub(super) fn keep(&mut self, now: Now) {
        let unknown = self.found.keys().filter(|id| !self.set.holds(**id)).copied();
        self.spared = unknown.collect();
        let kept = self.set.kept.tasks.keys().chain(&self.spared).copied();
        let kept: BTreeSet<TaskId> = kept.collect();
        if kept.is_empty() {
            return;
        }
        self.kept_until_ms = Some(now.mono_ms.saturating_add(KEPT_MS));
        self.note(format!(
            "recovery epoch {}: managers do not know {}; they run on for {}, or as `warren node \
             update --forgotten keep|drop` says",
            self.set.epoch(),
            names(&kept),
            format_duration_ms(KEPT_MS)
        ));
    }

    fn choice(&self) -> Option<ForgottenChoice> {
        self.set.membership.as_ref().and_then(|membership| membership.forgotten)
    }

    /// People may have said what becomes of tasks that managers do not know.
    pub(super) fn heed_choice(&mut self, now: Now) {
        if self.set.kept.tasks.is_empty() && self.spared.is_empty() {
            return;
        }
        match self.choice() {
            None => {
                let until = now.mono_ms.saturating_add(KEPT_MS);
                self.kept_until_ms.get_or_insert(until);
            }
            Some(ForgottenChoice::Keep) => self.kept_until_ms = None,
            Some(ForgottenChoice::Drop) => self.end_keeping(now),
        }
    }

    /// Tasks that managers do not know, and for how long they run on yet.
    pub fn forgotten(&self, now: Now) -> Option<(usize, Option<u64>)> {
        let tasks = self.set.kept.tasks.keys().chain(&self.spared).collect::<BTreeSet<_>>().len();
        let left_ms = self.kept_until_ms.map(|until| until.saturating_sub(now.mono_ms));
        (tasks > 0).then_some((tasks, left_ms))
    }

    fn end_keeping(&mut self, now: Now) {
        let mut kept = std::mem::take(&mut self.spared);
        kept.extend(self.set.kept.tasks.keys());
        self.kept_until_ms = None;
        if kept.is_empty() {
            return;
        }
        self.note(match self.choice() {
            Some(ForgottenChoice::Drop) => {
                format!("managers do not know {}; they are removed, as people said", names(&kept))
            }
            _ => format!("no manager came to know {}; they are removed", names(&kept)),
        });
        self.set.drop_kept();
        self.table_stale = true;
        self.changed = Some(Changed::Set);
        self.reconcile(now);
    }

    pub(super) fn removed(&mut self, now: Now) {
        self.note("this node was removed from the cluster: its containers are removed".to_owned());
        self.set.tasks.clear();
        self.set.drop_kept();
        self.set.table = Arc::default();
        self.table_came();
        self.set.revision = self.set.revision.max(1);
        self.spared.clear();
        self.live = true;
        self.table_stale = true;
        self.reconcile(now);
        self.changed = None;
    }

    fn note(&mut self, text: String) {
        self.commands.push(Command::Note(text));
    }
}

fn names(tasks: &BTreeSet<TaskId>) -> String {
    let mut text = format!("{} tasks (", tasks.len());
    for (at, id) in tasks.iter().take(NAMED_MAX).enumerate() {
        if at > 0 {
            text.push_str(", ");
        }
        text.push_str(&id.to_string());
    }
    if tasks.len() > NAMED_MAX {
        text.push_str(", …");
    }
    text.push(')');
    text
}
