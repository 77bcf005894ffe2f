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
    hasher.flush();
    u128::from(hasher.one) << 64 | u128::from(hasher.two)
}

/// The print of a value that can only be shown.
pub(crate) fn print_of_shown(value: &impl Debug) -> Print {
    print_of(&format!("{value:?}"))
}

/// Two independent mixes of what is written. Small numbers, of which states consist, are mixed several at once: a value's
/// type says how wide each of them is, so different values never make the same words.
#[derive(Clone, Copy)]
pub(crate) struct Mixer {
    one: u64,
    two: u64,
    held: u64,
    held_bits: u32,
}

impl Default for Mixer {
    fn default() -> Self {
        Self {
            one: 0x9e37_79b9_7f4a_7c15,
            two: 0xd1b5_4a32_d192_ed03,
            held: 0,
            held_bits: 0,
        }
    }
}

impl Mixer {
    fn push(&mut self, word: u64, bits: u32) {
        if self.held_bits + bits > u64::BITS {
            self.flush();
        }
        self.held |= word << self.held_bits;
        self.held_bits += bits;
    }

    fn flush(&mut self) {
        let word = self.held;
        let one = u128::from(self.one ^ word).wrapping_mul(0xa076_1d64_78bd_642f_e703_7ed1_a0b4_28db);
        let two = u128::from(self.two ^ word).wrapping_mul(0x8ebc_6af0_9c88_c6e3_5899_65cc_7537_4cc3);
        self.one = (one >> 64) as u64 ^ one as u64;
        self.two = (two >> 64) as u64 ^ (two as u64).rotate_left(23);
        (self.held, self.held_bits) = (0, 0);
    }
}

impl Hasher for Mixer {
    fn write(&mut self, bytes: &[u8]) {
        for chunk in bytes.chunks(8) {
            let mut word = [0; 8];
            word[..chunk.len()].copy_from_slice(chunk);
            self.write_u64(u64::from_le_bytes(word));
        }
        self.write_usize(bytes.len());
    }

    fn write_u8(&mut self, word: u8) {
        self.push(word.into(), u8::BITS);
    }

    fn write_u32(&mut self, word: u32) {
        self.push(word.into(), u32::BITS);
    }

    fn write_u64(&mut self, word: u64) {
        self.push(word, u64::BITS);
    }

    fn write_usize(&mut self, word: usize) {
        self.write_u64(word as u64);
    }

    /// What tells the variants of an enumeration apart.
    fn write_isize(&mut self, word: isize) {
        match u8::try_from(word) {
            Ok(small) if small < u8::MAX => self.write_u8(small),
            _ => {
                self.write_u8(u8::MAX);
                self.write_u64(word as u64);
            }
        }
    }

    fn finish(&self) -> u64 {
        let mut last = *self;
        last.flush();
        last.one
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
