//! Places of one source, and words in the log: both have an end.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use super::Source;

/// Lines about refused connections in each [`SAY_WINDOW`]; the rest is only counted.
const SAY_MAX: u32 = 20;
const SAY_WINDOW: Duration = Duration::from_secs(10);

/// Counts the places that each source has. Its size is bounded by all places together.
#[derive(Clone)]
pub(super) struct Sources {
    most: usize,
    held: Arc<Mutex<BTreeMap<Source, usize>>>,
}

/// A place that a source has, until dropped.
pub(crate) struct Held {
    sources: Sources,
    source: Source,
}

impl Sources {
    pub(super) fn new(most: usize) -> Self {
        Self { most, held: Arc::default() }
    }

    /// A place, if the source has not had all that are for it.
    pub(super) fn enter(&self, source: Source) -> Option<Held> {
        let mut held = self.held.lock().unwrap_or_else(PoisonError::into_inner);
        let count = held.entry(source).or_insert(0);
        if *count >= self.most {
            return None;
        }
        *count += 1;
        Some(Held { sources: self.clone(), source })
    }
}

impl Drop for Held {
    fn drop(&mut self) {
        let mut held = self.sources.held.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(count) = held.get_mut(&self.source) {
            *count -= 1;
            if *count == 0 {
                held.remove(&self.source);
            }
        }
    }
}

/// Keeps strangers from filling the log.
#[derive(Default)]
pub(super) struct Sparing(Mutex<Option<(Instant, u32)>>);

impl Sparing {
    /// Whether one more line is in order.
    pub(super) fn may_say(&self) -> bool {
        let mut window = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        match &mut *window {
            Some((since, said)) if since.elapsed() < SAY_WINDOW => {
                *said += 1;
                *said <= SAY_MAX
            }
            _ => {
                *window = Some((Instant::now(), 1));
                true
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use std::net::IpAddr;

    use super::*;

    #[test]
    fn places_are_given_back() {
        let sources = Sources::new(2);
        let address = |text: &str| Source::from(text.parse::<IpAddr>().unwrap());
        let one = sources.enter(address("10.0.0.1"));
        let two = sources.enter(address("10.0.0.1"));
        assert!(one.is_some() && two.is_some());
        assert!(sources.enter(address("10.0.0.1")).is_none());
        assert!(sources.enter(address("10.0.0.2")).is_some());
        assert!(sources.enter([1; 32].into()).is_some());
        drop(one);
        assert!(sources.enter(address("10.0.0.1")).is_some());
        drop(two);
        assert!(sources.held.lock().unwrap().is_empty());
        // A network of IPv6 counts as one.
        assert_eq!(address("fd00::1"), address("fd00::2"));
        assert_ne!(address("fd00::1"), address("fd00:0:0:1::1"));
    }

    #[test]
    fn the_log_is_spared() {
        let sparing = Sparing::default();
        assert_eq!((0..1000).filter(|_| sparing.may_say()).count(), 20);
    }
}
