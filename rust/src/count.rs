//! Counting pieces: the only pass over the text that training makes. Memory grows with the number
//! of different pieces, not with the text and hardly with the threads.

mod table;

use std::fs::File;
use std::io::Read;
use std::path::Path;
use std::sync::{Arc, Mutex};

use rayon::prelude::*;
use rayon::ThreadPool;

use self::table::{hash, Slot, Table};
use crate::split::{jobs, last_safe_cut, Splitter};
use crate::Error;

/// Bytes that one thread takes at a time, and that a file is read by.
const JOB_BYTES: usize = 1 << 18;
const READ_BYTES: usize = 1 << 23;
/// Different words that a thread counts by itself before it hands them on.
const OWN_WORDS: usize = 1 << 17;

/// Tables by the upper bits of the hash: each grows on its own, so that growing never needs the whole
/// once more.
const SHARD_BITS: u32 = 6;

fn shard_of(hash: u64) -> usize {
    (hash >> (64 - SHARD_BITS)) as usize
}

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
        if count > 0 {
            self.shards[shard_of(hash(word))].add(word, word.len(), count);
        }
    }
}

/// Counts the pieces of texts on all threads of a pool.
pub struct Counter {
    splitter: Splitter,
    pool: Arc<ThreadPool>,
    /// One small table per thread: threads meet only when they hand on what they counted, and a word
    /// that all of them met is held once. And one splitter, for a regex that threads share makes them
    /// wait for each other at every match.
    own: Vec<Mutex<(Table, Splitter)>>,
    shards: Vec<Mutex<Table>>,
}

fn lock<T>(mutex: &Mutex<T>) -> std::sync::MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(std::sync::PoisonError::into_inner)
}

impl Counter {
    /// A counter without counts.
    pub fn new(splitter: Splitter, pool: Arc<ThreadPool>) -> Self {
        let own = (0..pool.current_num_threads()).map(|_| Mutex::new((Table::new(0), splitter.another()))).collect();
        let shards = WordCounts::default().shards.into_iter().map(Mutex::new).collect();
        Counter { splitter, pool, own, shards }
    }

    /// Counts the pieces of each text.
    pub fn add<T: AsRef<str> + Sync>(&self, texts: &[T]) -> Result<(), Error> {
        let jobs = jobs(texts, &self.splitter, JOB_BYTES);
        self.pool.install(|| {
            jobs.par_iter().with_max_len(1).try_for_each(|job| {
                let mut own = lock(&self.own[rayon::current_thread_index().unwrap_or(0)]);
                let (own, splitter) = &mut *own;
                for (_, text) in job {
                    splitter.for_each_in_place(text, |rest: &[u8], length: usize| own.add(rest, length, 1))?;
                }
                if own.len >= OWN_WORDS {
                    self.hand_on(own);
                }
                Ok(())
            })
        })
    }

    /// Moves what a thread counted to where all threads' counts are.
    fn hand_on(&self, own: &mut Table) {
        let own = std::mem::replace(own, Table::new(0));
        let mut words = own.iter().peekable();
        let of = |slot: &Slot| shard_of(slot.hash());
        while let Some((first, _)) = words.peek() {
            let index = of(first);
            let mut shard = lock(&self.shards[index]);
            // Before the words come: they come in the order of the slots, and would crowd the front of
            // a table that grows when it is full on average.
            shard.reserve(own.len >> SHARD_BITS);
            while let Some((slot, word)) = words.next_if(|(slot, _)| of(slot) == index) {
                shard.add_from(slot, word);
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
        let own: usize = self.own.iter().map(|own| lock(own).0.len).sum();
        own + self.shards.iter().map(|shard| lock(shard).len).sum::<usize>()
    }

    /// Whether no piece was counted.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// What all threads counted; leaves the counter empty.
    pub fn take(&self) -> WordCounts {
        self.pool.install(|| self.own.par_iter().for_each(|own| self.hand_on(&mut lock(own).0)));
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
        assert_eq!(alone.bytes(), oracle.keys().map(Vec::len).sum::<usize>());
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
