//! Text to ids and back.

use std::sync::{Mutex, PoisonError};

use rayon::prelude::*;
use rayon::ThreadPool;

use crate::hash::{hash_bytes, Key};
use crate::merge::Scratch;
use crate::split::{jobs, Splitter, Visit};
use crate::table::Table;
use crate::vocabulary::Vocabulary;
use crate::{Definition, Error};

/// Bytes of text in one job of a batch.
const JOB_BYTES: usize = 1 << 17;

/// Pieces met before, with their ids, one entry a slot, the newest wins. Two sizes: nearly all pieces
/// of a text are short and become few tokens; their entries are half a cache line, and a look-up
/// takes one load and a copy of fixed size, whatever the number of ids. The others share a wider table.
const FEW_IDS: usize = 3;
const FEW_BITS: u32 = 16;
const MORE_IDS: usize = 8;
const MORE_BYTES: usize = 26;
const MORE_BITS: u32 = 15;

#[derive(Clone, Copy, Default)]
#[repr(align(32))]
struct Few {
    key: Key,
    ids: [u32; FEW_IDS],
    unused: u32,
}

#[derive(Clone, Copy, Default)]
#[repr(align(64))]
struct More {
    ids: [u32; MORE_IDS],
    piece: [u8; MORE_BYTES],
    length: u8,
    count: u8,
}

/// What one thread needs while it encodes; kept between calls.
struct Worker {
    splitter: Splitter,
    caches: Caches,
}

struct Caches {
    few: Vec<[Few; 2]>,
    more: Vec<More>,
    scratch: Box<Scratch>,
}

impl Worker {
    fn new(splitter: Splitter) -> Self {
        Worker {
            splitter,
            caches: Caches {
                few: vec![[Few::default(); 2]; 1 << FEW_BITS],
                more: vec![More::default(); 1 << MORE_BITS],
                scratch: Box::default(),
            },
        }
    }
}

/// The ids of many texts, in parts that follow each other.
pub struct Batch {
    /// Ids, in order.
    pub parts: Vec<Vec<u32>>,
    /// Where the ids of each text start in the parts taken together, and at the end their number.
    pub offsets: Vec<i64>,
}

/// A vocabulary that encodes and decodes.
pub struct Encoder {
    splitter: Splitter,
    vocabulary: Vocabulary,
    /// The ids of tokens by their bytes.
    whole: Table,
    idle: Mutex<Vec<Worker>>,
}

impl Encoder {
    /// An encoder whose ids are the bytes (0 to 255) and, from 256 on, what each merge makes.
    pub fn new(splitter: Splitter, merges: &[(u32, u32)]) -> Result<Self, Error> {
        Self::build(splitter, &Definition::of_merges("", merges)?)
    }

    /// Builds the tables for any tokenizer. Refuses one whose merges don't fit its tokens.
    pub fn open(definition: &Definition) -> Result<Self, Error> {
        Self::build(Splitter::new(&definition.pattern)?, definition)
    }

    fn build(splitter: Splitter, definition: &Definition) -> Result<Self, Error> {
        let vocabulary = Vocabulary::new(definition)?;
        let whole = Table::with_capacity(vocabulary.size() * 2); // sparse: pieces that are no token end their search soon
        let mut encoder = Encoder { splitter, vocabulary, whole, idle: Mutex::default() };
        encoder.index_whole_tokens(definition)?;
        Ok(encoder)
    }

    /// Fills the table of pieces that are one token. A merge list can hold tokens that merging never
    /// reaches (not one that [`crate::train`] learned); those stay out, so that the short cut changes
    /// no result, unless the tokenizer's own rule is to take whole tokens first.
    fn index_whole_tokens(&mut self, definition: &Definition) -> Result<(), Error> {
        let reached = match definition.whole_first {
            true => vec![true; self.size()],
            false => self.vocabulary.reached(&definition.merges),
        };
        let mut unreached = Table::with_capacity(reached.iter().filter(|reached| !**reached).count());
        for (id, token) in definition.tokens.iter().enumerate().filter(|(_, token)| !token.is_empty()) {
            let hash = hash_bytes(token);
            let same = |other: usize| definition.tokens[other] == *token;
            let (table, rest) = if reached[id] { (&mut self.whole, &unreached) } else { (&mut unreached, &self.whole) };
            if let Some(other) = table.insert(hash, id, same).err().or_else(|| rest.find(hash, same)) {
                return Err(Error::Token { id: id as u32, other: other as u32 });
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

    /// The bytes that the ids stand for; none for special tokens.
    pub fn decode(&self, ids: &[u32]) -> Result<Vec<u8>, Error> {
        self.vocabulary.decode(ids)
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
        let mut worker = kept.unwrap_or_else(|| Worker::new(self.splitter.another()));
        let result = work(&mut worker);
        lock().push(worker);
        result
    }

    fn encode_into(&self, text: &str, worker: &mut Worker, ids: &mut Vec<u32>) -> Result<(), Error> {
        let mut longest = 0;
        let Worker { splitter, caches } = worker;
        splitter.for_each_in_place(text, Encoding { encoder: self, caches, ids, longest: &mut longest })?;
        if longest > crate::MAX_BYTES {
            return Err(Error::TooLong { what: "a piece of text", bytes: longest });
        }
        Ok(())
    }

    /// Encodes a short piece and keeps its ids, if they are few.
    #[inline(never)]
    fn encode_new(&self, piece: &[u8], key: Key, slot: usize, caches: &mut Caches, ids: &mut Vec<u32>) {
        let before = ids.len();
        self.encode_piece(piece, caches, ids);
        let new = &ids[before..];
        if new.len() <= FEW_IDS {
            let mut entry = Few { key, unused: (FEW_IDS - new.len()) as u32, ..Few::default() };
            entry.ids[..new.len()].copy_from_slice(new);
            caches.few[slot] = [entry, caches.few[slot][0]];
        }
    }

    #[inline(never)]
    fn encode_piece(&self, piece: &[u8], caches: &mut Caches, ids: &mut Vec<u32>) {
        let hash = hash_bytes(piece);
        if let Some(id) = self.whole.find(hash, |id| self.vocabulary.token(id as u32) == piece) {
            return ids.push(id as u32);
        }
        if piece.len() > MORE_BYTES {
            if piece.len() <= crate::MAX_BYTES {
                self.vocabulary.merge(piece, &mut caches.scratch, ids);
            }
            return;
        }
        // The lower bits already chose the slot in the table of tokens; these are independent of them.
        let entry = &mut caches.more[(hash >> 32) as usize % (1 << MORE_BITS)];
        if usize::from(entry.length) == piece.len() && entry.piece[..piece.len()] == *piece {
            return ids.extend_from_slice(&entry.ids[..usize::from(entry.count)]);
        }
        let before = ids.len();
        self.vocabulary.merge(piece, &mut caches.scratch, ids);
        let new = &ids[before..];
        if new.len() <= MORE_IDS {
            entry.ids[..new.len()].copy_from_slice(new);
            entry.piece[..piece.len()].copy_from_slice(piece);
            entry.length = piece.len() as u8;
            entry.count = new.len() as u8;
        }
    }
}

/// Encoding as what is done with each piece of a text.
struct Encoding<'e> {
    encoder: &'e Encoder,
    caches: &'e mut Caches,
    ids: &'e mut Vec<u32>,
    /// Bytes of the longest piece that is not short.
    longest: &'e mut usize,
}

impl<'t> Visit<'t> for Encoding<'_> {
    #[inline(always)]
    fn piece(&mut self, rest: &'t [u8], length: usize) {
        let Encoding { encoder, caches, ids, longest } = self;
        if length > Key::BYTES {
            **longest = length.max(**longest);
            return encoder.encode_piece(&rest[..length], caches, ids);
        }
        let key = Key::of(rest, length);
        let slot = (key.hash() >> (64 - FEW_BITS)) as usize;
        let found = &caches.few[slot];
        let found = if found[0].key == key { &found[0] } else { &found[1] };
        if found.key == key {
            ids.extend_from_slice(&found.ids);
            ids.truncate(ids.len() - found.unused as usize);
        } else {
            encoder.encode_new(&rest[..length], key, slot, caches, ids);
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
                assert_eq!(encoder.decode(&ids).unwrap(), text.as_bytes());
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
        for merges in [&[(97, 256)][..], &[(97, 300)], &[(97, 98), (97, 98)]] {
            assert!(matches!(build(merges), Err(Error::Merge { .. })), "{merges:?}");
        }
        let twice = [(97, 98), (98, 99), (256, 99), (97, 257)];
        assert!(matches!(build(&twice), Err(Error::Token { id: 259, other: 258 })));
        let doubling: Vec<(u32, u32)> = std::iter::once((97, 97)).chain((256..300).map(|id| (id, id))).collect();
        assert!(matches!(build(&doubling), Err(Error::Tokens { .. })));
        let encoder = build(&[(97, 98)]).unwrap();
        assert_eq!(encoder.decode(&[256, 99]).unwrap(), b"abc");
        assert_eq!(
            encoder.decode(&[257]).unwrap_err().to_string(),
            "id 257 is not in the vocabulary: accepted are 0 to 256"
        );
    }

    #[test]
    fn long_text_without_spaces_is_not_quadratic() {
        let encoder = encoder(&generated(20_000, 3, 1), 500, "nanochat");
        let text = generated(2_000_000, 3, 9);
        let started = std::time::Instant::now();
        let ids = encoder.encode(&text).unwrap();
        assert!(started.elapsed().as_secs() < 20);
        assert_eq!(encoder.decode(&ids).unwrap(), text.as_bytes());
    }
}
