//! Learning merges from counted words.
//!
//! The rule: at each step the pair of neighbouring tokens with the highest count is merged; among
//! equals the one with the lowest left id, then the lowest right id. In a run such as `aaa` both
//! overlapping pairs count, and merging goes from left to right. Bytes are the ids 0 to 255, merges
//! follow from 256 on. The result depends on the counts alone, not on the order of the words.

use std::cmp::Reverse;
use std::collections::BinaryHeap;

use crate::count::WordCounts;
use crate::hash::{pack, unpack, PairTable};
use crate::symbols::{Symbols, WALL};
use crate::Error;

#[derive(Default)]
struct Pair {
    count: i64,
    /// Where the pair stood when it came about, in ascending order; places that were merged away
    /// since then are found out when the pair itself is merged.
    places: Vec<u32>,
}

struct Trainer {
    symbols: Symbols,
    /// Word number of each place, and the count of each word.
    word_at: Vec<u32>,
    weights: Vec<i64>,
    index: PairTable,
    pairs: Vec<Pair>,
    /// Length in bytes of each id.
    lengths: Vec<u32>,
}

impl Trainer {
    fn new(words: &WordCounts) -> Result<Self, Error> {
        let slots = words.bytes() + words.len() + 1;
        if slots > crate::MAX_BYTES {
            return Err(Error::TooLong { what: "the different words of the text together", bytes: slots });
        }
        let mut symbols = Symbols::with_capacity(slots);
        let mut word_at = Vec::with_capacity(slots);
        let mut weights = Vec::new();
        symbols.push(WALL);
        word_at.push(0);
        for (word, count) in words.iter().filter(|(word, _)| word.len() > 1) {
            for &byte in word {
                symbols.push(u32::from(byte));
            }
            symbols.push(WALL);
            word_at.resize(symbols.len(), weights.len() as u32);
            weights.push(count as i64);
        }
        let mut trainer = Trainer {
            symbols,
            word_at,
            weights,
            index: PairTable::with_capacity(1 << 16),
            pairs: Vec::new(),
            lengths: vec![1; 256],
        };
        trainer.count_bytes();
        Ok(trainer)
    }

    fn weight(&self, place: usize) -> i64 {
        self.weights[self.word_at[place] as usize]
    }

    /// The pairs of bytes: counted in a flat table first, so that each list of places has its final
    /// size from the start.
    fn count_bytes(&mut self) {
        let of = |left: u32, right: u32| (left << 8 | right) as usize;
        let neighbours = |symbols: &Symbols, place: usize| {
            let (left, right) = (symbols.get(place), symbols.get(place + 1));
            (left != WALL && right != WALL).then_some((left, right))
        };
        let places = self.symbols.len() - 1;
        let mut sizes = vec![0usize; 1 << 16];
        for place in 0..places {
            if let Some((left, right)) = neighbours(&self.symbols, place) {
                sizes[of(left, right)] += 1;
            }
        }
        let mut number = vec![u32::MAX; 1 << 16];
        for (key, &size) in sizes.iter().enumerate().filter(|(_, &size)| size > 0) {
            number[key] = self.pairs.len() as u32;
            self.index.get_or_insert_with(pack(key as u32 >> 8, key as u32 & 255), || number[key]);
            self.pairs.push(Pair { count: 0, places: Vec::with_capacity(size) });
        }
        for place in 0..places {
            if let Some((left, right)) = neighbours(&self.symbols, place) {
                let weight = self.weight(place);
                let pair = &mut self.pairs[number[of(left, right)] as usize];
                pair.count += weight;
                pair.places.push(place as u32);
            }
        }
    }

    fn count_of(&self, pair: u64) -> i64 {
        self.index.get(pair).map_or(0, |index| self.pairs[index as usize].count)
    }

    fn lose(&mut self, left: u32, right: u32, weight: i64) {
        if let Some(index) = self.index.get(pack(left, right)) {
            self.pairs[index as usize].count -= weight;
        }
    }

    fn gain(&mut self, left: u32, right: u32, weight: i64, place: usize, fresh: &mut Vec<u64>) {
        let next = self.pairs.len() as u32;
        let index = self.index.get_or_insert_with(pack(left, right), || next);
        if index == next {
            self.pairs.push(Pair::default());
            fresh.push(pack(left, right));
        }
        let pair = &mut self.pairs[index as usize];
        pair.count += weight;
        pair.places.push(place as u32);
    }

    /// Merges `pair` everywhere into a new id. Only pairs with that new id gain counts; they are
    /// written to `fresh`.
    fn merge(&mut self, pair: u64, fresh: &mut Vec<u64>) {
        let (left, right) = unpack(pair);
        let merged = self.lengths.len() as u32;
        let (left_length, right_length) = (self.lengths[left as usize], self.lengths[right as usize]);
        self.lengths.push(left_length + right_length);
        let Some(index) = self.index.get(pair) else { return };
        let places = std::mem::take(&mut self.pairs[index as usize].places);
        for place in places {
            let place = place as usize;
            let middle = place + left_length as usize;
            if self.symbols.get(place) != left || self.symbols.get(middle) != right {
                continue;
            }
            let end = middle + right_length as usize;
            let weight = self.weight(place);
            if let Some(before) = self.symbols.before(place) {
                let start = place - self.lengths[before as usize] as usize;
                self.lose(before, left, weight);
                self.gain(before, merged, weight, start, fresh);
            }
            let after = self.symbols.get(end);
            if after != WALL {
                self.lose(right, after, weight);
                self.gain(merged, after, weight, place, fresh);
            }
            self.symbols.join(place, middle, end, merged);
        }
        self.pairs[index as usize].count = 0;
    }
}

/// Learns up to `merges` merges, fewer where no pair is left. Every so often `tick` hears how many
/// there are; when it returns false, the work stops with [`Error::Stopped`].
pub fn train(words: &WordCounts, merges: usize, mut tick: impl FnMut(usize) -> bool) -> Result<Vec<(u32, u32)>, Error> {
    let mut trainer = Trainer::new(words)?;
    let mut learned: Vec<(u32, u32)> = Vec::with_capacity(merges);
    let first = (0..1u32 << 16).map(|key| pack(key >> 8, key & 255));
    let mut heap: BinaryHeap<(i64, Reverse<u64>)> =
        first.map(|pair| (trainer.count_of(pair), Reverse(pair))).filter(|(count, _)| *count > 0).collect();
    let mut fresh = Vec::new();
    while learned.len() < merges {
        let Some((count, Reverse(pair))) = heap.pop() else { break };
        let current = trainer.count_of(pair);
        if current < count {
            // The count fell since this entry was made. It never rises later, so the entry was an
            // upper bound, and the order of the heap holds.
            if current > 0 {
                heap.push((current, Reverse(pair)));
            }
            continue;
        }
        trainer.merge(pair, &mut fresh);
        learned.push(unpack(pair));
        for pair in fresh.drain(..) {
            let count = trainer.count_of(pair);
            if count > 0 {
                heap.push((count, Reverse(pair)));
            }
        }
        if learned.len() % 64 == 0 && !tick(learned.len()) {
            return Err(Error::Stopped);
        }
    }
    Ok(learned)
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::collections::BTreeMap;

    fn counts(words: &[(&str, u64)]) -> WordCounts {
        let mut counts = WordCounts::default();
        for (word, count) in words {
            counts.add(word.as_bytes(), *count);
        }
        counts
    }

    /// The same rule, by recounting everything at each step.
    fn slow(words: &WordCounts, merges: usize) -> Vec<(u32, u32)> {
        let mut words: Vec<(Vec<u32>, u64)> =
            words.iter().map(|(word, count)| (word.iter().map(|&byte| u32::from(byte)).collect(), count)).collect();
        let mut learned = Vec::new();
        while learned.len() < merges {
            let mut pairs: BTreeMap<(u32, u32), u64> = BTreeMap::new();
            for (word, count) in &words {
                for pair in word.windows(2) {
                    *pairs.entry((pair[0], pair[1])).or_default() += count;
                }
            }
            let Some((&best, _)) = pairs.iter().max_by_key(|(&pair, &count)| (count, Reverse(pair))) else { break };
            let merged = 256 + learned.len() as u32;
            for (word, _) in &mut words {
                let mut at = 0;
                while at + 1 < word.len() {
                    if (word[at], word[at + 1]) == best {
                        word[at] = merged;
                        word.remove(at + 1);
                    }
                    at += 1;
                }
            }
            learned.push(best);
        }
        learned
    }

    #[test]
    fn ties_go_to_the_lowest_ids_and_runs_merge_from_the_left() {
        let words = counts(&[("ab", 1), ("aa", 1), ("ba", 1)]);
        assert_eq!(train(&words, 10, |_| true).unwrap(), vec![(97, 97), (97, 98), (98, 97)]);
        let words = counts(&[("aaaaa", 1)]);
        assert_eq!(train(&words, 10, |_| true).unwrap(), vec![(97, 97), (256, 97), (256, 257)]);
    }

    #[test]
    fn equals_recounting_on_generated_words() {
        let mut state = 5u64;
        let mut next = |bound: u64| {
            state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
            (state >> 33) % bound
        };
        for round in 0..200 {
            let letters = 1 + round % 4;
            let mut words = WordCounts::default();
            for _ in 0..next(30) {
                let word: Vec<u8> = (0..1 + next(12)).map(|_| b'a' + next(letters) as u8).collect();
                words.add(&word, 1 + next(5));
            }
            assert_eq!(train(&words, 60, |_| true).unwrap(), slow(&words, 60));
        }
    }

    #[test]
    fn stops_when_told() {
        let words = counts(&[(&(' '..'z').collect::<String>(), 3)]);
        assert_eq!(train(&words, 400, |_| false), Err(Error::Stopped));
        assert_eq!(train(&counts(&[]), 400, |_| true), Ok(vec![]));
    }
}
