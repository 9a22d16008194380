//! Whether a body gets on: so many bytes within so long, again and again.
//!
//! Pure. Time that its reader takes for itself (a disk that is slow, say) is not
//! the registry's: only waiting counts.

use std::time::Duration;

use super::PROGRESS_MIN_BYTES;

#[derive(Debug, Default)]
pub(crate) struct Pace {
    waited: Duration,
    got: u64,
}

impl Pace {
    /// How long the next piece may take.
    pub(crate) fn left(&self, window: Duration) -> Duration {
        window.saturating_sub(self.waited)
    }

    /// Bytes since it had all of its time.
    pub(crate) fn got(&self) -> u64 {
        self.got
    }

    /// A piece came after waiting for so long.
    pub(crate) fn piece(&mut self, bytes: usize, waited: Duration) {
        self.waited += waited;
        self.got = self.got.saturating_add(bytes as u64);
        if self.got >= PROGRESS_MIN_BYTES {
            *self = Self::default();
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_trickle_uses_up_its_time() {
        let window = Duration::from_secs(30);
        let mut pace = Pace::default();
        for second in 1..30 {
            pace.piece(1, Duration::from_secs(1));
            assert_eq!(pace.left(window), Duration::from_secs(30 - second));
        }
        pace.piece(1, Duration::from_secs(2));
        assert_eq!(pace.left(window), Duration::ZERO);
        // Enough within the time, and it has all of it again.
        let mut pace = Pace::default();
        pace.piece(10 << 10, Duration::from_secs(20));
        pace.piece(6 << 10, Duration::from_secs(9));
        assert_eq!(pace.left(window), window);
    }
}
