//! Text to ids and back.

use std::cmp::Reverse;
use std::collections::BinaryHeap;
use std::sync::{Mutex, PoisonError};

use rayon::prelude::*;
use rayon::ThreadPool;

use crate::hash::{hash_bytes, pack, PairTable};
use crate::split::{chunks, Splitter};
use crate::symbols::{Symbols, WALL};
use crate::Error;

/// Up to this many bytes the pair to merge is found by a look at all of them: a handful of compares
/// beats a heap. Beyond it, time must not grow with the square of the length.
const SHORT: usize = 96;
const NONE: u32 = u32::MAX;
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
struct Scratch {
    cache: Vec<Cached>,
    ids: Vec<u32>,
    ranks: Vec<u32>,
}

impl Scratch {
    fn new() -> Self {
        let empty = Cached { ids: [0; CACHED_IDS], piece: [0; CACHED_BYTES], length: 0, count: 0 };
        Scratch { cache: vec![empty; CACHE_SLOTS], ids: Vec::new(), ranks: Vec::new() }
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
    merges: PairTable,
    /// Bytes of all tokens one after the other, and where each starts.
    text: Vec<u8>,
    starts: Vec<u32>,
    /// Tokens by their bytes: `hash's upper half << 32 | id + 1`, or 0.
    whole: Vec<u64>,
    idle: Mutex<Vec<Scratch>>,
}

impl Encoder {
    /// Builds the tables. Every merge joins two ids that exist before it.
    pub fn new(splitter: Splitter, merges: &[(u32, u32)]) -> Result<Self, Error> {
        let size = 256 + merges.len();
        let mut encoder = Encoder {
            splitter,
            merges: PairTable::with_capacity(merges.len()),
            text: (0..=255).collect(),
            starts: (0..=256).collect(),
            whole: vec![0; (size * 4).next_power_of_two()],
            idle: Mutex::default(),
        };
        for (index, &(left, right)) in merges.iter().enumerate() {
            let id = 256 + index as u32;
            let refused = Error::Merge { index, left, right };
            if left >= id || right >= id || encoder.merges.get_or_insert_with(pack(left, right), || id) != id {
                return Err(refused);
            }
            for part in [left, right] {
                let (start, end) = encoder.span(part);
                encoder.text.extend_from_within(start..end);
            }
            if encoder.text.len() > crate::MAX_BYTES {
                return Err(Error::TooLong { what: "all tokens together", bytes: encoder.text.len() });
            }
            encoder.starts.push(encoder.text.len() as u32);
        }
        encoder.index_whole_tokens()?;
        Ok(encoder)
    }

    /// Fills the table of pieces that are one token. A merge list can hold tokens that encoding never
    /// reaches (not one that [`crate::train`] learned); those stay out, so that the short cut changes
    /// no result.
    fn index_whole_tokens(&mut self) -> Result<(), Error> {
        let mut scratch = Scratch::new();
        let mut ids = Vec::new();
        for id in 256..self.size() as u32 {
            let (start, end) = self.span(id);
            let token = &self.text[start..end];
            let hash = hash_bytes(token);
            let Err(free) = self.find_whole(token, hash) else {
                let (left, right) = (id, id);
                return Err(Error::Merge { index: id as usize - 256, left, right });
            };
            ids.clear();
            self.merge_piece(token, &mut scratch, &mut ids)?;
            if ids == [id] {
                self.whole[free] = hash >> 32 << 32 | u64::from(id + 1);
            }
        }
        Ok(())
    }

    /// Number of ids.
    pub fn size(&self) -> usize {
        self.starts.len() - 1
    }

    /// The pattern, as a regex.
    pub fn pattern(&self) -> &str {
        self.splitter.pattern()
    }

    #[inline(always)]
    fn span(&self, id: u32) -> (usize, usize) {
        (self.starts[id as usize] as usize, self.starts[id as usize + 1] as usize)
    }

    #[inline(always)]
    fn length(&self, id: u32) -> usize {
        let (start, end) = self.span(id);
        end - start
    }

    /// The bytes of a token.
    pub fn token(&self, id: u32) -> Result<&[u8], Error> {
        if id as usize >= self.size() {
            return Err(Error::Id { id, size: self.size() });
        }
        let (start, end) = self.span(id);
        Ok(&self.text[start..end])
    }

    /// The bytes that the ids stand for. The `silent` ids after the vocabulary (special tokens) stand
    /// for none.
    pub fn decode(&self, ids: impl Iterator<Item = u32>, silent: usize) -> Result<Vec<u8>, Error> {
        let mut bytes = Vec::with_capacity(ids.size_hint().0 * 4);
        for id in ids {
            if (id as usize) < self.size() {
                let (start, end) = self.span(id);
                bytes.extend_from_slice(&self.text[start..end]);
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
        self.with_scratch(|scratch| self.encode_into(text, scratch, &mut ids))?;
        Ok(ids)
    }

    /// Ids of many texts, on all threads of `pool`. A long text is shared between threads where the
    /// pattern allows a cut.
    pub fn encode_batch<T: AsRef<str> + Sync>(&self, texts: &[T], pool: &ThreadPool) -> Result<Batch, Error> {
        let mut jobs: Vec<Vec<(usize, &str)>> = vec![Vec::new()];
        let mut filled = 0;
        for (index, text) in texts.iter().enumerate() {
            let text = text.as_ref();
            let parts = if self.splitter.is_scanner() { chunks(text, JOB_BYTES) } else { vec![text] };
            for part in parts {
                if filled >= JOB_BYTES {
                    jobs.push(Vec::new());
                    filled = 0;
                }
                filled += part.len();
                jobs.last_mut().expect("never empty").push((index, part));
            }
        }
        type Done = (Vec<u32>, Vec<(usize, usize)>);
        let run = |job: &Vec<(usize, &str)>| -> Result<Done, Error> {
            let mut ids = Vec::with_capacity(JOB_BYTES / 3);
            let mut counts = Vec::with_capacity(job.len());
            self.with_scratch(|scratch| {
                job.iter().try_for_each(|&(index, part)| {
                    let before = ids.len();
                    self.encode_into(part, scratch, &mut ids)?;
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

    fn with_scratch<R>(&self, work: impl FnOnce(&mut Scratch) -> R) -> R {
        let lock = || self.idle.lock().unwrap_or_else(PoisonError::into_inner);
        let kept = lock().pop();
        let mut scratch = kept.unwrap_or_else(Scratch::new);
        let result = work(&mut scratch);
        lock().push(scratch);
        result
    }

    #[inline]
    fn encode_into(&self, text: &str, scratch: &mut Scratch, ids: &mut Vec<u32>) -> Result<(), Error> {
        let mut outcome = Ok(());
        self.splitter.for_each(text, |piece| {
            if let [byte] = piece {
                ids.push(u32::from(*byte));
                return;
            }
            let hash = hash_bytes(piece);
            if let Ok(id) = self.find_whole(piece, hash) {
                ids.push(id);
            } else if piece.len() <= CACHED_BYTES {
                self.encode_cached(piece, hash, scratch, ids);
            } else if let Err(error) = self.merge_piece(piece, scratch, ids) {
                outcome = Err(error);
            }
        })?;
        outcome
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
                let (start, end) = self.span(id);
                if self.text[start..end] == *piece {
                    return Ok(id);
                }
            }
            at = (at + 1) & mask;
        }
    }

    #[inline]
    fn encode_cached(&self, piece: &[u8], hash: u64, scratch: &mut Scratch, ids: &mut Vec<u32>) {
        // The lower bits already chose the slot in the table of tokens; these are independent of them.
        let slot = (hash >> 40) as usize % CACHE_SLOTS;
        let found = &scratch.cache[slot];
        if usize::from(found.length) == piece.len() && found.piece[..piece.len()] == *piece {
            ids.extend_from_slice(&found.ids[..usize::from(found.count)]);
            return;
        }
        let before = ids.len();
        self.merge_short(piece, scratch, ids);
        let new = &ids[before..];
        if new.len() <= CACHED_IDS {
            let entry = &mut scratch.cache[slot];
            entry.ids[..new.len()].copy_from_slice(new);
            entry.piece[..piece.len()].copy_from_slice(piece);
            entry.length = piece.len() as u8;
            entry.count = new.len() as u8;
        }
    }

    fn merge_piece(&self, piece: &[u8], scratch: &mut Scratch, ids: &mut Vec<u32>) -> Result<(), Error> {
        if piece.len() <= SHORT {
            self.merge_short(piece, scratch, ids);
            return Ok(());
        }
        if piece.len() > crate::MAX_BYTES {
            return Err(Error::TooLong { what: "a piece of text", bytes: piece.len() });
        }
        self.merge_long(piece, ids);
        Ok(())
    }

    #[inline(always)]
    fn rank(&self, left: u32, right: u32) -> u32 {
        self.merges.get(pack(left, right)).unwrap_or(NONE)
    }

    /// Merges by looking for the lowest rank among all pairs, again and again.
    fn merge_short(&self, piece: &[u8], scratch: &mut Scratch, ids: &mut Vec<u32>) {
        let (tokens, ranks) = (&mut scratch.ids, &mut scratch.ranks);
        tokens.clear();
        tokens.extend(piece.iter().map(|&byte| u32::from(byte)));
        ranks.clear();
        ranks.extend(piece.windows(2).map(|pair| self.rank(u32::from(pair[0]), u32::from(pair[1]))));
        while let Some(lowest) = ranks.iter().copied().min().filter(|&rank| rank != NONE) {
            let at = ranks.iter().position(|&rank| rank == lowest).expect("it was just found");
            tokens[at] = lowest; // a merge's rank is the id that it makes
            tokens.remove(at + 1);
            ranks.remove(at);
            if at > 0 {
                ranks[at - 1] = self.rank(tokens[at - 1], lowest);
            }
            if at < ranks.len() {
                ranks[at] = self.rank(lowest, tokens[at + 1]);
            }
        }
        ids.extend_from_slice(tokens);
    }

    /// The same with a heap: `n log n` in the length, 12 bytes of memory a byte of text.
    fn merge_long(&self, piece: &[u8], ids: &mut Vec<u32>) {
        let mut symbols = Symbols::with_capacity(piece.len() + 2);
        symbols.push(WALL);
        piece.iter().for_each(|&byte| symbols.push(u32::from(byte)));
        symbols.push(WALL);
        let entry = |rank: u32, place: usize| Reverse(u64::from(rank) << 32 | place as u64);
        let first = piece.windows(2).enumerate().filter_map(|(index, pair)| {
            let rank = self.rank(u32::from(pair[0]), u32::from(pair[1]));
            (rank != NONE).then(|| entry(rank, index + 1))
        });
        let mut heap: BinaryHeap<Reverse<u64>> = first.collect::<Vec<_>>().into();
        while let Some(Reverse(lowest)) = heap.pop() {
            let (rank, place) = ((lowest >> 32) as u32, lowest as u32 as usize);
            let left = symbols.get(place);
            if left as usize >= self.size() {
                continue; // no token starts here any more
            }
            let middle = place + self.length(left);
            let right = symbols.get(middle);
            if right == WALL || self.rank(left, right) != rank {
                continue; // another merge took one of the two
            }
            let end = middle + self.length(right);
            symbols.join(place, middle, end, rank);
            if let Some(before) = symbols.before(place) {
                let new = self.rank(before, rank);
                if new != NONE {
                    heap.push(entry(new, place - self.length(before)));
                }
            }
            let new = self.rank(rank, symbols.get(end));
            if new != NONE {
                heap.push(entry(new, place));
            }
        }
        let mut place = 1;
        while symbols.get(place) != WALL {
            ids.push(symbols.get(place));
            place += self.length(symbols.get(place));
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
    fn short_and_long_merging_agree_and_every_token_encodes_to_itself() {
        for letters in 1..5 {
            let encoder = encoder(&generated(3000, letters, letters), 300, "nanochat");
            for id in 0..encoder.size() as u32 {
                let token = std::str::from_utf8(encoder.token(id).unwrap());
                assert!(token.is_err() || encoder.encode(token.unwrap()).unwrap() == [id]);
            }
            for length in 1..200 {
                let text = generated(length, letters, 77 + length as u64);
                let (mut short, mut long) = (Vec::new(), Vec::new());
                encoder.merge_short(text.as_bytes(), &mut Scratch::new(), &mut short);
                encoder.merge_long(text.as_bytes(), &mut long);
                assert_eq!(short, long);
                assert_eq!(encoder.encode(&text).unwrap(), long);
                assert_eq!(encoder.decode(long.into_iter(), 0).unwrap(), text.as_bytes());
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
