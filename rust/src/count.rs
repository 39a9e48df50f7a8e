//! Counting pieces: the only pass over the text that training makes. Memory grows with the number
//! of different pieces, not with the text and hardly with the threads.

use std::fs::File;
use std::io::Read;
use std::ops::Range;
use std::path::Path;
use std::sync::{Arc, Mutex};

use rayon::prelude::*;
use rayon::ThreadPool;

use crate::split::{jobs, last_safe_cut, Splitter};
use crate::Error;

/// Bytes that one thread takes at a time, and that a file is read by.
const JOB_BYTES: usize = 1 << 18;
const READ_BYTES: usize = 1 << 23;
/// Different words that a thread counts by itself before it hands them on.
const OWN_WORDS: usize = 1 << 17;

/// Words of up to this many bytes are their own key: a look-up reads one slot and nothing else.
const SHORT: usize = 15;
/// Short words looked up together.
const KEYS: usize = 1 << 10;
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

#[derive(Clone, Copy, Default)]
struct Slot {
    /// A short word and its length, or the hash of a long one and where it stands in `long`.
    key: Key,
    /// 0 in an empty slot.
    count: u64,
}

impl Slot {
    #[inline(always)]
    fn hash(&self) -> u64 {
        let (low, high) = halves(self.key);
        if self.key[15] == LONG {
            low
        } else {
            fold(low, high)
        }
    }
}

/// Open addressing, with the slots in the order of the hashes: emptying one table into another walks
/// through both from front to back.
struct Table {
    slots: Vec<Slot>,
    /// Turns a hash into the place of a slot: left by the bits that all words here have in common,
    /// right by those that the place has not.
    common: u32,
    shift: u32,
    len: usize,
    bytes: usize,
    /// The long words, each behind its length.
    long: Vec<u8>,
}

impl Table {
    fn new(common: u32) -> Self {
        Table { slots: vec![Slot::default(); 16], common, shift: 64 - 4, len: 0, bytes: 0, long: Vec::new() }
    }

    fn iter(&self) -> impl Iterator<Item = (&Slot, &[u8])> {
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
    fn add(&mut self, text: &[u8], place: Range<usize>, count: u64) {
        if place.len() > SHORT {
            self.add_long(&text[place], count);
        } else {
            let bytes = place.len();
            self.add_slot(Slot { key: short_key(text, place), count }, bytes);
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

    /// Counts short words once each, and empties `keys`. Nothing stands between the look-ups, so the
    /// processor waits for many of them at the same time.
    #[inline(never)]
    fn add_keys(&mut self, keys: &mut Vec<Key>) {
        for key in keys.drain(..) {
            self.add_slot(Slot { key, count: 1 }, usize::from(key[15]) - 1);
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
    fn reserve(&mut self, more: usize) {
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

/// Tables by the upper bits of the hash: each grows on its own, so that growing never needs the whole
/// once more.
const SHARD_BITS: u32 = 6;

/// A multiset of byte strings.
pub struct WordCounts {
    shards: Vec<Table>,
}

impl Default for WordCounts {
    fn default() -> Self {
        WordCounts { shards: (0..1 << SHARD_BITS).map(|_| Table::new(SHARD_BITS)).collect() }
    }
}

impl WordCounts {
    /// Number of different words.
    pub fn len(&self) -> usize {
        self.shards.iter().map(|shard| shard.len).sum()
    }

    /// Whether nothing was counted.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// Bytes of the different words together.
    pub fn bytes(&self) -> usize {
        self.shards.iter().map(|shard| shard.bytes).sum()
    }

    /// Each word with its count. The order depends on that of the additions.
    pub fn iter(&self) -> impl Iterator<Item = (&[u8], u64)> {
        self.shards.iter().flat_map(Table::iter).map(|(slot, word)| (word, slot.count))
    }

    /// Counts `word` `count` times more.
    pub fn add(&mut self, word: &[u8], count: u64) {
        let hash = if word.len() > SHORT {
            hash_long(word)
        } else {
            Slot { key: short_key(word, 0..word.len()), count }.hash()
        };
        if count > 0 {
            self.shards[(hash >> (64 - SHARD_BITS)) as usize].add(word, 0..word.len(), count);
        }
    }
}

/// Counts the pieces of texts on all threads of a pool.
pub struct Counter {
    splitter: Splitter,
    pool: Arc<ThreadPool>,
    /// One per thread, small enough to stay in its cache: threads meet only when they hand on what
    /// they counted, and a word that all of them met is held once.
    own: Vec<Mutex<Table>>,
    shards: Vec<Mutex<Table>>,
}

fn lock<T>(mutex: &Mutex<T>) -> std::sync::MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(std::sync::PoisonError::into_inner)
}

impl Counter {
    /// A counter without counts.
    pub fn new(splitter: Splitter, pool: Arc<ThreadPool>) -> Self {
        let own = (0..pool.current_num_threads()).map(|_| Mutex::new(Table::new(0))).collect();
        let shards = WordCounts::default().shards.into_iter().map(Mutex::new).collect();
        Counter { splitter, pool, own, shards }
    }

    /// Counts the pieces of each text.
    pub fn add<T: AsRef<str> + Sync>(&self, texts: &[T]) -> Result<(), Error> {
        let jobs = jobs(texts, &self.splitter, JOB_BYTES);
        self.pool.install(|| {
            jobs.par_iter().with_max_len(1).try_for_each(|job| {
                let mut own = lock(&self.own[rayon::current_thread_index().unwrap_or(0)]);
                let mut keys = Vec::with_capacity(KEYS);
                for (_, text) in job {
                    let mut start = 0;
                    self.splitter.for_each(text, |piece| {
                        if piece.len() > SHORT {
                            own.add_long(piece, 1);
                        } else {
                            keys.push(short_key(text.as_bytes(), start..start + piece.len()));
                            if keys.len() == KEYS {
                                own.add_keys(&mut keys);
                            }
                        }
                        start += piece.len(); // the pieces cover the text
                    })?;
                }
                own.add_keys(&mut keys);
                if own.len >= OWN_WORDS {
                    self.hand_on(&mut own);
                }
                Ok(())
            })
        })
    }

    /// Moves what a thread counted to where all threads' counts are.
    fn hand_on(&self, own: &mut Table) {
        let own = std::mem::replace(own, Table::new(0));
        let mut words = own.iter().peekable();
        let of = |slot: &Slot| (slot.hash() >> (64 - SHARD_BITS)) as usize;
        while let Some((first, _)) = words.peek() {
            let index = of(first);
            let mut shard = lock(&self.shards[index]);
            // In the order of the hashes, the front of a table would fill up before the rest makes it
            // grow.
            shard.reserve(own.len >> SHARD_BITS);
            while let Some((slot, word)) = words.next_if(|(slot, _)| of(slot) == index) {
                if slot.key[15] == LONG {
                    shard.add_long(word, slot.count);
                } else {
                    shard.add_slot(*slot, word.len());
                }
            }
        }
    }

    /// Counts the pieces of the rows of a column as Arrow has it: the bytes of all rows, and where each
    /// row starts and the last one ends. `name` and the number of the first row are for messages.
    pub fn add_column(&self, name: &str, first: usize, data: &[u8], offsets: &[usize]) -> Result<(), Error> {
        let start = offsets.first().copied().unwrap_or(0);
        let whole = std::str::from_utf8(data).ok(); // one look at all of them, row by row only if it fails
        let row = |(index, ends): (usize, &[usize])| {
            let place = ends[0] - start..ends[1] - start;
            if let Some(text) = whole.and_then(|whole| whole.get(place.clone())) {
                return Ok(text);
            }
            std::str::from_utf8(&data[place]).map_err(|error| {
                let path = format!("{name}, row {}", first + index);
                Error::Encoding { path, offset: error.valid_up_to() }
            })
        };
        let rows = offsets.windows(2).enumerate().map(row).collect::<Result<Vec<&str>, Error>>()?;
        self.add(&rows)
    }

    /// Counts the pieces of a UTF-8 file, taken as one text. With a scanner it is read by blocks, and
    /// only one is held at a time, as long as the text holds places where it may be cut.
    pub fn add_file(&self, path: &Path, mut progress: impl FnMut(usize) -> bool) -> Result<(), Error> {
        let failure = |reason: String| Error::File { path: path.display().to_string(), reason };
        let mut file = File::open(path).map_err(|error| failure(error.to_string()))?;
        let mut block: Vec<u8> = Vec::new();
        let mut done = 0;
        loop {
            let held = block.len();
            let wanted = (READ_BYTES.max(held)) as u64;
            let read = (&mut file).take(wanted).read_to_end(&mut block).map_err(|error| failure(error.to_string()))?;
            let end_of_file = (read as u64) < wanted;
            let text = match std::str::from_utf8(&block) {
                Ok(text) => text,
                Err(error) if error.error_len().is_none() && !end_of_file => {
                    std::str::from_utf8(&block[..error.valid_up_to()]).expect("valid up to there")
                }
                Err(error) => {
                    let path = path.display().to_string();
                    return Err(Error::Encoding { path, offset: done + error.valid_up_to() });
                }
            };
            if end_of_file {
                self.add(&[text])?;
                return Ok(());
            }
            if self.splitter.is_scanner() {
                if let Some(cut) = last_safe_cut(text) {
                    self.add(&[&text[..cut]])?;
                    block.drain(..cut);
                    done += cut;
                }
            }
            if !progress(done) {
                return Err(Error::Stopped);
            }
        }
    }

    /// Number of different pieces so far, at most (two threads may have met the same one).
    pub fn len(&self) -> usize {
        self.own.iter().chain(&self.shards).map(|counts| lock(counts).len).sum()
    }

    /// Whether no piece was counted.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// What all threads counted; leaves the counter empty.
    pub fn take(&self) -> WordCounts {
        self.pool.install(|| self.own.par_iter().for_each(|own| self.hand_on(&mut lock(own))));
        let shards = self.shards.iter().map(|shard| std::mem::replace(&mut *lock(shard), Table::new(SHARD_BITS)));
        WordCounts { shards: shards.collect() }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::collections::BTreeMap;

    fn counted(counts: &WordCounts) -> BTreeMap<Vec<u8>, u64> {
        let map: BTreeMap<Vec<u8>, u64> = counts.iter().map(|(word, count)| (word.to_vec(), count)).collect();
        assert_eq!(map.len(), counts.len());
        map
    }

    fn text() -> String {
        let mut state = 7u64;
        let mut text = String::new();
        for _ in 0..200_000 {
            state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
            let words = ["the ", "a\n", "Ärger", "\n\n", "  ", "12345", "!?", "it's ", "漢字", "\r\n", "x", "\n"];
            text.push_str(words[(state >> 33) as usize % words.len()]);
        }
        text
    }

    #[test]
    fn threads_cuts_and_files_do_not_change_the_counts() {
        let text = text();
        let path = std::env::temp_dir().join(format!("nutshell-bpe-{}.txt", std::process::id()));
        std::fs::write(&path, &text).unwrap();
        for name in crate::split::NAMES {
            let splitter = || Splitter::new(name).unwrap();
            let mut oracle = WordCounts::default();
            splitter().for_each(&text, |piece| oracle.add(piece, 1)).unwrap();
            for threads in [1, 3] {
                let counter = Counter::new(splitter(), crate::pool(threads));
                counter.add(&[&text]).unwrap();
                assert_eq!(counted(&counter.take()), counted(&oracle), "{name}");
                counter.add_file(&path, |_| true).unwrap();
                assert_eq!(counted(&counter.take()), counted(&oracle), "{name}");
                assert!(counter.is_empty());
            }
        }
        std::fs::remove_file(&path).unwrap();
    }

    #[test]
    fn many_words_of_any_length_are_counted_once_each() {
        let spell = |number: usize| "ab".repeat(number % 11) + &(number * 7_654_321).to_string();
        let text: String = (0..400_000).map(|number| spell(number % 300_000) + " ").collect();
        let mut oracle: BTreeMap<Vec<u8>, u64> = BTreeMap::new();
        text.split_inclusive(' ').for_each(|word| *oracle.entry(word.into()).or_default() += 1);
        let mut alone = WordCounts::default();
        text.split_inclusive(' ').for_each(|word| alone.add(word.as_bytes(), 1));
        assert!(counted(&alone) == oracle);
        assert_eq!(alone.bytes(), oracle.keys().map(Vec::len).sum());
        let counter = Counter::new(Splitter::new(r"\S+ ").unwrap(), crate::pool(2));
        let cuts: Vec<&str> = text.split_inclusive('\n').flat_map(|line| line.split_inclusive("7 ")).collect();
        counter.add(&cuts).unwrap();
        assert!(counter.shards.iter().any(|shard| lock(shard).len > 0), "the threads handed on what they had");
        assert!(counted(&counter.take()) == oracle);
    }

    #[test]
    fn columns_are_checked_row_by_row() {
        let counter = Counter::new(Splitter::new("gpt2").unwrap(), crate::pool(1));
        counter.add_column("x", 0, b"", &[]).unwrap();
        counter.add_column("x", 0, "né au".as_bytes(), &[7, 10, 10, 13]).unwrap();
        let expected = [("né", 1), (" au", 1)].map(|(word, count)| (word.as_bytes().to_vec(), count));
        assert_eq!(counted(&counter.take()), BTreeMap::from(expected));
        for (data, row) in
            [(&b"ab\xFF"[..], "row 42 is not UTF-8: byte 1 "), ("aé".as_bytes(), "row 41 is not UTF-8: byte 1 ")]
        {
            let end = if row.starts_with("row 42") { 1 } else { 2 };
            let error = counter.add_column("f.parquet", 41, data, &[0, end, 3]).unwrap_err();
            assert!(error.to_string().starts_with(&format!("f.parquet, {row}")), "{error}");
        }
    }

    #[test]
    fn a_file_that_is_not_utf8_is_refused_by_name() {
        let path = std::env::temp_dir().join(format!("nutshell-bpe-bad-{}.txt", std::process::id()));
        std::fs::write(&path, b"good \xFF bad").unwrap();
        let counter = Counter::new(Splitter::new("gpt2").unwrap(), crate::pool(1));
        let message = counter.add_file(&path, |_| true).unwrap_err().to_string();
        assert!(message.contains("byte 5") && message.contains("nutshell-bpe-bad"), "{message}");
        std::fs::remove_file(&path).unwrap();
    }
}
