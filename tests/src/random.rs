//! Numbers that look random and repeat: xorshift64* (Vigna, "An experimental exploration of Marsaglia's xorshift
//! generators, scrambled"). It owns nothing but its state. It is no source of secrets.

/// A generator; the seed says it all.
#[derive(Clone, Debug)]
pub struct Random(u64);

impl Random {
    #[must_use]
    pub fn new(seed: u64) -> Self {
        // Zero is the one state that stays where it is.
        Self(seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1)
    }

    /// Another one each run; the seed is printed, so that a failure can be repeated.
    #[must_use]
    pub fn seeded_by_time() -> Self {
        let now = std::time::UNIX_EPOCH.elapsed().map_or(1, |since| since.as_nanos());
        let seed = u64::try_from(now & u128::from(u64::MAX)).expect("masked to 64 bits");
        eprintln!("random seed {seed}");
        Self::new(seed)
    }

    pub fn word(&mut self) -> u64 {
        self.0 ^= self.0 >> 12;
        self.0 ^= self.0 << 25;
        self.0 ^= self.0 >> 27;
        self.0.wrapping_mul(0x2545_f491_4f6c_dd1d)
    }

    /// From 0 to `limit` - 1.
    pub fn below(&mut self, limit: u64) -> u64 {
        self.word() % limit
    }

    pub fn bytes(&mut self, count: usize) -> Vec<u8> {
        let words = std::iter::repeat_with(|| self.word().to_le_bytes());
        words.take(count.div_ceil(8)).flatten().take(count).collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_same_seed_gives_the_same_bytes() {
        assert_eq!(Random::new(7).bytes(100), Random::new(7).bytes(100));
        assert_ne!(Random::new(7).bytes(100), Random::new(8).bytes(100));
        assert_eq!(Random::new(0).bytes(13).len(), 13);
    }
}
