//! Values by number: equal ones have the same, so a state of the search is a few numbers.

use std::collections::HashMap;
use std::fmt::Debug;
use std::hash::{BuildHasherDefault, Hash, Hasher};

/// 128 bits of a value: two different ones that share them are not to be expected in any search that ends.
pub(crate) type Print = u128;

/// The print of a value.
pub(crate) fn print_of(value: &impl Hash) -> Print {
    let mut hasher = Mixer::default();
    value.hash(&mut hasher);
    u128::from(hasher.0) << 64 | u128::from(hasher.1)
}

/// The print of a value that can only be shown.
pub(crate) fn print_of_shown(value: &impl Debug) -> Print {
    print_of(&format!("{value:?}"))
}

/// Two independent mixes of what is written.
pub(crate) struct Mixer(u64, u64);

impl Default for Mixer {
    fn default() -> Self {
        Self(0x9e37_79b9_7f4a_7c15, 0xd1b5_4a32_d192_ed03)
    }
}

impl Mixer {
    fn mix(&mut self, word: u64) {
        let one = u128::from(self.0 ^ word).wrapping_mul(0xa076_1d64_78bd_642f_e703_7ed1_a0b4_28db);
        let two = u128::from(self.1 ^ word).wrapping_mul(0x8ebc_6af0_9c88_c6e3_5899_65cc_7537_4cc3);
        self.0 = (one >> 64) as u64 ^ one as u64;
        self.1 = (two >> 64) as u64 ^ (two as u64).rotate_left(23);
    }
}

impl Hasher for Mixer {
    fn write(&mut self, bytes: &[u8]) {
        for chunk in bytes.chunks(8) {
            let mut word = [0; 8];
            word[..chunk.len()].copy_from_slice(chunk);
            self.mix(u64::from_le_bytes(word));
        }
        self.mix(bytes.len() as u64);
    }

    fn write_u8(&mut self, word: u8) {
        self.mix(u64::from(word));
    }

    fn write_u32(&mut self, word: u32) {
        self.mix(u64::from(word));
    }

    fn write_u64(&mut self, word: u64) {
        self.mix(word);
    }

    fn write_usize(&mut self, word: usize) {
        self.mix(word as u64);
    }

    fn finish(&self) -> u64 {
        self.0
    }
}

/// A map whose keys are mixed quickly.
pub(crate) type Map<K, V> = HashMap<K, V, BuildHasherDefault<Mixer>>;

/// Values by number, from 1 on: 0 is for none.
pub(crate) struct Interner<T> {
    values: Vec<T>,
    ids: Map<Print, u32>,
}

impl<T> Default for Interner<T> {
    fn default() -> Self {
        Self {
            values: Vec::new(),
            ids: Map::default(),
        }
    }
}

impl<T: Debug> Interner<T> {
    /// The number of a value.
    pub(crate) fn id(&mut self, value: T) -> u32 {
        let print = print_of_shown(&value);
        let next = u32::try_from(self.values.len() + 1).unwrap();
        let id = *self.ids.entry(print).or_insert(next);
        if id == next {
            self.values.push(value);
        }
        id
    }

    /// The value of a number.
    pub(crate) fn get(&self, id: u32) -> &T {
        &self.values[id as usize - 1]
    }

    /// How many there are.
    pub(crate) fn len(&self) -> usize {
        self.values.len()
    }
}
