//! Text to ids and back.

use std::sync::{Mutex, PoisonError};

use rayon::prelude::*;
use rayon::ThreadPool;

use crate::hash::hash_bytes;
use crate::merge::Scratch;
use crate::split::{jobs, Splitter};
use crate::vocabulary::Vocabulary;
use crate::Error;

/// Bytes of text in one job of a batch.
const JOB_BYTES: usize = 1 << 17;

/// Pieces met before, with their ids: one entry a slot, the newest wins. The sizes cover almost all
/// words of natural text and keep an entry in one cache line.
const CACHED_BYTES: usize = 26;
const CACHED_IDS: usize = 8;
const CACHE_SLOTS: usize = 1 << 13;

#[derive(Clone, Copy)]
#[repr(align(64))]
struct Cached {
    ids: [u32; CACHED_IDS],
    piece: [u8; CACHED_BYTES],
    length: u8,
    count: u8,
}

/// What one thread needs while it encodes; kept between calls.
struct Worker {
    cache: Vec<Cached>,
    scratch: Scratch,
}

impl Worker {
    fn new() -> Self {
        let empty = Cached { ids: [0; CACHED_IDS], piece: [0; CACHED_BYTES], length: 0, count: 0 };
        Worker { cache: vec![empty; CACHE_SLOTS], scratch: Scratch::default() }
    }
}

/// The ids of many texts, in parts that follow each other.
pub struct Batch {
    /// Ids, in order.
    pub parts: Vec<Vec<u32>>,
    /// Where the ids of each text start in the parts taken together, and at the end their number.
    pub offsets: Vec<i64>,
}

/// A vocabulary that encodes and decodes. An id is a byte (0 to 255) or 256 plus the index of a merge.
pub struct Encoder {
    splitter: Splitter,
    vocabulary: Vocabulary,
    /// Tokens by their bytes: `hash's upper half << 32 | id + 1`, or 0.
    whole: Vec<u64>,
    idle: Mutex<Vec<Worker>>,
}

impl Encoder {
    /// Builds the tables. Every merge joins two ids that exist before it, and no token comes twice.
    pub fn new(splitter: Splitter, merges: &[(u32, u32)]) -> Result<Self, Error> {
        let vocabulary = Vocabulary::new(merges)?;
        let whole = vec![0; (vocabulary.size() * 4).next_power_of_two()];
        let mut encoder = Encoder { splitter, vocabulary, whole, idle: Mutex::default() };
        encoder.index_whole_tokens(merges)?;
        Ok(encoder)
    }

    /// Fills the table of pieces that are one token. A merge list can hold tokens that encoding never
    /// reaches (not one that [`crate::train`] learned); those stay out, so that the short cut changes
    /// no result.
    fn index_whole_tokens(&mut self, merges: &[(u32, u32)]) -> Result<(), Error> {
        let mut scratch = Scratch::default();
        let mut ids = Vec::new();
        for (index, &(left, right)) in merges.iter().enumerate() {
            let id = 256 + index as u32;
            let token = self.vocabulary.token(id);
            let hash = hash_bytes(token);
            let Err(free) = self.find_whole(token, hash) else {
                return Err(Error::Merge { index, left, right });
            };
            ids.clear();
            self.vocabulary.merge(token, &mut scratch, &mut ids);
            if ids == [id] {
                self.whole[free] = hash >> 32 << 32 | u64::from(id + 1);
            }
        }
        Ok(())
    }

    /// Number of ids.
    pub fn size(&self) -> usize {
        self.vocabulary.size()
    }

    /// The pattern, as a regex.
    pub fn pattern(&self) -> &str {
        self.splitter.pattern()
    }

    /// The bytes of a token.
    pub fn token(&self, id: u32) -> Result<&[u8], Error> {
        if id as usize >= self.size() {
            return Err(Error::Id { id, size: self.size() });
        }
        Ok(self.vocabulary.token(id))
    }

    /// The bytes that the ids stand for. The `silent` ids after the vocabulary (special tokens) stand
    /// for none.
    pub fn decode(&self, ids: impl Iterator<Item = u32>, silent: usize) -> Result<Vec<u8>, Error> {
        let mut bytes = Vec::with_capacity(ids.size_hint().0 * 4);
        for id in ids {
            if (id as usize) < self.size() {
                bytes.extend_from_slice(self.vocabulary.token(id));
            } else if id as usize >= self.size() + silent {
                return Err(Error::Id { id, size: self.size() + silent });
            }
        }
        Ok(bytes)
    }

    /// Calls `visit` with each piece that the pattern cuts `text` into.
    pub fn pieces<'t>(&self, text: &'t str, visit: impl FnMut(&'t [u8])) -> Result<(), Error> {
        self.splitter.for_each(text, visit)
    }

    /// Ids of a text.
    pub fn encode(&self, text: &str) -> Result<Vec<u32>, Error> {
        let mut ids = Vec::with_capacity(text.len() / 3 + 8);
        self.with_worker(|worker| self.encode_into(text, worker, &mut ids))?;
        Ok(ids)
    }

    /// Ids of many texts, on all threads of `pool`. A long text is shared between threads where the
    /// pattern allows a cut.
    pub fn encode_batch<T: AsRef<str> + Sync>(&self, texts: &[T], pool: &ThreadPool) -> Result<Batch, Error> {
        let jobs = jobs(texts, &self.splitter, JOB_BYTES);
        type Done = (Vec<u32>, Vec<(usize, usize)>);
        let run = |job: &Vec<(usize, &str)>| -> Result<Done, Error> {
            let mut ids = Vec::with_capacity(JOB_BYTES / 3);
            let mut counts = Vec::with_capacity(job.len());
            self.with_worker(|worker| {
                job.iter().try_for_each(|&(index, part)| {
                    let before = ids.len();
                    self.encode_into(part, worker, &mut ids)?;
                    counts.push((index, ids.len() - before));
                    Ok(())
                })
            })?;
            Ok((ids, counts))
        };
        let done: Vec<Done> = if jobs.len() == 1 {
            vec![run(&jobs[0])?] // not worth waking threads
        } else {
            pool.install(|| jobs.par_iter().with_max_len(1).map(run).collect::<Result<_, _>>())?
        };
        let mut offsets = vec![0i64; texts.len() + 1];
        for &(index, count) in done.iter().flat_map(|(_, counts)| counts) {
            offsets[index + 1] += count as i64;
        }
        for index in 0..texts.len() {
            offsets[index + 1] += offsets[index];
        }
        Ok(Batch { parts: done.into_iter().map(|(ids, _)| ids).collect(), offsets })
    }

    fn with_worker<R>(&self, work: impl FnOnce(&mut Worker) -> R) -> R {
        let lock = || self.idle.lock().unwrap_or_else(PoisonError::into_inner);
        let kept = lock().pop();
        let mut worker = kept.unwrap_or_else(Worker::new);
        let result = work(&mut worker);
        lock().push(worker);
        result
    }

    #[inline]
    fn encode_into(&self, text: &str, worker: &mut Worker, ids: &mut Vec<u32>) -> Result<(), Error> {
        let mut longest = 0;
        self.splitter.for_each(text, |piece| {
            if let [byte] = piece {
                ids.push(u32::from(*byte));
                return;
            }
            let hash = hash_bytes(piece);
            if let Ok(id) = self.find_whole(piece, hash) {
                ids.push(id);
            } else if piece.len() <= CACHED_BYTES {
                self.encode_cached(piece, hash, worker, ids);
            } else if piece.len() <= crate::MAX_BYTES {
                self.vocabulary.merge(piece, &mut worker.scratch, ids);
            } else {
                longest = piece.len();
            }
        })?;
        if longest > 0 {
            return Err(Error::TooLong { what: "a piece of text", bytes: longest });
        }
        Ok(())
    }

    /// The token with these bytes, or the slot where it would stand.
    #[inline(always)]
    fn find_whole(&self, piece: &[u8], hash: u64) -> Result<u32, usize> {
        let mask = self.whole.len() - 1;
        let mut at = hash as usize & mask;
        loop {
            let slot = self.whole[at];
            if slot == 0 {
                return Err(at);
            }
            if slot >> 32 == hash >> 32 {
                let id = slot as u32 - 1;
                if self.vocabulary.token(id) == piece {
                    return Ok(id);
                }
            }
            at = (at + 1) & mask;
        }
    }

    #[inline]
    fn encode_cached(&self, piece: &[u8], hash: u64, worker: &mut Worker, ids: &mut Vec<u32>) {
        // The lower bits already chose the slot in the table of tokens; these are independent of them.
        let slot = (hash >> 40) as usize % CACHE_SLOTS;
        let found = &worker.cache[slot];
        if usize::from(found.length) == piece.len() && found.piece[..piece.len()] == *piece {
            ids.extend_from_slice(&found.ids[..usize::from(found.count)]);
            return;
        }
        let before = ids.len();
        self.vocabulary.merge(piece, &mut worker.scratch, ids);
        let new = &ids[before..];
        if new.len() <= CACHED_IDS {
            let entry = &mut worker.cache[slot];
            entry.ids[..new.len()].copy_from_slice(new);
            entry.piece[..piece.len()].copy_from_slice(piece);
            entry.length = piece.len() as u8;
            entry.count = new.len() as u8;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{pool, train, WordCounts};

    fn encoder(text: &str, merges: usize, pattern: &str) -> Encoder {
        let splitter = Splitter::new(pattern).unwrap();
        let mut words = WordCounts::default();
        splitter.for_each(text, |piece| words.add(piece, 1)).unwrap();
        Encoder::new(splitter, &train(&words, merges, |_| true).unwrap()).unwrap()
    }

    fn generated(length: usize, letters: u64, seed: u64) -> String {
        let mut state = seed;
        (0..length)
            .map(|_| {
                state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
                char::from(b'a' + ((state >> 33) % letters) as u8)
            })
            .collect()
    }

    #[test]
    fn every_token_that_is_text_encodes_to_itself() {
        for letters in 1..5 {
            let encoder = encoder(&generated(3000, letters, letters), 300, "nanochat");
            for id in 0..encoder.size() as u32 {
                let token = std::str::from_utf8(encoder.token(id).unwrap());
                assert!(token.is_err() || encoder.encode(token.unwrap()).unwrap() == [id]);
            }
            for length in [0, 1, 20, 27, 97, 5000] {
                let text = generated(length, letters, 7);
                let ids = encoder.encode(&text).unwrap();
                assert_eq!(encoder.encode(&text).unwrap(), ids); // the second time from the cache
                assert_eq!(encoder.decode(ids.into_iter(), 0).unwrap(), text.as_bytes());
            }
        }
    }

    #[test]
    fn batches_equal_single_texts_for_any_number_of_threads() {
        let text = "It's a test, isn't it? 12345 \n\n  漢字 Ärger!! ".repeat(20_000);
        let encoder = encoder(&text[..3000], 200, "cl100k");
        let texts = ["", &text, "a", "", "word word", &text[..5000], ""];
        for threads in [1, 2, 5] {
            let batch = encoder.encode_batch(&texts, &pool(threads)).unwrap();
            let flat: Vec<u32> = batch.parts.concat();
            assert_eq!(batch.offsets.len(), texts.len() + 1);
            for (index, text) in texts.iter().enumerate() {
                let range = batch.offsets[index] as usize..batch.offsets[index + 1] as usize;
                assert_eq!(flat[range], encoder.encode(text).unwrap());
            }
        }
        let none: [&str; 0] = [];
        assert_eq!(encoder.encode_batch(&none, &pool(1)).unwrap().offsets, [0]);
    }

    #[test]
    fn merges_and_ids_that_make_no_sense_are_refused() {
        let build = |merges: &[(u32, u32)]| Encoder::new(Splitter::new("gpt2").unwrap(), merges);
        for merges in [&[(97, 256)][..], &[(97, 98), (97, 98)], &[(97, 98), (98, 99), (256, 99), (97, 257)]] {
            assert!(matches!(build(merges), Err(Error::Merge { .. })), "{merges:?}");
        }
        let doubling: Vec<(u32, u32)> = std::iter::once((97, 97)).chain((256..300).map(|id| (id, id))).collect();
        assert!(matches!(build(&doubling), Err(Error::TooLong { .. })));
        let encoder = build(&[(97, 98)]).unwrap();
        assert_eq!(encoder.decode([256, 99, 257].into_iter(), 1).unwrap(), b"abc");
        assert_eq!(
            encoder.decode([258].into_iter(), 1).unwrap_err().to_string(),
            "id 258 is not in the vocabulary: accepted are 0 to 257"
        );
    }

    #[test]
    fn long_text_without_spaces_is_not_quadratic() {
        let encoder = encoder(&generated(20_000, 3, 1), 500, "nanochat");
        let text = generated(2_000_000, 3, 9);
        let started = std::time::Instant::now();
        let ids = encoder.encode(&text).unwrap();
        assert!(started.elapsed().as_secs() < 20);
        assert_eq!(encoder.decode(ids.into_iter(), 0).unwrap(), text.as_bytes());
    }
}
