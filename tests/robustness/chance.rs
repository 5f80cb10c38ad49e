//! Choices made from a seed (SplitMix64).

use std::cell::Cell;

use sessiond::session::Token;

pub struct Chance(u64);

impl Chance {
    pub fn of(seed: u64) -> Self {
        Chance(seed)
    }

    /// The one of this name, whoever asks for it and when.
    pub fn named(seed: u64, name: &str) -> Self {
        let of_name = name
            .bytes()
            .fold(0xcbf2_9ce4_8422_2325_u64, |hash, byte| (hash ^ u64::from(byte)).wrapping_mul(0x0000_0100_0000_01b3));
        Chance(Chance(seed).number() ^ of_name)
    }

    /// Another one, which chooses on its own.
    pub fn split(&mut self) -> Self {
        Chance(self.number())
    }

    fn number(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mixed = (self.0 ^ (self.0 >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        let mixed = (mixed ^ (mixed >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        mixed ^ (mixed >> 31)
    }

    /// A token in the server's form, and by its id the partition of its session.
    pub fn token(&mut self) -> String {
        let chance = Cell::new(Chance(self.number()));
        let fill = |bytes: &mut [u8]| {
            let mut here = chance.replace(Chance(0));
            bytes.chunks_mut(8).for_each(|chunk| chunk.copy_from_slice(&here.number().to_le_bytes()[..chunk.len()]));
            chance.set(here);
        };
        Token::generate(fill).reveal()
    }

    pub fn below(&mut self, limit: usize) -> usize {
        (self.number() % limit as u64) as usize
    }

    /// Once in so many times.
    pub fn once_in(&mut self, times: usize) -> bool {
        self.below(times) == 0
    }

    pub fn of_these<T: Copy>(&mut self, choices: &[T]) -> T {
        choices[self.below(choices.len())]
    }
}
