//! The table that words are counted in: one look at one slot for a short word.

use crate::hash::{hash_bytes, Key};

/// The hash that a table orders `word` by.
pub fn hash(word: &[u8]) -> u64 {
    if word.len() > Key::BYTES {
        hash_bytes(word)
    } else {
        Key::of(word, word.len()).hash()
    }
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
        match self.key.as_other() {
            Some((hash, _)) => hash,
            None => self.key.hash(),
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
            let word = match slot.key.as_other() {
                Some((_, start)) => self.long_word(start),
                None => slot.key.bytes(),
            };
            (slot, word)
        })
    }

    fn long_word(&self, start: u64) -> &[u8] {
        let (length, rest) = self.long[start as usize..].split_at(4);
        &rest[..u32::from_le_bytes(length.try_into().expect("4 bytes")) as usize]
    }

    /// Counts the word in the first `length` bytes of `rest` `count` times more.
    #[inline(always)]
    pub fn add(&mut self, rest: &[u8], length: usize, count: u64) {
        if length > Key::BYTES {
            self.add_long(&rest[..length], count);
        } else {
            self.add_slot(Slot { key: Key::of(rest, length), count }, length);
        }
    }

    /// Counts a word of another table as often as that did.
    pub fn add_from(&mut self, slot: &Slot, word: &[u8]) {
        if slot.key.as_other().is_some() {
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
        let hash = hash_bytes(word);
        let at = self.find(hash, |other| {
            other.key.as_other().is_some_and(|(same, start)| same == hash && self.long_word(start) == word)
        });
        if self.slots[at].count > 0 {
            self.slots[at].count += count;
        } else {
            let key = Key::other(hash, self.long.len() as u64);
            self.long.extend_from_slice(&(word.len() as u32).to_le_bytes());
            self.long.extend_from_slice(word);
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
