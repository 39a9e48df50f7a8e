//! One fast hash for short byte strings and one for pairs of ids. Deterministic: no random seed,
//! because neither decides an order that anybody can see.

const K0: u64 = 0x9E37_79B9_7F4A_7C15;
const K1: u64 = 0xD6E8_FEB8_6659_FD93;

#[inline(always)]
fn fold(a: u64, b: u64) -> u64 {
    let product = u128::from(a) * u128::from(b);
    (product as u64) ^ ((product >> 64) as u64)
}

#[inline(always)]
fn u64_at(bytes: &[u8], at: usize) -> u64 {
    let mut word = [0u8; 8];
    word.copy_from_slice(&bytes[at..at + 8]);
    u64::from_le_bytes(word)
}

#[inline(always)]
fn u32_at(bytes: &[u8], at: usize) -> u64 {
    let mut word = [0u8; 4];
    word.copy_from_slice(&bytes[at..at + 4]);
    u64::from(u32::from_le_bytes(word))
}

/// Hash of a byte string: overlapping loads and a folded 128-bit product (the wyhash idea).
#[inline]
pub fn hash_bytes(bytes: &[u8]) -> u64 {
    let length = bytes.len();
    let (low, high) = match length {
        0 => (0, 0),
        1..=3 => {
            let first = u64::from(bytes[0]);
            let middle = u64::from(bytes[length / 2]);
            let last = u64::from(bytes[length - 1]);
            (first | middle << 8 | last << 16, 0)
        }
        4..=7 => (u32_at(bytes, 0), u32_at(bytes, length - 4)),
        8..=16 => (u64_at(bytes, 0), u64_at(bytes, length - 8)),
        _ => {
            let mut state = K0;
            let mut at = 0;
            while at + 16 < length {
                state = fold(u64_at(bytes, at) ^ K1, u64_at(bytes, at + 8) ^ state);
                at += 16;
            }
            (u64_at(bytes, length - 16) ^ state, u64_at(bytes, length - 8))
        }
    };
    fold(low ^ K0.wrapping_mul(2 * length as u64 + 1), high ^ K1)
}

/// Hash of two ids packed as `left << 32 | right`.
#[inline(always)]
pub fn hash_pair(pair: u64) -> u64 {
    fold(pair ^ K1, K0)
}

/// Up to 15 bytes and behind them their number: compared and hashed without a loop.
#[derive(Clone, Copy, Default)]
pub struct Key([u8; 16]);

impl PartialEq for Key {
    #[inline(always)]
    fn eq(&self, other: &Self) -> bool {
        u128::from_le_bytes(self.0) == u128::from_le_bytes(other.0) // in registers, not in a loop over bytes
    }
}

impl Key {
    /// Most bytes that a key holds.
    pub const BYTES: usize = 15;

    /// The key of the first `length` bytes of `rest`. Where enough follows them, 16 bytes are one load,
    /// which is much quicker than to copy a few.
    #[inline(always)]
    pub fn of(rest: &[u8], length: usize) -> Self {
        let bytes = if let Some(chunk) = rest.first_chunk::<16>() {
            u128::from_le_bytes(*chunk) & ((1 << (8 * length)) - 1)
        } else {
            let mut chunk = [0; 16];
            chunk[..length].copy_from_slice(&rest[..length]);
            u128::from_le_bytes(chunk)
        };
        Key((bytes | (length as u128) << 120).to_le_bytes())
    }

    /// A key that says something else than bytes: two words, and a last byte above all lengths.
    pub fn other(low: u64, high: u64) -> Self {
        Key((u128::from(low) | u128::from(high) << 64 | 0xFF << 120).to_le_bytes())
    }

    /// The two words of a key made by [`Key::other`], the second without its last byte.
    #[inline(always)]
    pub fn as_other(&self) -> Option<(u64, u64)> {
        let (low, high) = self.words();
        (self.0[15] == 0xFF).then_some((low, high & !(0xFF << 56)))
    }

    /// The bytes.
    #[inline(always)]
    pub fn bytes(&self) -> &[u8] {
        &self.0[..usize::from(self.0[15])]
    }

    #[inline(always)]
    fn words(&self) -> (u64, u64) {
        let both = u128::from_le_bytes(self.0);
        (both as u64, (both >> 64) as u64)
    }

    /// Its hash; the upper bits are the best.
    #[inline(always)]
    pub fn hash(self) -> u64 {
        let (low, high) = self.words();
        fold(low ^ K0, high ^ K1)
    }
}

/// Packs two ids into the key that tables and heaps use.
#[inline(always)]
pub fn pack(left: u32, right: u32) -> u64 {
    u64::from(left) << 32 | u64::from(right)
}

/// The inverse of [`pack`].
#[inline(always)]
pub fn unpack(pair: u64) -> (u32, u32) {
    ((pair >> 32) as u32, pair as u32)
}

/// Ids and ranks that [`RankTable`] holds lie below this.
pub const MAX_ID: usize = 1 << ID_BITS;
const ID_BITS: u32 = 21;

/// Map from a pair of ids to its rank, for encoding. A slot is one word: left id, right id, rank, 21
/// bits each, with one bit that says it is taken. Half the size of a [`PairTable`] means twice as many
/// of the look-ups in the cache.
pub struct RankTable {
    slots: Vec<u64>,
}

impl RankTable {
    /// A table with room for `pairs` pairs.
    pub fn with_capacity(pairs: usize) -> Self {
        RankTable { slots: vec![0; (pairs.max(8) * 2).next_power_of_two()] }
    }

    /// What the slot of a pair starts with.
    #[inline(always)]
    fn tag(left: u32, right: u32) -> u64 {
        1 << (2 * ID_BITS) | u64::from(left) << ID_BITS | u64::from(right)
    }

    #[inline(always)]
    fn slot(&self, tag: u64) -> usize {
        let mask = self.slots.len() - 1;
        let mut at = (tag.wrapping_mul(K0) >> 32) as usize & mask;
        while self.slots[at] != 0 && self.slots[at] >> ID_BITS != tag {
            at = (at + 1) & mask;
        }
        at
    }

    /// The rank of a pair.
    #[inline(always)]
    pub fn get(&self, left: u32, right: u32) -> Option<u32> {
        let slot = self.slots[self.slot(Self::tag(left, right))];
        (slot != 0).then_some(slot as u32 % (1 << ID_BITS))
    }

    /// Stores the rank of a pair, unless it has one; returns what it has.
    pub fn get_or_insert(&mut self, left: u32, right: u32, rank: u32) -> u32 {
        let tag = Self::tag(left, right);
        let at = self.slot(tag);
        if self.slots[at] == 0 {
            self.slots[at] = tag << ID_BITS | u64::from(rank);
        }
        self.slots[at] as u32 % (1 << ID_BITS)
    }
}

/// Open-addressing map from a packed pair to a `u32`, built for lookups that mostly miss.
#[derive(Clone)]
pub struct PairTable {
    slots: Vec<(u64, u32)>,
    mask: usize,
    used: usize,
}

/// A pair that can't occur: ids stay below 2^31.
const EMPTY: u64 = u64::MAX;

impl PairTable {
    /// A table with room for `expected` pairs before it grows.
    pub fn with_capacity(expected: usize) -> Self {
        let size = (expected.max(8) * 2).next_power_of_two();
        PairTable { slots: vec![(EMPTY, 0); size], mask: size - 1, used: 0 }
    }

    #[inline(always)]
    fn slot(&self, pair: u64) -> usize {
        let mut at = hash_pair(pair) as usize & self.mask;
        while self.slots[at].0 != pair && self.slots[at].0 != EMPTY {
            at = (at + 1) & self.mask;
        }
        at
    }

    /// The value stored for `pair`.
    #[inline(always)]
    pub fn get(&self, pair: u64) -> Option<u32> {
        let (key, value) = self.slots[self.slot(pair)];
        (key == pair).then_some(value)
    }

    /// The value stored for `pair`; stores `default()` first if there is none.
    #[inline]
    pub fn get_or_insert_with(&mut self, pair: u64, default: impl FnOnce() -> u32) -> u32 {
        let mut at = self.slot(pair);
        if self.slots[at].0 == EMPTY {
            if self.used * 2 >= self.slots.len() {
                self.grow();
                at = self.slot(pair);
            }
            self.slots[at] = (pair, default());
            self.used += 1;
        }
        self.slots[at].1
    }

    fn grow(&mut self) {
        let mut bigger = PairTable::with_capacity(self.slots.len());
        for &(pair, value) in self.slots.iter().filter(|slot| slot.0 != EMPTY) {
            bigger.get_or_insert_with(pair, || value);
        }
        *self = bigger;
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::collections::{HashMap, HashSet};

    #[test]
    fn hashes_of_short_strings_differ() {
        let mut seen = HashSet::new();
        let mut count = 0;
        for length in 0..40usize {
            for byte in 0..=255u8 {
                for position in 0..length.max(1) {
                    let mut bytes = vec![7u8; length];
                    if length > 0 {
                        bytes[position] = byte;
                    } else if byte > 0 {
                        continue;
                    }
                    if byte != 7 {
                        seen.insert(hash_bytes(&bytes));
                        count += 1;
                    }
                }
            }
        }
        assert_eq!(seen.len(), count);
    }

    #[test]
    fn pair_table_is_a_map() {
        let mut table = PairTable::with_capacity(0);
        let mut oracle = HashMap::new();
        let mut state = 1u64;
        for value in 0..50_000u32 {
            state = state.wrapping_mul(K0).wrapping_add(K1);
            let pair = pack((state >> 40) as u32 & 255, (state >> 20) as u32 & 1023);
            assert_eq!(table.get(pair), oracle.get(&pair).copied());
            assert_eq!(table.get_or_insert_with(pair, || value), *oracle.entry(pair).or_insert(value));
        }
        assert_eq!(unpack(pack(3, 9)), (3, 9));
    }
}
