//! A host's clock: the runtime's paused time, a little fast or slow, its wall
//! clock off by some. A host that is stopped wakes late.

use std::sync::Arc;
use std::sync::atomic::{AtomicI64, Ordering};
use std::time::Duration;

use tokio::time::Instant;
use warren_agent::task::Now;
use warren_base::clock::{Clock, Sleep};
use warren_model::Time;

use super::net::{Net, Place};

const MILLION: u64 = 1_000_000;

pub(crate) struct HostClock {
    net: Arc<Net>,
    place: Place,
    start: Instant,
    /// Of the wall clock at the start of the run.
    epoch_ms: u64,
    /// Ticks in a million of true ones.
    rate: u64,
    /// Of the wall clock, which people and time servers set.
    wall_ahead_ms: AtomicI64,
}

impl HostClock {
    /// `drift` is in parts of a million, around a thousand of them meaning none.
    pub(crate) fn new(
        net: Arc<Net>,
        place: Place,
        (start, epoch_ms): (Instant, u64),
        rate: u64,
        ahead_ms: i64,
    ) -> Self {
        Self { net, place, start, epoch_ms, rate, wall_ahead_ms: AtomicI64::new(ahead_ms) }
    }

    /// The wall clock is set, by hours perhaps.
    pub(crate) fn set(&self, by_ms: i64) {
        self.wall_ahead_ms.fetch_add(by_ms, Ordering::Relaxed);
    }

    pub(crate) fn now(&self) -> Now {
        Now { wall: Time(self.now_ms()), mono_ms: self.monotonic_ms() }
    }
}

impl Clock for HostClock {
    fn now_ms(&self) -> u64 {
        let ahead_ms = self.wall_ahead_ms.load(Ordering::Relaxed);
        (self.epoch_ms + self.monotonic_ms()).saturating_add_signed(ahead_ms)
    }

    fn monotonic_ms(&self) -> u64 {
        let elapsed = u64::try_from(self.start.elapsed().as_micros()).unwrap_or(u64::MAX);
        elapsed.saturating_mul(self.rate) / MILLION / 1000
    }

    fn sleep_until(&self, at_ms: u64) -> Sleep {
        let (net, place) = (Arc::clone(&self.net), self.place);
        // Rounded up, or who sleeps would look too early and sleep again.
        let micros = at_ms.saturating_mul(1000).saturating_mul(MILLION).div_ceil(self.rate);
        let at = self.start + Duration::from_micros(micros.min(u64::from(u32::MAX) * MILLION));
        Box::pin(async move {
            tokio::time::sleep_until(at).await;
            while let Some(until) = net.stopped_until(place) {
                tokio::time::sleep_until(until).await;
            }
        })
    }
}
