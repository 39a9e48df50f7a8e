//! Counting pieces: the only pass over the text that training makes. Memory grows with the number
//! of different pieces, not with the text.

use std::fs::File;
use std::io::Read;
use std::path::Path;
use std::sync::{Arc, Mutex};

use rayon::prelude::*;
use rayon::ThreadPool;

use crate::hash::hash_bytes;
use crate::split::{jobs, last_safe_cut, Splitter};
use crate::Error;

/// Bytes that one thread takes at a time, and that a file is read by.
const JOB_BYTES: usize = 1 << 18;
const READ_BYTES: usize = 1 << 23;

struct Entry {
    start: usize,
    length: usize,
    hash: u64,
    count: u64,
}

/// A multiset of byte strings.
#[derive(Default)]
pub struct WordCounts {
    text: Vec<u8>,
    entries: Vec<Entry>,
    /// `hash's upper half << 32 | index of the entry + 1`, or 0: most mismatches show without a look
    /// at the entry.
    slots: Vec<u64>,
}

impl WordCounts {
    /// Number of different words.
    pub fn len(&self) -> usize {
        self.entries.len()
    }

    /// Whether nothing was counted.
    pub fn is_empty(&self) -> bool {
        self.entries.is_empty()
    }

    /// Bytes of the different words together.
    pub fn bytes(&self) -> usize {
        self.text.len()
    }

    /// Each word with its count, in an order that depends on the order of the additions.
    pub fn iter(&self) -> impl Iterator<Item = (&[u8], u64)> {
        self.entries.iter().map(|entry| (&self.text[entry.start..entry.start + entry.length], entry.count))
    }

    /// Counts `word` `count` times more.
    #[inline]
    pub fn add(&mut self, word: &[u8], count: u64) {
        self.add_hashed(word, hash_bytes(word), count);
    }

    #[inline]
    fn add_hashed(&mut self, word: &[u8], hash: u64, count: u64) {
        if self.entries.len() * 2 >= self.slots.len() {
            self.grow();
        }
        let mask = self.slots.len() - 1;
        let mut at = hash as usize & mask;
        loop {
            let slot = self.slots[at];
            if slot == 0 {
                break;
            }
            if slot >> 32 == hash >> 32 {
                let entry = &mut self.entries[slot as u32 as usize - 1];
                if self.text[entry.start..entry.start + entry.length] == *word {
                    entry.count += count;
                    return;
                }
            }
            at = (at + 1) & mask;
        }
        self.entries.push(Entry { start: self.text.len(), length: word.len(), hash, count });
        self.text.extend_from_slice(word);
        self.slots[at] = hash >> 32 << 32 | self.entries.len() as u64;
    }

    fn grow(&mut self) {
        let size = (self.slots.len() * 2).max(1 << 12);
        self.slots.clear();
        self.slots.resize(size, 0);
        for (index, entry) in self.entries.iter().enumerate() {
            let mut at = entry.hash as usize & (size - 1);
            while self.slots[at] != 0 {
                at = (at + 1) & (size - 1);
            }
            self.slots[at] = entry.hash >> 32 << 32 | (index as u64 + 1);
        }
    }

    /// Adds all that `other` counted.
    pub fn merge(&mut self, other: &WordCounts) {
        for (entry, (word, count)) in other.entries.iter().zip(other.iter()) {
            self.add_hashed(word, entry.hash, count);
        }
    }
}

/// Counts the pieces of texts on all threads of a pool.
pub struct Counter {
    splitter: Splitter,
    pool: Arc<ThreadPool>,
    /// One per thread, so that threads never wait for each other.
    counts: Vec<Mutex<WordCounts>>,
}

fn lock<T>(mutex: &Mutex<T>) -> std::sync::MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(std::sync::PoisonError::into_inner)
}

impl Counter {
    /// A counter without counts.
    pub fn new(splitter: Splitter, pool: Arc<ThreadPool>) -> Self {
        let counts = (0..pool.current_num_threads()).map(|_| Mutex::default()).collect();
        Counter { splitter, pool, counts }
    }

    /// Counts the pieces of each text.
    pub fn add<T: AsRef<str> + Sync>(&self, texts: &[T]) -> Result<(), Error> {
        let jobs = jobs(texts, &self.splitter, JOB_BYTES);
        self.pool.install(|| {
            jobs.par_iter().with_max_len(1).try_for_each(|job| {
                let mut counts = lock(&self.counts[rayon::current_thread_index().unwrap_or(0)]);
                job.iter().try_for_each(|(_, text)| self.splitter.for_each(text, |piece| counts.add(piece, 1)))
            })
        })
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
        self.counts.iter().map(|counts| lock(counts).len()).sum()
    }

    /// Whether no piece was counted.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// The sum over all threads; leaves the counter empty.
    pub fn take(&self) -> WordCounts {
        let mut parts: Vec<WordCounts> = self.counts.iter().map(|counts| std::mem::take(&mut *lock(counts))).collect();
        parts.sort_by_key(WordCounts::len);
        let mut total = parts.pop().unwrap_or_default();
        for part in parts {
            total.merge(&part);
        }
        total
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
    fn a_file_that_is_not_utf8_is_refused_by_name() {
        let path = std::env::temp_dir().join(format!("nutshell-bpe-bad-{}.txt", std::process::id()));
        std::fs::write(&path, b"good \xFF bad").unwrap();
        let counter = Counter::new(Splitter::new("gpt2").unwrap(), crate::pool(1));
        let message = counter.add_file(&path, |_| true).unwrap_err().to_string();
        assert!(message.contains("byte 5") && message.contains("nutshell-bpe-bad"), "{message}");
        std::fs::remove_file(&path).unwrap();
    }
}
