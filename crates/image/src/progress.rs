//! How far a pull or load is, told to whoever watches.
//!
//! A watcher is a callback: it must not block. Reports of one layer come in
//! order; those of several layers mix.

use std::collections::BTreeMap;
use std::fmt;
use std::sync::{Arc, Mutex, PoisonError};

/// How far one layer is.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Step {
    /// The first digits of the layer's digest.
    pub layer: String,
    /// Compressed bytes.
    pub done: u64,
    /// 0 when unknown.
    pub total: u64,
    pub phase: Phase,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Phase {
    /// Waiting for its turn.
    Waiting,
    /// Being downloaded and unpacked, both at once.
    Fetching,
    /// Being flushed to disk.
    Flushing,
    /// Being written into an archive.
    Writing,
    /// Being compressed.
    Packing,
    /// Being sent to a registry.
    Pushing,
    Done,
    /// It was there already.
    Present,
}

/// Receives [`Step`]s.
#[derive(Clone, Default)]
pub struct Progress(Option<Arc<Watcher>>);

type Watcher = dyn Fn(&Step) + Send + Sync;

impl Progress {
    pub fn new(watch: impl Fn(&Step) + Send + Sync + 'static) -> Self {
        Self(Some(Arc::new(watch)))
    }

    /// Nobody watches.
    pub fn none() -> Self {
        Self(None)
    }

    pub(crate) fn report(&self, step: &Step) {
        if let Some(watch) = &self.0 {
            watch(step);
        }
    }
}

impl fmt::Debug for Progress {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(if self.0.is_some() { "Progress(watched)" } else { "Progress(none)" })
    }
}

/// One work with any number of watchers; a late one is told the state at once.
#[derive(Debug, Default)]
pub(crate) struct Fan(Mutex<FanState>);

#[derive(Debug, Default)]
struct FanState {
    next: u64,
    watchers: BTreeMap<u64, Progress>,
    latest: BTreeMap<String, Step>,
}

impl Fan {
    fn state(&self) -> std::sync::MutexGuard<'_, FanState> {
        // A watcher that panicked leaves a consistent state behind.
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub(crate) fn report(&self, step: Step) {
        let watchers: Vec<Progress> = {
            let mut state = self.state();
            state.latest.insert(step.layer.clone(), step.clone());
            state.watchers.values().cloned().collect()
        };
        for watcher in watchers {
            watcher.report(&step);
        }
    }

    /// Watches until the guard is dropped.
    pub(crate) fn watch(self: &Arc<Self>, progress: Progress) -> Watch {
        let (id, latest) = {
            let mut state = self.state();
            let id = state.next;
            state.next += 1;
            state.watchers.insert(id, progress.clone());
            (id, state.latest.values().cloned().collect::<Vec<_>>())
        };
        for step in latest {
            progress.report(&step);
        }
        Watch { fan: Arc::clone(self), id }
    }
}

pub(crate) struct Watch {
    fan: Arc<Fan>,
    id: u64,
}

impl Drop for Watch {
    fn drop(&mut self) {
        self.fan.state().watchers.remove(&self.id);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn late_watchers_are_told_and_gone_ones_are_not() {
        let fan = Arc::new(Fan::default());
        let seen = Arc::new(Mutex::new(Vec::new()));
        let step = |done| Step { layer: "l".into(), done, total: 9, phase: Phase::Fetching };
        fan.report(step(1));
        let watch = fan.watch(Progress::new({
            let seen = Arc::clone(&seen);
            move |step| seen.lock().unwrap().push(step.done)
        }));
        fan.report(step(2));
        drop(watch);
        fan.report(step(3));
        assert_eq!(*seen.lock().unwrap(), [1, 2]);
    }
}
