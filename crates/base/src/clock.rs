//! Time as a dependency: the real clock, and one that tests move by hand.

use std::collections::BTreeMap;
use std::future::Future;
use std::pin::Pin;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use tokio::sync::oneshot;

/// A sleep that can be kept in a struct and selected over.
pub type Sleep = Pin<Box<dyn Future<Output = ()> + Send>>;

/// Wall time for people and records, monotonic time for deadlines.
pub trait Clock: Send + Sync + 'static {
    /// Milliseconds since the Unix epoch; may jump.
    fn now_ms(&self) -> u64;
    /// Milliseconds since some fixed moment of this boot of the machine; never jumps. A process
    /// that follows another finds it no smaller.
    fn monotonic_ms(&self) -> u64;
    /// Resolves when [`Clock::monotonic_ms`] has reached `at_ms`.
    fn sleep_until(&self, at_ms: u64) -> Sleep;

    /// Resolves `ms` from now.
    fn sleep(&self, ms: u64) -> Sleep {
        self.sleep_until(self.monotonic_ms().saturating_add(ms))
    }
}

/// The machine's clock; sleeps need a tokio runtime.
///
/// Its monotonic time begins with the boot and counts the time for which the machine slept, but
/// for sleep within this process's life: sleeps of tokio do not count that either.
#[derive(Debug)]
pub struct RealClock {
    start: Instant,
    start_ms: u64,
}

impl RealClock {
    pub fn new() -> Self {
        // In this order: a moment between the two must not make this clock go ahead of the boot's.
        let start_ms = since_boot_ms();
        Self { start: Instant::now(), start_ms }
    }
}

fn since_boot_ms() -> u64 {
    let now = rustix::time::clock_gettime(rustix::time::ClockId::Boottime);
    let (seconds, nanos) = (u64::try_from(now.tv_sec), u64::try_from(now.tv_nsec));
    seconds.unwrap_or(0).saturating_mul(1000).saturating_add(nanos.unwrap_or(0) / 1_000_000)
}

impl Default for RealClock {
    fn default() -> Self {
        Self::new()
    }
}

fn millis(duration: Duration) -> u64 {
    u64::try_from(duration.as_millis()).unwrap_or(u64::MAX)
}

impl Clock for RealClock {
    fn now_ms(&self) -> u64 {
        SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, millis)
    }

    fn monotonic_ms(&self) -> u64 {
        self.start_ms.saturating_add(millis(self.start.elapsed()))
    }

    fn sleep_until(&self, at_ms: u64) -> Sleep {
        // Past this, waiting is the same as forever; `Instant` would overflow.
        const YEAR_MS: u64 = 365 * 86_400_000;
        let wait = at_ms.saturating_sub(self.monotonic_ms()).min(YEAR_MS);
        Box::pin(tokio::time::sleep(Duration::from_millis(wait)))
    }
}

/// A clock that stands still until [`ManualClock::advance`] moves it.
#[derive(Debug, Clone, Default)]
pub struct ManualClock {
    inner: Arc<Mutex<Manual>>,
}

#[derive(Debug, Default)]
struct Manual {
    now_ms: u64,
    order: u64,
    sleepers: BTreeMap<(u64, u64), oneshot::Sender<()>>,
}

impl ManualClock {
    /// Starts at `now_ms`, wall and monotonic alike.
    pub fn at(now_ms: u64) -> Self {
        let clock = Self::default();
        clock.lock().now_ms = now_ms;
        clock
    }

    fn lock(&self) -> std::sync::MutexGuard<'_, Manual> {
        self.inner.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Moves time and wakes the sleepers whose moment has come, in order.
    pub fn advance(&self, ms: u64) {
        let mut inner = self.lock();
        inner.now_ms += ms;
        let next = (inner.now_ms + 1, 0);
        let later = inner.sleepers.split_off(&next);
        for (_, sleeper) in std::mem::replace(&mut inner.sleepers, later) {
            // A sleeper that was dropped meanwhile needs no waking.
            let _ = sleeper.send(());
        }
    }

    /// When the next sleeper wants to wake, if any waits.
    pub fn next_wake_ms(&self) -> Option<u64> {
        self.lock().sleepers.keys().next().map(|(at, _)| *at)
    }
}

impl Clock for ManualClock {
    fn now_ms(&self) -> u64 {
        self.lock().now_ms
    }

    fn monotonic_ms(&self) -> u64 {
        self.lock().now_ms
    }

    fn sleep_until(&self, at_ms: u64) -> Sleep {
        let mut inner = self.lock();
        if at_ms <= inner.now_ms {
            return Box::pin(std::future::ready(()));
        }
        let (wake, woken) = oneshot::channel();
        inner.order += 1;
        let key = (at_ms, inner.order);
        inner.sleepers.insert(key, wake);
        Box::pin(async move {
            // The clock itself went away: nobody will ever move it again.
            if woken.await.is_err() {
                std::future::pending::<()>().await;
            }
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn monotonic_time_goes_on_in_the_next_process() {
        let first = RealClock::new();
        let before = first.monotonic_ms();
        let next = RealClock::new();
        assert!(before > 0 && next.monotonic_ms() >= before);
    }

    #[tokio::test]
    async fn manual_clock_wakes_in_order() {
        let clock = ManualClock::at(100);
        let (early, late) = (clock.sleep(10), clock.sleep(20));
        assert_eq!(clock.next_wake_ms(), Some(110));
        clock.advance(10);
        early.await;
        assert_eq!(clock.next_wake_ms(), Some(120));
        clock.advance(50);
        late.await;
        assert_eq!(clock.monotonic_ms(), 160);
        clock.sleep_until(5).await;
    }
}
