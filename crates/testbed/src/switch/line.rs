//! One direction between two machines: what becomes of a frame, and when.
//!
//! Pure: the clock and the dice are given. Without [`Link::jitter`] and
//! [`Link::reorder`] frames keep their order; jitter alone keeps it too, since
//! a frame never overtakes the one before it; only a reordered frame is
//! overtaken, by [`REORDER_HOLD`].

use std::time::Duration;

use warren_base::rng::Rng;

/// How much longer than the others a reordered frame is held.
pub const REORDER_HOLD: Duration = Duration::from_millis(10);
/// What may wait for a narrow line before frames are lost, in time: as a home router's buffer.
const BACKLOG_MAX: Duration = Duration::from_millis(500);
/// Dice have this many sides: chances are told to a millionth.
const SIDES: u64 = 1_000_000;

/// How a line treats frames. The default is a perfect wire.
#[derive(Debug, Clone, Copy, PartialEq, Default)]
pub struct Link {
    /// Nothing passes; frames that were under way are lost.
    pub cut: bool,
    /// Added to every frame.
    pub delay: Duration,
    /// Added on top, evenly between nothing and this.
    pub jitter: Duration,
    /// Chance that a frame is lost, 0 to 1.
    pub loss: f64,
    /// Chance that a frame comes twice.
    pub duplicate: f64,
    /// Chance that a frame is overtaken by those behind it.
    pub reorder: f64,
    /// Bytes a second; nothing: as fast as it goes.
    pub bandwidth: Option<u64>,
    /// Longer frames are lost without a word; nothing: all pass.
    pub frame_max: Option<usize>,
}

impl Link {
    /// A line that nothing passes.
    pub const CUT: Self = Self {
        cut: true,
        delay: Duration::ZERO,
        jitter: Duration::ZERO,
        loss: 0.0,
        duplicate: 0.0,
        reorder: 0.0,
        bandwidth: None,
        frame_max: None,
    };

    /// A line that is only slow.
    pub fn delayed(delay: Duration) -> Self {
        Self { delay, ..Self::default() }
    }
}

/// A line and what it has to remember.
#[derive(Debug, Clone, Copy, Default)]
pub(crate) struct Line {
    pub(crate) link: Link,
    /// When the wire is free again, ns.
    free_at: u64,
    /// When the last frame that kept its place comes out, ns.
    last_due: u64,
}

/// When a frame and its copy come out, ns; nothing: lost.
pub(crate) type Arrivals = [Option<u64>; 2];

impl Line {
    pub(crate) fn admit(&mut self, now: u64, bytes: usize, rng: &dyn Rng) -> Arrivals {
        let link = self.link;
        let is_long = link.frame_max.is_some_and(|max| bytes > max);
        if link.cut || is_long || chance(link.loss, rng) {
            return [None, None];
        }
        let mut start = now;
        if let Some(bandwidth) = link.bandwidth {
            let free = self.free_at.max(now);
            if free - now > nanos(BACKLOG_MAX) {
                return [None, None];
            }
            let takes = (bytes as u64).saturating_mul(1_000_000_000) / bandwidth.max(1);
            start = free.saturating_add(takes);
            self.free_at = start;
        }
        let jitter = rng.below(nanos(link.jitter).saturating_add(1));
        let plain = start.saturating_add(nanos(link.delay)).saturating_add(jitter);
        let due = if chance(link.reorder, rng) {
            plain.saturating_add(nanos(REORDER_HOLD))
        } else {
            self.last_due = plain.max(self.last_due);
            self.last_due
        };
        [Some(due), chance(link.duplicate, rng).then_some(due)]
    }
}

fn chance(of: f64, rng: &dyn Rng) -> bool {
    // No dice for what cannot happen: faults that are off change nobody's seed.
    #[expect(clippy::cast_precision_loss, reason = "a million is exact")]
    let limit = of * SIDES as f64;
    #[expect(clippy::cast_precision_loss, reason = "below a million")]
    let thrown = |rng: &dyn Rng| rng.below(SIDES) as f64;
    of > 0.0 && thrown(rng) < limit
}

fn nanos(duration: Duration) -> u64 {
    u64::try_from(duration.as_nanos()).unwrap_or(u64::MAX)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;
    use warren_base::rng::SeededRng;

    use super::*;

    const MS: u64 = 1_000_000;

    /// Frames of 1000 bytes at the given milliseconds; when they come out, `-` for lost.
    #[track_caller]
    fn check(link: Link, at_ms: &[u64], expected: &str) {
        let rng = SeededRng::new(1);
        let mut line = Line { link, ..Line::default() };
        let word = |at: &u64| match line.admit(at * MS, 1000, &rng) {
            [None, _] => "-".to_owned(),
            [Some(due), None] => (due / MS).to_string(),
            [Some(first), Some(second)] => format!("{}+{}", first / MS, second / MS),
        };
        let got: Vec<String> = at_ms.iter().map(word).collect();
        assert_eq!(got.join(" "), expected, "{link:?}");
    }

    #[test]
    fn lines() {
        let ms = Duration::from_millis;
        check(Link::default(), &[0, 1, 2], "0 1 2");
        check(Link::CUT, &[0, 1], "- -");
        check(Link::delayed(ms(50)), &[0, 1], "50 51");
        check(Link { loss: 1.0, ..Link::default() }, &[0], "-");
        check(Link { duplicate: 1.0, ..Link::default() }, &[3], "3+3");
        check(Link { frame_max: Some(1000), ..Link::default() }, &[3], "3");
        check(Link { frame_max: Some(999), ..Link::default() }, &[3], "-");
        check(Link { reorder: 1.0, ..Link::default() }, &[3], "13");
        // 1000 bytes take 100 ms; the seventh would wait for longer than half a second.
        let narrow = Link { bandwidth: Some(10_000), ..Link::default() };
        check(narrow, &[0; 8], "100 200 300 400 500 600 - -");
        check(narrow, &[0, 500], "100 600");
    }

    #[test]
    fn chances_are_as_told() {
        let rng = SeededRng::new(7);
        let mut line = Line { link: Link { loss: 0.25, ..Link::default() }, ..Line::default() };
        let lost = (0..100_000).filter(|at| line.admit(*at, 60, &rng)[0].is_none()).count();
        assert!((24_000..26_000).contains(&lost), "{lost}");
    }

    proptest! {
        /// Nothing comes out before it went in; without reordering nothing overtakes.
        #[test]
        fn order_and_causality(
            seed: u64, delay in 0u64..50, jitter in 0u64..50, reorder in prop::bool::ANY,
            gaps in prop::collection::vec(0u64..20, 1..50),
        ) {
            let rng = SeededRng::new(seed);
            let link = Link {
                delay: Duration::from_millis(delay), jitter: Duration::from_millis(jitter),
                reorder: if reorder { 0.3 } else { 0.0 }, ..Link::default()
            };
            let mut line = Line { link, ..Line::default() };
            let (mut now, mut last) = (0, 0);
            for gap in gaps {
                now += gap * MS;
                let due = line.admit(now, 100, &rng)[0].expect("nothing is lost");
                prop_assert!(due >= now + delay * MS);
                if !reorder {
                    prop_assert!(due >= last);
                    prop_assert!(due <= last.max(now + (delay + jitter) * MS));
                }
                last = due;
            }
        }
    }
}
