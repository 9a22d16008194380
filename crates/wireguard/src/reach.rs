//! Whether a peer is reached: on the direct way, and by the node in between while there is one.
//!
//! ```text
//! sent, and sent again, nothing heard for 1 s   a handshake, on the way that is used; another
//! nothing for 2 s, nor an answer to either      lost
//! lost                                          a handshake on the direct way, now and then
//! these are answered, on the direct way         reached again
//! ```
//!
//! Only an answered handshake says that both directions work: a peer that is heard need not hear.
//! A peer that was lost several times lately has to answer more often, so that a way that comes and
//! goes is not gone back to each time it comes.
//!
//! Pure. Not here: sending (`timers`), when something was heard (`peer`), who is in between.

/// A stream that is not answered repeats itself sooner.
pub(crate) const SUSPECT_MS: u64 = 1000;
/// Last words need no answer: only who goes on speaking expects one.
const INSIST_MS: u64 = 150;
/// Between handshakes of one silence.
const ASK_MS: u64 = 500;
/// Handshakes of one silence. Answers to the last two are understood, however late.
const ASKS: u32 = 2;
/// A silence of so long, with that many handshakes in it, is no accident.
const LOST_MS: u64 = 2000;
/// The last handshake had this long.
const ANSWER_MS: u64 = 400;
/// Between handshakes on the direct way, doubled each time.
const PROBE_FIRST_MS: u64 = 2000;
/// While others carry what is for the peer: so long a detour lasts at most beyond its cause.
const PROBE_RELAYED_MS: u64 = 10_000;
/// A peer that may be off, and whom a packet for it would find sooner.
const PROBE_ALONE_MS: u64 = 60_000;
/// Between handshakes that have to be answered one after the other.
const CONFIRM_MS: u64 = 2000;
/// Losses within this time count together.
const LATELY_MS: u64 = 600_000;
/// Handshakes that have to be answered: of a first loss, and at most.
const CONFIRMS: u32 = 2;
const CONFIRMS_MAX: u32 = 8;

/// Nothing was heard of a peer since something was sent to it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Silence {
    pub(crate) for_ms: u64,
    /// How long after the first packet that was not answered there still was one.
    pub(crate) insisted_ms: u64,
}

/// A handshake to begin.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Ask {
    Nothing,
    /// On the way that packets take.
    Used,
    /// On the direct way, whatever packets take.
    Direct,
}

#[derive(Debug, Default)]
pub(crate) struct Reach {
    /// The direct way is.
    lost: bool,
    /// That by the node in between is.
    via_lost: bool,
    /// Handshakes of the present silence.
    asked: u32,
    asked_ms: u64,
    /// When the direct way is tried next, and how often it was in vain.
    probe_ms: u64,
    probes: u32,
    /// Answers on the direct way in a row.
    answered: u32,
    losses: u32,
    lost_ms: u64,
}

impl Reach {
    pub(crate) fn is_lost(&self) -> bool {
        self.lost
    }

    pub(crate) fn is_via_lost(&self) -> bool {
        self.via_lost
    }

    /// When [`Reach::look`] is to be asked even if nothing is carried.
    pub(crate) fn probe_at_ms(&self) -> Option<u64> {
        self.lost.then_some(self.probe_ms)
    }

    /// What to ask the peer now; and whether it became lost.
    pub(crate) fn look(
        &mut self,
        silence: Option<Silence>,
        is_relayed: bool,
        now_ms: u64,
    ) -> (Ask, bool) {
        let insists = |s: &Silence| s.for_ms >= SUSPECT_MS && s.insisted_ms >= INSIST_MS;
        let mut became_lost = false;
        match silence.filter(insists) {
            None => self.asked = 0,
            Some(_) if self.asked < ASKS => {
                if self.asked == 0 || now_ms >= self.asked_ms + ASK_MS {
                    (self.asked, self.asked_ms) = (self.asked + 1, now_ms);
                    return (Ask::Used, false);
                }
            }
            Some(silence) => {
                if silence.for_ms >= LOST_MS && now_ms >= self.asked_ms + ANSWER_MS {
                    became_lost = self.lose(is_relayed, now_ms);
                }
            }
        }
        if !self.lost || now_ms < self.probe_ms {
            return (Ask::Nothing, became_lost);
        }
        let pause_ms = PROBE_FIRST_MS << self.probes.min(6);
        let most_ms = if is_relayed { PROBE_RELAYED_MS } else { PROBE_ALONE_MS };
        if self.probes > 0 {
            // The one before was not answered.
            self.answered = 0;
        }
        (self.probe_ms, self.probes) = (now_ms + pause_ms.min(most_ms), self.probes + 1);
        (Ask::Direct, became_lost)
    }

    fn lose(&mut self, is_relayed: bool, now_ms: u64) -> bool {
        if is_relayed {
            return !std::mem::replace(&mut self.via_lost, true);
        }
        if self.lost {
            return false;
        }
        let lately = self.losses > 0 && now_ms < self.lost_ms + LATELY_MS;
        self.losses = if lately { self.losses + 1 } else { 1 };
        self.lost_ms = now_ms;
        self.begin_to_probe(now_ms);
        true
    }

    fn begin_to_probe(&mut self, now_ms: u64) {
        self.lost = true;
        (self.probes, self.answered) = (0, 0);
        self.probe_ms = now_ms + PROBE_FIRST_MS;
    }

    /// It answered a handshake. Says whether something is reached that was lost.
    pub(crate) fn answered(&mut self, directly: bool, now_ms: u64) -> bool {
        if !directly {
            return std::mem::replace(&mut self.via_lost, false);
        }
        if !self.lost {
            return false;
        }
        self.answered += 1;
        if self.answered < CONFIRMS.saturating_mul(self.losses.max(1)).min(CONFIRMS_MAX) {
            self.probe_ms = now_ms + CONFIRM_MS;
            self.probes = 0;
            return false;
        }
        self.lost = false;
        true
    }

    /// Packets take another way from now on. A node in between is there because the direct way does
    /// not work, whoever found that out. Says whether something else is known now.
    pub(crate) fn turn(&mut self, is_relayed: bool, now_ms: u64) -> bool {
        let moved = std::mem::replace(&mut self.via_lost, false);
        self.asked = 0;
        if is_relayed && !self.lost {
            self.begin_to_probe(now_ms);
            return true;
        }
        // What took long between attempts that cost nobody anything may be quicker now.
        self.probe_ms = self.probe_ms.min(now_ms + PROBE_FIRST_MS);
        moved
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Looks every 500 ms. Words: `s` a packet is sent (not answered), `h` something is heard,
    /// `v` by way of another, `d` directly, `a` an answer of the direct way, `b` one by the other
    /// node, `.` nothing. Shown: `?` asked on the used way, `!` on the direct one, `L` lost, `U`
    /// reached again.
    fn shown(words: &str) -> String {
        let (mut reach, mut now, mut out) = (Reach::default(), 10_000, String::new());
        let (mut awaiting, mut wanted, mut is_relayed) = (None, 0, false);
        for word in words.chars() {
            match word {
                's' => {
                    awaiting = awaiting.or(Some(now));
                    wanted = now;
                }
                'h' => awaiting = None,
                'v' | 'd' => {
                    (is_relayed, awaiting) = (word == 'v', None);
                    reach.turn(is_relayed, now);
                }
                'a' | 'b' => {
                    if reach.answered(word == 'a', now) {
                        out.push('U');
                    }
                    continue;
                }
                _ => {}
            }
            let silence = awaiting.map(|at| Silence { for_ms: now - at, insisted_ms: wanted - at });
            let (ask, lost) = reach.look(silence, is_relayed, now);
            if lost {
                out.push('L');
            }
            out.push(match ask {
                Ask::Nothing => '.',
                Ask::Used => '?',
                Ask::Direct => '!',
            });
            now += 500;
        }
        out
    }

    #[test]
    fn who_insists_and_is_not_answered_finds_out() {
        assert_eq!(shown("shshsh"), "......");
        assert_eq!(shown("ssssss"), "..??L..");
        // Last words.
        assert_eq!(shown("s......."), "........");
        // An answer in time.
        assert_eq!(shown("ssssh..."), "..??....");
    }

    #[test]
    fn the_direct_way_is_tried_with_growing_pauses() {
        let found = shown(&format!("sssss{}", ".".repeat(60)));
        let at: Vec<usize> =
            found.replace('L', "").match_indices('!').map(|(at, _)| at / 2).collect();
        assert_eq!(at, [4, 6, 10, 18]);
        let found = shown(&format!("sssssv{}", ".".repeat(90)));
        let at: Vec<usize> =
            found.replace('L', "").match_indices('!').map(|(at, _)| at / 2).collect();
        assert_eq!(at, [4, 6, 10, 18, 28, 38]);
    }

    #[test]
    fn it_is_reached_again_once_it_answered_twice() {
        assert_eq!(shown("sssss....ah.....a."), "..??L....!....!.U.");
        // Each loss asks for more.
        let mut reach = Reach::default();
        let mut needed = Vec::new();
        for round in 0..6 {
            let now = 100_000 + round * 10_000;
            assert!(reach.lose(false, now));
            let mut answers = 1;
            while !reach.answered(true, now) {
                answers += 1;
            }
            needed.push(answers);
        }
        assert_eq!(needed, [2, 4, 6, 8, 8, 8]);
        assert!(reach.lose(false, 10_000_000));
        assert!(!reach.answered(true, 10_000_000) && reach.answered(true, 10_000_000));
    }

    #[test]
    fn the_way_by_another_is_watched_as_well() {
        // It was told of the other node, and knows by that that the direct way is lost.
        let mut reach = Reach::default();
        assert!(reach.turn(true, 1000));
        assert!(reach.is_lost() && !reach.turn(true, 1000));
        let silence = |for_ms| Some(Silence { for_ms, insisted_ms: 900 });
        assert_eq!(reach.look(silence(1000), true, 2000), (Ask::Used, false));
        assert_eq!(reach.look(silence(1500), true, 2500), (Ask::Used, false));
        assert_eq!(reach.look(silence(2000), true, 3000), (Ask::Direct, true));
        assert!(reach.is_via_lost());
        assert!(reach.answered(false, 3100) && !reach.is_via_lost() && reach.is_lost());
    }
}
