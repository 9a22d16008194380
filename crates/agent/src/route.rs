//! Which manager to try next.
//!
//! Pure. Managers are taken in a random order that each node draws for itself,
//! so that thousands spread; the one in this process comes first while it has a
//! leader. One that failed is passed over for a while. A round ends when all
//! were tried; only then is there a pause, and it grows with every round that
//! brought nothing.
//!
//! Not here: how a manager is reached, when a session is dead (`pulse`).

use std::fmt;

use crate::restart::doubled;

/// A manager that restarts is back within tens of milliseconds: try soon.
const PAUSE_FIRST_MS: u64 = 20;
/// Thousands of nodes must not storm a manager that comes back, nor miss it for long.
const PAUSE_MAX_MS: u64 = 5_000;
/// How long a manager that failed is the last to be tried; by then a restart is over.
const PENALTY_MS: u64 = 10_000;
/// A manager that is silent for so long is given up.
pub(crate) const SILENCE_MS: u64 = 1_000;
/// Rounds without success double the patience this often: on a slow line a large set takes a
/// while, and giving up each time would be for ever.
const PATIENCE_DOUBLINGS_MAX: u32 = 3;
/// A handshake takes a few round trips, whatever there is to be sent afterwards; managers that are
/// off must not make a round long.
pub(crate) const CONNECT_MAX_MS: u64 = 4_000;
/// Seven voters at most, and some room; a list without end is somebody's mistake.
pub const MANAGERS_MAX: usize = 64;

/// Where a manager is.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum ManagerAddress {
    /// In this process.
    Local,
    /// `host:port`.
    Remote(String),
}

impl fmt::Display for ManagerAddress {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Local => f.write_str("this node"),
            Self::Remote(address) => f.write_str(address),
        }
    }
}

/// The manager in this process.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum LocalManager {
    /// This node is none.
    Absent,
    /// It knows of no leader: good for nothing now.
    Leaderless,
    /// It has a leader, or is one.
    Led,
}

#[derive(Debug)]
struct Candidate {
    address: ManagerAddress,
    order: u64,
    bad_until_ms: u64,
    tried: bool,
}

#[derive(Debug)]
pub(crate) struct Route {
    candidates: Vec<Candidate>,
    /// Rounds in a row that brought nothing.
    rounds: u32,
}

impl Route {
    /// `draw` gives random numbers.
    pub(crate) fn new(addresses: &[String], draw: impl FnMut() -> u64) -> Self {
        let local =
            Candidate { address: ManagerAddress::Local, order: 0, bad_until_ms: 0, tried: false };
        let mut route = Self { candidates: vec![local], rounds: 0 };
        route.set(addresses, draw);
        route
    }

    /// The managers are these now; what is known of one that stays is kept.
    pub(crate) fn set(&mut self, addresses: &[String], mut draw: impl FnMut() -> u64) {
        self.candidates.retain(|known| match &known.address {
            ManagerAddress::Local => true,
            ManagerAddress::Remote(address) => addresses.contains(address),
        });
        for address in addresses.iter().take(MANAGERS_MAX) {
            let address = ManagerAddress::Remote(address.clone());
            if self.candidates.iter().all(|known| known.address != address) {
                let order = draw();
                self.candidates.push(Candidate { address, order, bad_until_ms: 0, tried: false });
            }
        }
    }

    /// The next of this round; `None` when it is over.
    pub(crate) fn next(&mut self, local: LocalManager, now_ms: u64) -> Option<ManagerAddress> {
        let may = |candidate: &&mut Candidate| {
            let there = candidate.address != ManagerAddress::Local || local == LocalManager::Led;
            !candidate.tried && there
        };
        let rank = |candidate: &&mut Candidate| {
            let penalty = candidate.bad_until_ms.saturating_sub(now_ms);
            (penalty, candidate.address != ManagerAddress::Local, candidate.order)
        };
        let best = self.candidates.iter_mut().filter(may).min_by_key(rank)?;
        best.tried = true;
        Some(best.address.clone())
    }

    /// A session with it went well for a while: what was is forgotten.
    pub(crate) fn good(&mut self, address: &ManagerAddress) {
        self.rounds = 0;
        for candidate in &mut self.candidates {
            candidate.tried = false;
            if candidate.address == *address {
                candidate.bad_until_ms = 0;
            }
        }
    }

    /// It refused, broke or was silent: others first.
    pub(crate) fn failed(&mut self, address: &ManagerAddress, now_ms: u64) {
        if let Some(known) = self.candidates.iter_mut().find(|known| known.address == *address) {
            known.tried = true;
            known.bad_until_ms = now_ms.saturating_add(PENALTY_MS);
        }
    }

    /// Ends a round; the answer is the longest pause before the next.
    pub(crate) fn end_round(&mut self) -> u64 {
        for candidate in &mut self.candidates {
            candidate.tried = false;
        }
        let most = doubled(PAUSE_FIRST_MS, self.rounds, PAUSE_MAX_MS);
        self.rounds = self.rounds.saturating_add(1);
        most
    }

    /// Rounds in a row that brought nothing.
    pub(crate) fn rounds(&self) -> u32 {
        self.rounds
    }

    /// How long a manager may be silent.
    pub(crate) fn patience_ms(&self) -> u64 {
        SILENCE_MS << self.rounds.min(PATIENCE_DOUBLINGS_MAX)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Managers are letters in the order drawn; `L` is the local one. Words: `?` next, `?0` next
    /// without local leader, `-a` failed, `+a` good, `end` ends a round, `@MS` sets the clock,
    /// `=abc` sets the list.
    #[track_caller]
    fn check(list: &str, words: &str, expected: &str) {
        let names = |list: &str| list.chars().map(String::from).collect::<Vec<_>>();
        let address = |name: &str| match name {
            "L" => ManagerAddress::Local,
            name => ManagerAddress::Remote(name.to_owned()),
        };
        let mut drawn = 0;
        let mut draw = || {
            drawn += 1;
            drawn
        };
        let mut route = Route::new(&names(list), &mut draw);
        let (mut now, mut out) = (0, Vec::new());
        let show = |next: Option<ManagerAddress>| match next {
            None => ".".to_owned(),
            Some(ManagerAddress::Local) => "L".to_owned(),
            Some(ManagerAddress::Remote(name)) => name,
        };
        for word in words.split_whitespace() {
            match word.split_at(1) {
                ("?", "") => out.push(show(route.next(LocalManager::Led, now))),
                ("?", _) => out.push(show(route.next(LocalManager::Leaderless, now))),
                ("-", name) => route.failed(&address(name), now),
                ("+", name) => route.good(&address(name)),
                ("@", ms) => now = ms.parse().unwrap(),
                ("=", list) => route.set(&names(list), &mut draw),
                _ => out.push(format!("{}/{}", route.end_round(), route.patience_ms())),
            }
        }
        assert_eq!(out.join(" "), expected);
    }

    #[test]
    fn all_are_tried_once_a_round_the_local_one_first() {
        check("abc", "? ? ? ? ?", "L a b c .");
        check("abc", "?0 ?0 ?0 ?0", "a b c .");
        check("", "?0 ? ?", ". L .");
    }

    #[test]
    fn who_failed_comes_last_for_a_while() {
        check("abc", "?0 -a ?0 +b ?0 -a @1 -b ?0 ?0", "a b b c .");
        check("abc", "?0 +a -a ?0 ?0 ?0", "a b c .");
        check("abc", "?0 -a end ?0 ?0 ?0", "a 20/2000 b c a");
        check("abc", "?0 -a @10001 end ?0", "a 20/2000 a");
        check("ab", "? -L +a ? ? ?", "L a b L");
    }

    #[test]
    fn rounds_without_success_wait_longer() {
        check(
            "a",
            "end end end end end end end end end end +a end",
            "20/2000 40/4000 80/8000 160/8000 320/8000 640/8000 1280/8000 2560/8000 5000/8000 \
             5000/8000 20/2000",
        );
    }

    #[test]
    fn the_list_changes_and_what_is_known_stays() {
        check("ab", "?0 -a =bac end ?0 ?0 ?0", "a 20/2000 b c a");
        check("ab", "=c ?0 ?0", "c .");
        let many: String = ('a'..='z').chain('A'..='K').collect();
        let list: Vec<String> = (0..200).map(|n| format!("{many}{n}")).collect();
        assert_eq!(Route::new(&list, || 0).candidates.len(), MANAGERS_MAX + 1);
    }
}
