//! Randomness as a dependency: the system's, and a seeded one for simulations.

use std::sync::{Mutex, PoisonError};

/// A source of random bytes.
pub trait Rng: Send + Sync + 'static {
    fn fill(&self, out: &mut [u8]);

    /// Ten bytes: an id of the model.
    fn id_bytes(&self) -> [u8; 10] {
        let mut bytes = [0; 10];
        self.fill(&mut bytes);
        bytes
    }

    fn next_u64(&self) -> u64 {
        let mut bytes = [0; 8];
        self.fill(&mut bytes);
        u64::from_le_bytes(bytes)
    }

    /// Uniform enough in `0..bound` for jitter and choice; 0 for a bound of 0.
    fn below(&self, bound: u64) -> u64 {
        let wide = u128::from(self.next_u64()) * u128::from(bound);
        u64::try_from(wide >> 64).unwrap_or(0)
    }
}

/// Cryptographically secure, from the system: getrandom(2), which the kernel keeps seeded.
///
/// Not the TLS library's generator: its first call in a process spends 25 to 50 ms of CPU on
/// entropy of its own, more than everything else that a command does.
#[derive(Debug, Default, Clone, Copy)]
pub struct SystemRng;

impl Rng for SystemRng {
    fn fill(&self, out: &mut [u8]) {
        // Fails only without getrandom(2), which every kernel we support has; going on with
        // predictable keys would be worse than stopping.
        getrandom::fill(out).expect("the system's random source answers");
    }
}

/// Deterministic: the same seed gives the same bytes. Never for keys.
///
/// SplitMix64 (Steele, Lea, Flood: "Fast splittable pseudorandom number generators", 2014).
#[derive(Debug)]
pub struct SeededRng {
    state: Mutex<u64>,
}

impl SeededRng {
    pub fn new(seed: u64) -> Self {
        Self { state: Mutex::new(seed) }
    }
}

impl Rng for SeededRng {
    fn fill(&self, out: &mut [u8]) {
        let mut state = self.state.lock().unwrap_or_else(PoisonError::into_inner);
        for chunk in out.chunks_mut(8) {
            *state = state.wrapping_add(0x9e37_79b9_7f4a_7c15);
            let mut z = *state;
            z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
            z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
            z ^= z >> 31;
            chunk.copy_from_slice(&z.to_le_bytes()[..chunk.len()]);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn seeds_repeat_and_differ() {
        let draw = |seed| SeededRng::new(seed).id_bytes();
        assert_eq!(draw(7), draw(7));
        assert_ne!(draw(7), draw(8));
        assert_ne!(SystemRng.id_bytes(), SystemRng.id_bytes());
        let rng = SeededRng::new(1);
        assert!((0..1000).all(|_| rng.below(10) < 10));
        assert_eq!(rng.below(0), 0);
    }
}
