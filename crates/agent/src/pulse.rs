//! Whether the manager at the other end of a session is still there.
//!
//! Pure. The agent sends numbered beats and the manager answers each; what else
//! it sends is a sign of life as well. Silence for [`Pulse::limit_ms`] ends the
//! session. Round trips are measured from beat to answer and smoothed.
//!
//! A session that follows failures begins with more patience, since what comes
//! first may be large and the line slow. Answers show that it came through: from
//! then on silence means what it always does.
//!
//! A node that was itself asleep (stopped, swapped, its machine paused) has
//! heard nothing because it did not listen: it listens once more before it
//! judges.

use std::collections::VecDeque;

use crate::route::SILENCE_MS;

/// Waking so much later than was asked for means that this process did not run.
const ASLEEP_MS: u64 = 500;
/// Beats without an answer that are remembered; the session is given up long before.
const WAITING_MAX: usize = 64;
/// The first answer may have been on its way before what is large was; the second came behind it.
const ANSWERS_PROVEN: u32 = 2;
/// Of a manager that named none.
pub(crate) const BEAT_MS: u64 = 500;
/// Faster than this costs managers more than it tells them.
const BEAT_MIN_MS: u64 = 50;

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Look {
    Wait,
    Beat { number: u64, rtt_ms: u32 },
    Silent { for_ms: u64 },
}

/// An answer to a beat.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Answer {
    /// When the beat was sent: the manager knows of us since no earlier.
    pub(crate) sent_ms: u64,
    /// Earlier beats that were never answered.
    pub(crate) missed: u64,
    /// Of this beat alone.
    pub(crate) took_ms: u64,
}

#[derive(Debug)]
pub(crate) struct Pulse {
    beat_ms: u64,
    patience_ms: u64,
    next_ms: u64,
    heard_ms: u64,
    number: u64,
    waiting: VecDeque<(u64, u64)>,
    /// Answers, as far as they matter.
    answers: u32,
    rtt_ms: Option<u64>,
}

impl Pulse {
    /// `patience_ms` holds until the session has proven itself.
    pub(crate) fn new(beat_ms: u64, patience_ms: u64, now_ms: u64) -> Self {
        Self {
            beat_ms: beat_ms.max(BEAT_MIN_MS),
            patience_ms,
            next_ms: now_ms,
            heard_ms: now_ms,
            number: 0,
            waiting: VecDeque::new(),
            answers: 0,
            rtt_ms: None,
        }
    }

    /// Managers want beats at another pace.
    pub(crate) fn set_beat_ms(&mut self, beat_ms: u64, now_ms: u64) {
        self.beat_ms = beat_ms.max(BEAT_MIN_MS);
        self.next_ms = self.next_ms.min(now_ms.saturating_add(self.beat_ms));
    }

    /// The smoothed round trip; 0 until measured.
    pub(crate) fn rtt_ms(&self) -> u32 {
        u32::try_from(self.rtt_ms.unwrap_or(0)).unwrap_or(u32::MAX)
    }

    /// Beats without an answer.
    pub(crate) fn unanswered(&self) -> u64 {
        self.waiting.len() as u64
    }

    /// A beat may get lost in the crowd, two are no accident; a long line takes its time.
    fn limit_ms(&self) -> u64 {
        let slow = self.rtt_ms.unwrap_or(0).saturating_mul(3);
        self.patience_ms.max(self.beat_ms.saturating_mul(2)).max(slow)
    }

    /// When to look again.
    pub(crate) fn wake_ms(&self) -> u64 {
        self.next_ms.min(self.heard_ms.saturating_add(self.limit_ms()))
    }

    /// What to do now.
    pub(crate) fn look(&mut self, now_ms: u64) -> Look {
        if now_ms > self.wake_ms().saturating_add(ASLEEP_MS) {
            self.heard_ms = now_ms;
        }
        let for_ms = now_ms.saturating_sub(self.heard_ms);
        if for_ms >= self.limit_ms() {
            return Look::Silent { for_ms };
        }
        if now_ms < self.next_ms {
            return Look::Wait;
        }
        self.next_ms = now_ms.saturating_add(self.beat_ms);
        self.number += 1;
        if self.waiting.len() >= WAITING_MAX {
            self.waiting.pop_front();
        }
        self.waiting.push_back((self.number, now_ms));
        Look::Beat { number: self.number, rtt_ms: self.rtt_ms() }
    }

    /// Something came.
    pub(crate) fn heard(&mut self, now_ms: u64) {
        self.heard_ms = now_ms;
    }

    /// An answer came; one to no beat of ours is nothing.
    pub(crate) fn answered(&mut self, number: u64, now_ms: u64) -> Option<Answer> {
        let at = self.waiting.iter().position(|(waiting, _)| *waiting == number)?;
        let missed = at as u64;
        let (_, sent_ms) = self.waiting.drain(..=at).next_back()?;
        let took_ms = now_ms.saturating_sub(sent_ms);
        self.answers = self.answers.saturating_add(1);
        if self.answers >= ANSWERS_PROVEN {
            self.patience_ms = self.patience_ms.min(SILENCE_MS);
        }
        // As TCP does: an eighth of the new.
        self.rtt_ms = Some(match self.rtt_ms {
            None => took_ms,
            Some(before) => (before.saturating_mul(7).saturating_add(took_ms) + 4) / 8,
        });
        Some(Answer { sent_ms, missed, took_ms })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// `@MS` looks then (and prints), `aN` answer N, `h` something else came, `/MS` another pace.
    #[track_caller]
    fn check(beat_ms: u64, words: &str, expected: &str) {
        check_with(beat_ms, 1000, words, expected);
    }

    #[track_caller]
    fn check_with(beat_ms: u64, patience_ms: u64, words: &str, expected: &str) {
        let mut pulse = Pulse::new(beat_ms, patience_ms, 0);
        let (mut now, mut out) = (0, Vec::new());
        for word in words.split_whitespace() {
            match word.split_at(1) {
                ("@", at) => {
                    now = at.parse().unwrap();
                    out.push(match pulse.look(now) {
                        Look::Wait => format!("wait:{}", pulse.wake_ms()),
                        Look::Beat { number, rtt_ms } => format!("beat{number}({rtt_ms})"),
                        Look::Silent { for_ms } => format!("silent:{for_ms}"),
                    });
                }
                ("+", ms) => now += ms.parse::<u64>().unwrap(),
                ("a", number) => {
                    if let Some(answer) = pulse.answered(number.parse().unwrap(), now) {
                        pulse.heard(now);
                        out.push(format!("{}-{}", answer.sent_ms, answer.missed));
                    }
                }
                ("h", _) => pulse.heard(now),
                (_, ms) => pulse.set_beat_ms(ms.parse().unwrap(), now),
            }
        }
        assert_eq!(out.join(" "), expected);
    }

    #[test]
    fn beats_go_at_their_pace_and_silence_ends_it() {
        check(
            500,
            "@0 +1 a1 @500 @900 @1000 @1001",
            "beat1(0) 0-0 beat2(1) wait:1000 beat3(1) silent:1000",
        );
        check(500, "@0 @500 @999 @1000", "beat1(0) beat2(0) wait:1000 silent:1000");
    }

    #[test]
    fn anything_is_a_sign_of_life_and_strangers_are_not() {
        check(
            500,
            "@0 @500 h @1000 @1499 @1500",
            "beat1(0) beat2(0) beat3(0) wait:1500 silent:1000",
        );
        check(500, "@0 a7 a1 a1", "beat1(0) 0-0");
    }

    #[test]
    fn a_long_line_and_a_slow_pace_have_more_time() {
        check(
            500,
            "@0 @500 +300 a1 @1000 +300 a2 @1500 @2000 @2500 @3000 @3500",
            "beat1(0) beat2(0) 0-0 beat3(800) 500-0 beat4(800) beat5(800) beat6(800) beat7(800) \
             beat8(800)",
        );
        check(
            2000,
            "@0 +1 a1 @1500 @2000 @4000 @4001",
            "beat1(0) 0-0 wait:2000 beat2(1) beat3(1) silent:4000",
        );
    }

    #[test]
    fn patience_after_failures_ends_with_answers() {
        check_with(
            500,
            8000,
            "@0 +1 a1 h @500 +1 a2 @1000 @1500 @1501",
            "beat1(0) 0-0 beat2(1) 500-0 beat3(1) beat4(1) silent:1000",
        );
        check_with(
            500,
            4000,
            "@0 +1 a1 @500 @1000 @1500 @2000 @2500 @3000 @3500 @4000 @4001",
            "beat1(0) 0-0 beat2(1) beat3(1) beat4(1) beat5(1) beat6(1) beat7(1) beat8(1) \
             beat9(1) silent:4000",
        );
    }

    #[test]
    fn missed_ones_are_counted() {
        check(400, "@0 @400 @800 a3 @1200", "beat1(0) beat2(0) beat3(0) 800-2 beat4(0)");
    }

    #[test]
    fn who_slept_listens_once_more() {
        check(
            500,
            "@0 a1 @9000 @9500 @9999 @10000",
            "beat1(0) 0-0 beat2(0) beat3(0) wait:10000 silent:1000",
        );
    }

    #[test]
    fn another_pace() {
        check(500, "@0 /100 @100 @150", "beat1(0) beat2(0) wait:200");
        check(500, "@0 /1 @50", "beat1(0) beat2(0)");
    }

    #[test]
    fn unanswered_beats_do_not_pile_up() {
        let mut pulse = Pulse::new(50, u64::MAX / 2, 0);
        for at in 0..200 {
            pulse.look(at * 50);
        }
        assert_eq!(pulse.unanswered(), WAITING_MAX as u64);
    }
}
