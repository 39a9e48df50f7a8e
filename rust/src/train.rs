//! Learning merges from counted words.
//!
//! The rule: at each step the pair of neighbouring tokens with the highest count is merged; among
//! equals the one with the lowest left id, then the lowest right id. In a run such as `aaa` both
//! overlapping pairs count, and merging goes from left to right. Bytes are the ids 0 to 255, merges
//! follow from 256 on. The result depends on the counts alone, not on the order of the words.
//!
//! What makes it quick: a pair comes about only in the step that makes the newer of its tokens, so
//! its count never rises later. Hence each step sums up what it finds by neighbour and looks at the
//! table of pairs once for each; and pairs below a floor, by far the most, are not listed at all
//! until the listed ones are used up. Then the floor is lowered and all pairs are counted anew.

use std::cmp::Reverse;
use std::collections::BinaryHeap;

use crate::count::WordCounts;
use crate::hash::{hash_pair, pack, unpack, PairTable};
use crate::symbols::{Symbols, WALL};
use crate::Error;

/// The first floor as a part of all pairs of bytes, and the step from floor to floor.
const FIRST_FLOOR: i64 = 1 << 17;
const FLOOR_STEP: i64 = 1 << 4;

/// Counters for the sums that pairs share when they are listed; few enough to stay in the cache.
const SUMS: usize = 1 << 18;

/// No index.
const NONE: u32 = u32::MAX;

#[derive(Default)]
struct Pair {
    count: i64,
    /// Where the pair stood when it was listed, in ascending order; places that were merged away
    /// since then are found out when the pair itself is merged.
    places: Vec<u32>,
}

/// What stands on one side of the places that a step merges.
#[derive(Default)]
struct Side {
    /// Each neighbour with the place of the pair that it makes with the new token.
    found: Vec<(u32, u32)>,
    sums: Vec<Sum>,
    /// Neighbours with a sum.
    seen: Vec<u32>,
}

/// All that a step found at one neighbour.
#[derive(Clone, Copy, Default)]
struct Sum {
    count: i64,
    places: u32,
    /// Index of the pair with the new token, or [`NONE`] if that is below the floor.
    index: u32,
}

impl Side {
    #[inline(always)]
    fn note(&mut self, neighbour: u32, place: usize, weight: i64) {
        self.found.push((neighbour, place as u32));
        let sum = &mut self.sums[neighbour as usize];
        if sum.places == 0 {
            self.seen.push(neighbour);
        }
        sum.count += weight;
        sum.places += 1;
    }
}

/// Counted words on their way to merges.
pub struct Trainer {
    symbols: Symbols,
    /// For each place the count of its word.
    weights: Vec<u32>,
    /// Number of slots that each id takes.
    lengths: Vec<u32>,
    floor: i64,
    index: PairTable,
    pairs: Vec<Pair>,
    /// Count, pair and index of all pairs that reach the floor; counts may have fallen since.
    heap: BinaryHeap<(i64, Reverse<u64>, u32)>,
    before: Side,
    after: Side,
}

impl Trainer {
    /// The words as bytes; they are not needed any longer.
    pub fn new(words: &WordCounts) -> Result<Self, Error> {
        let slots = words.bytes() + words.len() + 1;
        if slots > crate::MAX_BYTES {
            return Err(Error::TooLong { what: "the different words of the text together", bytes: slots });
        }
        let mut symbols = Symbols::with_capacity(slots);
        let mut weights = Vec::with_capacity(slots);
        let mut total = 0;
        symbols.push(WALL);
        weights.push(0);
        for (word, mut count) in words.iter().filter(|(word, _)| word.len() > 1) {
            total += count as i64 * (word.len() as i64 - 1);
            while count > 0 {
                let weight = count.min(u64::from(u32::MAX)); // a word with a higher count comes twice
                word.iter().for_each(|&byte| symbols.push(u32::from(byte)));
                symbols.push(WALL);
                weights.resize(symbols.len(), weight as u32);
                count -= weight;
            }
        }
        let side = || Side { sums: vec![Sum::default(); 256], ..Side::default() };
        Ok(Trainer {
            symbols,
            weights,
            lengths: vec![1; 256],
            floor: (total / FIRST_FLOOR).clamp(1, i64::from(u32::MAX)),
            index: PairTable::with_capacity(0),
            pairs: Vec::new(),
            heap: BinaryHeap::new(),
            before: side(),
            after: side(),
        })
    }

    /// Learns up to `merges` merges, fewer where no pair is left. Every so often `tick` hears how many
    /// there are; when it returns false, the work stops with [`Error::Stopped`].
    pub fn learn(mut self, merges: usize, mut tick: impl FnMut(usize) -> bool) -> Result<Vec<(u32, u32)>, Error> {
        let mut learned: Vec<(u32, u32)> = Vec::with_capacity(merges);
        self.list_pairs();
        while learned.len() < merges {
            let Some((count, Reverse(pair), index)) = self.heap.pop() else {
                if self.floor == 1 {
                    break;
                }
                self.floor = (self.floor / FLOOR_STEP).max(1);
                self.compact();
                self.list_pairs();
                continue;
            };
            let current = self.pairs[index as usize].count;
            if current < count {
                // The count fell since this entry was made. It never rises later, so the entry was an
                // upper bound, and the order of the heap holds.
                if current >= self.floor {
                    self.heap.push((current, Reverse(pair), index));
                }
                continue;
            }
            self.merge(unpack(pair), index);
            learned.push(unpack(pair));
            if learned.len().is_multiple_of(64) && !tick(learned.len()) {
                return Err(Error::Stopped);
            }
        }
        Ok(learned)
    }

    /// Gives each token one slot, and drops words that are one token.
    fn compact(&mut self) {
        let (mut from, mut to, mut word) = (1, 1, 1);
        while from < self.symbols.len() {
            let id = self.symbols.get(from);
            self.symbols.put(to, id);
            self.weights[to] = self.weights[from];
            if id != WALL {
                from += self.lengths[id as usize] as usize;
                to += 1;
            } else {
                from += 1;
                to = if to - word < 2 { word } else { to + 1 };
                word = to;
            }
        }
        self.symbols.truncate(to);
        self.weights.truncate(to);
        self.lengths.fill(1);
    }

    /// Lists all pairs whose count reaches the floor. Each token has one slot.
    fn list_pairs(&mut self) {
        self.index = PairTable::with_capacity(0);
        self.pairs = Vec::new();
        let Trainer { symbols, weights, floor, index, pairs, .. } = self;
        let all = || {
            let pair = |place| (symbols.get(place), symbols.get(place + 1));
            let inner = |&(_, (left, right)): &(usize, (u32, u32))| left != WALL && right != WALL;
            let all = (0..symbols.len() - 1).map(move |place| (place, pair(place))).filter(inner);
            all.map(|(place, (left, right))| (place, pack(left, right)))
        };
        // Sums over many pairs each first: most pairs are part of one below the floor.
        let mut sums = vec![0u32; symbols.len().next_power_of_two().min(SUMS)];
        let mask = sums.len() - 1;
        let sum_of = |pair: u64| hash_pair(pair) as usize & mask;
        for (place, pair) in all() {
            let sum = &mut sums[sum_of(pair)];
            *sum = sum.saturating_add(weights[place]);
        }
        let mut keys = Vec::new();
        for (place, pair) in all().filter(|&(_, pair)| i64::from(sums[sum_of(pair)]) >= *floor) {
            let number = index.get_or_insert_with(pair, || pairs.len() as u32) as usize;
            if number == pairs.len() {
                pairs.push(Pair::default());
                keys.push(Reverse(pair));
            }
            pairs[number].count += i64::from(weights[place]);
            pairs[number].places.push(place as u32);
        }
        for ((pair, key), number) in pairs.iter_mut().zip(keys).zip(0..) {
            if pair.count >= *floor {
                pair.places.shrink_to_fit();
                self.heap.push((pair.count, key, number));
            } else {
                pair.places = Vec::new();
            }
        }
    }

    /// Merges a pair everywhere into a new id.
    fn merge(&mut self, (left, right): (u32, u32), index: u32) {
        let merged = self.lengths.len() as u32;
        let (left_length, right_length) = (self.lengths[left as usize], self.lengths[right as usize]);
        self.lengths.push(left_length + right_length);
        self.before.sums.push(Sum::default());
        self.after.sums.push(Sum::default());
        for place in std::mem::take(&mut self.pairs[index as usize].places) {
            let place = place as usize;
            let middle = place + left_length as usize;
            if self.symbols.get(place) != left || self.symbols.get(middle) != right {
                continue;
            }
            let end = middle + right_length as usize;
            let weight = i64::from(self.weights[place]);
            if let Some(before) = self.symbols.before(place) {
                self.before.note(before, place - self.lengths[before as usize] as usize, weight);
            }
            let after = self.symbols.get(end);
            if after != WALL {
                self.after.note(after, place, weight);
            }
            self.symbols.join(place, middle, end, merged);
        }
        // Where one new token follows another, the pair of the first with `left` is gone already.
        let gone = self.before.sums[merged as usize].count;
        let mut side = std::mem::take(&mut self.before);
        self.settle(&mut side, |other| (pack(other, left), pack(other, merged)), (NONE, 0));
        self.before = side;
        let mut side = std::mem::take(&mut self.after);
        self.settle(&mut side, |other| (pack(right, other), pack(merged, other)), (left, gone));
        self.after = side;
        self.pairs[index as usize].count = 0;
    }

    /// For each neighbour, `pairs` says which pair it was in and which one it is in now: takes from the
    /// count of the one, and lists the other if it reaches the floor.
    fn settle(&mut self, side: &mut Side, pairs: impl Fn(u32) -> (u64, u64), gone: (u32, i64)) {
        for id in side.seen.drain(..) {
            let sum = &mut side.sums[id as usize];
            let (old, new) = pairs(id);
            if let Some(index) = self.index.get(old) {
                self.pairs[index as usize].count -= sum.count;
            }
            if gone.0 == id {
                sum.count -= gone.1;
            }
            sum.index = NONE;
            if sum.count >= self.floor {
                sum.index = self.index.get_or_insert_with(new, || self.pairs.len() as u32);
                self.pairs.push(Pair { count: sum.count, places: Vec::with_capacity(sum.places as usize) });
                self.heap.push((sum.count, Reverse(new), sum.index));
            }
            (sum.count, sum.places) = (0, 0);
        }
        for (id, place) in side.found.drain(..) {
            if let Some(pair) = self.pairs.get_mut(side.sums[id as usize].index as usize) {
                pair.places.push(place);
            }
        }
    }
}

/// Learns up to `merges` merges, fewer where no pair is left. Every so often `tick` hears how many
/// there are; when it returns false, the work stops with [`Error::Stopped`].
pub fn train(words: &WordCounts, merges: usize, tick: impl FnMut(usize) -> bool) -> Result<Vec<(u32, u32)>, Error> {
    Trainer::new(words)?.learn(merges, tick)
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
            let expected = slow(&words, 60);
            assert_eq!(train(&words, 60, |_| true).unwrap(), expected);
            for floor in [1, 2, 5, 40, 1000] {
                let trainer = Trainer { floor, ..Trainer::new(&words).unwrap() };
                assert_eq!(trainer.learn(60, |_| true).unwrap(), expected, "from a floor of {floor}");
            }
        }
    }

    #[test]
    fn counts_beyond_32_bits_add_up() {
        let words = counts(&[("ab", 3 << 32 | 1), ("cd", 3 << 32 | 2), ("ef", 3 << 32)]);
        assert_eq!(train(&words, 9, |_| true).unwrap(), vec![(99, 100), (97, 98), (101, 102)]);
    }

    #[test]
    fn stops_when_told() {
        let words = counts(&[(&(' '..'z').collect::<String>(), 3)]);
        assert_eq!(train(&words, 400, |_| false), Err(Error::Stopped));
        assert_eq!(train(&counts(&[]), 400, |_| true), Ok(vec![]));
    }
}
