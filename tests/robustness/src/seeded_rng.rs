//! Random choices from a seed (SplitMix64).

use std::cell::Cell;

use sessiond::session::Token;

/// Generator of random numbers: equal seeds generate equal numbers.
pub struct SeededRng(u64);

impl SeededRng {
    /// Returns the generator for this seed.
    pub fn from_seed(seed: u64) -> Self {
        SeededRng(seed)
    }

    /// Returns the generator for this seed and name, independent of the order of requests.
    pub fn for_name(seed: u64, name: &str) -> Self {
        let name_hash = name
            .bytes()
            .fold(0xcbf2_9ce4_8422_2325_u64, |hash, byte| (hash ^ u64::from(byte)).wrapping_mul(0x0000_0100_0000_01b3));
        SeededRng(SeededRng(seed).next_u64() ^ name_hash)
    }

    /// Returns a generator that is seeded by this one.
    pub fn split(&mut self) -> Self {
        SeededRng(self.next_u64())
    }

    /// Returns a number of 64 bits.
    pub fn next_u64(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mixed = (self.0 ^ (self.0 >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        let mixed = (mixed ^ (mixed >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        mixed ^ (mixed >> 31)
    }

    /// Returns a token in the server's form. Its id selects the partition of its session.
    pub fn token(&mut self) -> String {
        let generator = Cell::new(SeededRng(self.next_u64()));
        let fill = |bytes: &mut [u8]| {
            let mut rng = generator.replace(SeededRng(0));
            bytes.chunks_mut(8).for_each(|chunk| chunk.copy_from_slice(&rng.next_u64().to_le_bytes()[..chunk.len()]));
            generator.set(rng);
        };
        Token::generate(fill).reveal()
    }

    /// Returns a number from 0 to `limit` - 1. `limit` must not be 0.
    pub fn below(&mut self, limit: usize) -> usize {
        (self.next_u64() % limit as u64) as usize
    }

    /// Returns true with a probability of 1 in `times`.
    pub fn one_in(&mut self, times: usize) -> bool {
        self.below(times) == 0
    }

    /// Returns one of the choices. Panics if there is none.
    pub fn choose<T: Copy>(&mut self, choices: &[T]) -> T {
        choices[self.below(choices.len())]
    }
}
