//! Merging one piece: lowest rank first, from left to right. Three ways to find it, by the length
//! of the piece, with the same result.

use std::cmp::Reverse;
use std::collections::BinaryHeap;

use crate::characters::{Characters, SLACK};
use crate::symbols::{Symbols, WALL};
use crate::vocabulary::{Vocabulary, NONE};

/// Up to this many bytes all pairs are looked at for each merge: a handful of compares beats a heap.
const SHORT: usize = 1 << PLACE_BITS;
const PLACE_BITS: u32 = 8;
/// Keys compared at once.
const LANES: usize = 8;
/// Up to this many bytes a heap orders the pairs. Beyond, its jumps through memory cost more than a
/// list for each rank does.
const MEDIUM: usize = 4096;

/// Buffers kept between pieces.
pub struct Scratch {
    characters: Characters,
    tokens: [u32; SHORT + SLACK],
    /// `rank << PLACE_BITS | place` of the pair that starts at each place, or more than any where there is
    /// none: the lowest says at once what merges and where. Signed, because the oldest vector units
    /// compare only such.
    keys: [i32; SHORT],
    /// Places of the neighbours.
    before: [u16; SHORT],
    after: [u16; SHORT],
}

impl Default for Scratch {
    fn default() -> Self {
        Scratch {
            characters: Characters::default(),
            tokens: [0; SHORT + SLACK],
            keys: [0; SHORT],
            before: [0; SHORT],
            after: [0; SHORT],
        }
    }
}

#[inline(always)]
fn key(rank: u32, place: usize) -> i32 {
    (rank << PLACE_BITS) as i32 | place as i32
}

/// The lower of each two keys, side by side.
#[inline(always)]
fn least(mut lowest: [i32; LANES], keys: &[i32]) -> [i32; LANES] {
    for (low, &key) in lowest.iter_mut().zip(keys) {
        *low = key.min(*low);
    }
    lowest
}

impl Vocabulary {
    /// Appends the ids of a piece of text of 1 to [`crate::MAX_BYTES`] bytes.
    #[inline]
    pub fn merge(&self, piece: &[u8], scratch: &mut Scratch, ids: &mut Vec<u32>) {
        if piece.len() <= SHORT {
            self.merge_short(piece, scratch, ids);
        } else if piece.len() <= MEDIUM || !self.in_order() {
            self.merge_medium(piece, ids);
        } else {
            self.merge_long(piece, ids);
        }
    }

    fn merge_short(&self, piece: &[u8], scratch: &mut Scratch, ids: &mut Vec<u32>) {
        let Scratch { characters, tokens, keys, before, after } = scratch;
        let count = if piece.is_ascii() {
            for (token, &byte) in tokens.iter_mut().zip(piece) {
                *token = self.byte(byte);
            }
            piece.len()
        } else {
            characters.fill(self, piece, tokens)
        };
        for place in 0..count - 1 {
            keys[place] = key(self.rank(tokens[place], tokens[place + 1]), place);
        }
        keys[count - 1] = i32::MAX;
        for place in 0..count {
            before[place] = (place as u16).wrapping_sub(1);
            after[place] = place as u16 + 1;
        }
        let lanes = count.next_multiple_of(LANES);
        keys[count..lanes].fill(i32::MAX);
        loop {
            let lowest = keys[..lanes].chunks_exact(LANES).fold([i32::MAX; LANES], least);
            let lowest = lowest.into_iter().fold(i32::MAX, i32::min);
            if lowest >= key(NONE, 0) {
                break;
            }
            let place = lowest as usize % SHORT;
            let merged = self.made(lowest as u32 >> PLACE_BITS);
            let gone = usize::from(after[place]);
            let next = usize::from(after[gone]);
            tokens[place] = merged;
            tokens[gone] = NONE;
            keys[gone] = i32::MAX;
            after[place] = next as u16;
            keys[place] = if next < count {
                before[next] = place as u16;
                key(self.rank(merged, tokens[next]), place)
            } else {
                i32::MAX
            };
            if place > 0 {
                let left = usize::from(before[place]);
                keys[left] = key(self.rank(tokens[left], merged), left);
            }
        }
        // Without a branch or a chain from token to token: each is written, and those that are gone are
        // written over.
        let mut end = ids.len();
        ids.resize(end + count, 0);
        for &token in &tokens[..count] {
            ids[end] = token;
            end += usize::from(token != NONE);
        }
        ids.truncate(end);
    }

    /// With a heap of rank and place: `n log n` in the length, which may be of any bytes.
    pub fn merge_medium(&self, piece: &[u8], ids: &mut Vec<u32>) {
        let entry = |(rank, place): (u32, usize)| Reverse(u64::from(rank) << 32 | place as u64);
        let mut symbols = self.symbols(piece);
        let mut heap: BinaryHeap<Reverse<u64>> = self.pairs_of(piece).map(entry).collect::<Vec<_>>().into();
        while let Some(Reverse(lowest)) = heap.pop() {
            let (rank, place) = ((lowest >> 32) as u32, lowest as u32 as usize);
            for found in self.join(&mut symbols, rank, place).into_iter().flatten() {
                heap.push(entry(found));
            }
        }
        self.collect(&symbols, ids);
    }

    /// With a list of places for each rank. A merge only makes pairs of higher ranks than its own, so
    /// one walk over the ranks is enough, and each step goes through the text from left to right.
    fn merge_long(&self, piece: &[u8], ids: &mut Vec<u32>) {
        let mut symbols = self.symbols(piece);
        let mut places_of: Vec<Vec<u32>> = vec![Vec::new(); self.ranks()];
        for (rank, place) in self.pairs_of(piece) {
            places_of[rank as usize].push(place as u32);
        }
        for rank in 0..self.ranks() {
            let mut places = std::mem::take(&mut places_of[rank]);
            places.sort(); // made of a few ascending runs, which this sort is quick on
            for place in places {
                for (found, place) in self.join(&mut symbols, rank as u32, place as usize).into_iter().flatten() {
                    places_of[found as usize].push(place as u32);
                }
            }
        }
        self.collect(&symbols, ids);
    }

    /// The bytes of a piece as tokens between two walls.
    fn symbols(&self, piece: &[u8]) -> Symbols {
        let mut symbols = Symbols::with_capacity(piece.len() + 2);
        symbols.push(WALL);
        piece.iter().for_each(|&byte| symbols.push(self.byte(byte)));
        symbols.push(WALL);
        symbols
    }

    /// Rank and place of each pair of bytes that merges.
    fn pairs_of<'a>(&'a self, piece: &'a [u8]) -> impl Iterator<Item = (u32, usize)> + 'a {
        let ranks = piece.windows(2).map(|pair| self.rank(self.byte(pair[0]), self.byte(pair[1])));
        ranks.zip(1..).filter(|&(rank, _)| rank != NONE)
    }

    /// Merges the pair at `place` if it still is one that has this rank. Returns the rank and place of
    /// each pair that came about and merges.
    #[inline(always)]
    fn join(&self, symbols: &mut Symbols, rank: u32, place: usize) -> [Option<(u32, usize)>; 2] {
        let left = symbols.get(place);
        if left as usize >= self.size() {
            return [None, None]; // no token starts here any more
        }
        let middle = place + self.length(left);
        let right = symbols.get(middle);
        if right == WALL || self.rank(left, right) != rank {
            return [None, None]; // another merge took one of the two
        }
        let end = middle + self.length(right);
        let merged = self.made(rank);
        symbols.join(place, middle, end, merged);
        let before = symbols.before(place).map(|before| (self.rank(before, merged), place - self.length(before)));
        let after = (self.rank(merged, symbols.get(end)), place);
        [before.filter(|found| found.0 != NONE), Some(after).filter(|found| found.0 != NONE)]
    }

    fn collect(&self, symbols: &Symbols, ids: &mut Vec<u32>) {
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
    use crate::{train, Definition, WordCounts};

    #[test]
    fn all_ways_agree() {
        let mut state = 1u64;
        let mut generated = |length: usize, letters: u64| -> Vec<u8> {
            let mut next = || {
                state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
                (state >> 33) % letters
            };
            (0..length).map(|_| b'a' + next() as u8).collect()
        };
        for letters in 1..5 {
            let mut words = WordCounts::default();
            words.add(&generated(3000, letters), 1);
            let merges = train(&words, 300, |_| true).unwrap();
            let vocabulary = Vocabulary::new(&Definition::of_merges("gpt2", &merges).unwrap()).unwrap();
            for length in 1..=SHORT {
                let piece = generated(length, letters);
                let (mut short, mut medium, mut long) = (Vec::new(), Vec::new(), Vec::new());
                vocabulary.merge_short(&piece, &mut Scratch::default(), &mut short);
                vocabulary.merge_medium(&piece, &mut medium);
                vocabulary.merge_long(&piece, &mut long);
                assert_eq!(short, medium);
                assert_eq!(short, long);
                assert_eq!(short.iter().flat_map(|&id| vocabulary.token(id)).copied().collect::<Vec<_>>(), piece);
            }
        }
    }
}
