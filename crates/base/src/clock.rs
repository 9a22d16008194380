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

/// Wall time that goes on, whatever becomes of the wall clock: never back, and never still.
///
/// What is measured from times that were written must pass also while a clock that was ahead, and
/// was set back, has not come there again. Meanwhile this one goes at half the speed, so that the
/// two meet: one that is three hours behind in six.
#[derive(Debug, Clone, Copy, Default)]
pub struct Steady {
    last_ms: u64,
    at_ms: u64,
}

impl Steady {
    /// `floor_ms`: what others wrote last. Of times in between there is none that is later than a
    /// clock said it is, but for what was said before.
    pub fn now_ms(&mut self, wall_ms: u64, floor_ms: u64, monotonic_ms: u64) -> u64 {
        // What is left of an odd millisecond counts the next time.
        let half = monotonic_ms.saturating_sub(self.at_ms) / 2;
        let own = if self.last_ms == 0 { 0 } else { self.last_ms.saturating_add(half) };
        let now = own.max(wall_ms).max(floor_ms);
        self.at_ms = if now == own { self.at_ms + 2 * half } else { monotonic_ms };
        self.last_ms = now;
        now
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
    fn what_is_steady_never_goes_back_nor_stands_still() {
        let mut steady = Steady::default();
        let mut now = |wall, floor, monotonic| steady.now_ms(wall, floor, monotonic);
        assert_eq!(now(5_000, 0, 100), 5_000);
        assert_eq!(now(5_100, 0, 200), 5_100);
        // Set back by four seconds: half as fast, until it is caught up with.
        assert_eq!(now(1_200, 0, 300), 5_150);
        assert_eq!(now(1_201, 0, 301), 5_150);
        assert_eq!(now(1_202, 0, 302), 5_151);
        assert_eq!(now(9_100, 0, 8_200), 9_100);
        assert_eq!(now(9_200, 0, 8_300), 9_200);
        // Somebody wrote a later time.
        assert_eq!(now(9_300, 20_000, 8_400), 20_000);
        assert_eq!(now(9_400, 20_000, 8_600), 20_100);
    }

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
