//! The table that words are counted in: one look at one slot for a short word.

use std::ops::Range;

/// Words of up to this many bytes are their own key: a look-up reads one slot and nothing else.
const SHORT: usize = 15;
/// Last byte of the key of a longer word; that of a short one is its length plus one, so no key is 0.
const LONG: u8 = 0xFF;

type Key = [u8; 16];

fn halves(key: Key) -> (u64, u64) {
    let key = u128::from_le_bytes(key);
    (key as u64, (key >> 64) as u64)
}

#[inline(always)]
fn fold(a: u64, b: u64) -> u64 {
    let product = u128::from(a ^ 0x9E37_79B9_7F4A_7C15) * u128::from(b ^ 0xD6E8_FEB8_6659_FD93);
    (product as u64) ^ ((product >> 64) as u64)
}

fn hash_long(word: &[u8]) -> u64 {
    word.chunks(16).fold(word.len() as u64, |state, chunk| {
        let mut key = Key::default();
        key[..chunk.len()].copy_from_slice(chunk);
        let (low, high) = halves(key);
        fold(low ^ state, high)
    })
}

/// The hash that a table orders `word` by.
pub fn hash(word: &[u8]) -> u64 {
    if word.len() > SHORT {
        hash_long(word)
    } else {
        Slot { key: short_key(word, 0..word.len()), count: 0 }.hash()
    }
}

/// The key of the short word `text[place]`. Reads beyond its end where the text goes on, which is
/// much quicker than to copy a few bytes.
#[inline(always)]
fn short_key(text: &[u8], place: Range<usize>) -> Key {
    let length = place.len();
    let bytes = match text.get(place.start..place.start + 16) {
        Some(window) => u128::from_le_bytes(window.try_into().expect("16 bytes")) & ((1 << (8 * length)) - 1),
        None => {
            let mut key = Key::default();
            key[..length].copy_from_slice(&text[place]);
            u128::from_le_bytes(key)
        }
    };
    (bytes | (length as u128 + 1) << 120).to_le_bytes()
}

/// A word and its count.
#[derive(Clone, Copy, Default)]
pub struct Slot {
    /// A short word and its length, or the hash of a long one and where it stands in `long`.
    key: Key,
    /// 0 in an empty slot.
    pub count: u64,
}

impl Slot {
    #[inline(always)]
    pub fn hash(&self) -> u64 {
        let (low, high) = halves(self.key);
        if self.key[15] == LONG {
            low
        } else {
            fold(low, high)
        }
    }
}

/// A multiset of byte strings. Open addressing, with the slots in the order of the hashes: emptying
/// one table into another walks through both from front to back.
pub struct Table {
    slots: Vec<Slot>,
    /// Turns a hash into the place of a slot: left by the bits that all words here have in common,
    /// right by those that the place has not.
    common: u32,
    shift: u32,
    pub len: usize,
    pub bytes: usize,
    /// The long words, each behind its length.
    long: Vec<u8>,
}

impl Table {
    /// An empty table for words whose hashes have their upper `common` bits in common.
    pub fn new(common: u32) -> Self {
        Table { slots: vec![Slot::default(); 16], common, shift: 64 - 4, len: 0, bytes: 0, long: Vec::new() }
    }

    /// Each word, about in the order of the hashes.
    pub fn iter(&self) -> impl Iterator<Item = (&Slot, &[u8])> {
        self.slots.iter().filter(|slot| slot.count > 0).map(|slot| {
            if slot.key[15] != LONG {
                return (slot, &slot.key[..usize::from(slot.key[15]) - 1]);
            }
            (slot, self.long_word(slot))
        })
    }

    fn long_word(&self, slot: &Slot) -> &[u8] {
        let start = halves(slot.key).1 & !(0xFF << 56);
        let (length, rest) = self.long[start as usize..].split_at(4);
        &rest[..u32::from_le_bytes(length.try_into().expect("4 bytes")) as usize]
    }

    /// Counts `text[place]` `count` times more.
    #[inline(always)]
    pub fn add(&mut self, text: &[u8], place: Range<usize>, count: u64) {
        if place.len() > SHORT {
            self.add_long(&text[place], count);
        } else {
            let bytes = place.len();
            self.add_slot(Slot { key: short_key(text, place), count }, bytes);
        }
    }

    /// Counts a word of another table as often as that did.
    pub fn add_from(&mut self, slot: &Slot, word: &[u8]) {
        if slot.key[15] == LONG {
            self.add_long(word, slot.count);
        } else {
            self.add_slot(*slot, word.len());
        }
    }

    #[inline(always)]
    fn add_slot(&mut self, slot: Slot, bytes: usize) {
        let at = self.find(slot.hash(), |other| other.key == slot.key);
        if self.slots[at].count > 0 {
            self.slots[at].count += slot.count;
        } else {
            self.insert(at, slot, bytes);
        }
    }

    fn add_long(&mut self, word: &[u8], count: u64) {
        let hash = hash_long(word);
        let at =
            self.find(hash, |other| other.key[15] == LONG && other.hash() == hash && self.long_word(other) == word);
        if self.slots[at].count > 0 {
            self.slots[at].count += count;
        } else {
            let start = u64::from(LONG) << 56 | self.long.len() as u64;
            self.long.extend_from_slice(&(word.len() as u32).to_le_bytes());
            self.long.extend_from_slice(word);
            let key = (u128::from(start) << 64 | u128::from(hash)).to_le_bytes();
            self.insert(at, Slot { key, count }, word.len());
        }
    }

    /// Where the word with this hash stands, or the empty slot where it belongs.
    #[inline(always)]
    fn find(&self, hash: u64, same: impl Fn(&Slot) -> bool) -> usize {
        let mask = self.slots.len() - 1;
        let mut at = (hash << self.common >> self.shift) as usize & mask;
        while self.slots[at].count > 0 && !same(&self.slots[at]) {
            at = (at + 1) & mask;
        }
        at
    }

    #[inline(never)]
    fn insert(&mut self, at: usize, slot: Slot, bytes: usize) {
        self.slots[at] = slot;
        self.len += 1;
        self.bytes += bytes;
        self.reserve(0);
    }

    /// Room for `more` words: two slots in three at most are taken.
    pub fn reserve(&mut self, more: usize) {
        let mut size = self.slots.len();
        while (self.len + more) * 3 > size * 2 {
            size *= 2;
        }
        if size > self.slots.len() {
            let old = std::mem::replace(&mut self.slots, vec![Slot::default(); size]);
            self.shift = 64 - size.trailing_zeros();
            for slot in old.into_iter().filter(|slot| slot.count > 0) {
                let at = self.find(slot.hash(), |_| false);
                self.slots[at] = slot;
            }
        }
    }
}
