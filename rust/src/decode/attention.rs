//! Attention of a few queries over the keys and values of their sequence, fp32 or bf16 in blocks of the cache.
//!
//! Neighbouring queries see nearly the same tokens, so a tile of them shares each load of keys and values. What a query does not
//! see has weight 0 in its sums, and each of its sums is taken in the order of positions: its bits are the same alone.

use std::marker::PhantomData;
use std::ops::Range;

use super::cache::Element;
use super::dot::Level;
#[cfg(target_arch = "x86_64")]
use super::lanes::x86;
use super::lanes::Lanes;
use super::math::{exp, sum};

/// Tokens of a block: as many keys as a register holds are scored at once.
pub const BLOCK: usize = 16;

/// One query (D): the mean of the values of the positions that it sees is written into `output` (D).
pub struct Query<'a> {
    pub query: &'a [f32],
    pub output: &'a mut [f32],
    pub sees: Range<usize>,
}

/// Attends with queries of one sequence, in the order of their positions. The last is scratch.
pub type Attend<E> = unsafe fn(&mut [Query<'_>], &Blocks<'_, E>, &mut Vec<f32>);

/// Keys (D, BLOCK) and values (BLOCK, D) of one sequence, layer and head. The bits of a result do not depend on where they are.
pub struct Blocks<'a, E> {
    keys: *const E,
    values: *const E,
    blocks: &'a [u32],
    stride: usize,
    width: usize,
    lent: PhantomData<&'a [E]>,
}

impl<'a, E> Blocks<'a, E> {
    /// Block b of width D begins `b * stride` numbers behind `keys` and `values`.
    ///
    /// # Safety
    /// That holds for each of `blocks`, and nobody writes them during `'a`.
    pub unsafe fn new(keys: *const E, values: *const E, blocks: &'a [u32], stride: usize, width: usize) -> Self {
        Blocks { keys, values, blocks, stride, width, lent: PhantomData }
    }

    /// All keys (D, BLOCK) of the block at `place`, seen or not.
    #[inline(always)]
    fn keys(&self, place: usize) -> &'a [[E; BLOCK]] {
        // SAFETY: a block, by the promise made to `new`.
        unsafe {
            let start = self.keys.add(self.blocks[place] as usize * self.stride);
            std::slice::from_raw_parts(start.cast(), self.width)
        }
    }

    /// Values (BLOCK, D) of the block at `place`, seen or not.
    #[inline(always)]
    fn values(&self, place: usize) -> &'a [E] {
        // SAFETY: as above.
        unsafe {
            let start = self.values.add(self.blocks[place] as usize * self.stride);
            std::slice::from_raw_parts(start, BLOCK * self.width)
        }
    }
}

/// Scores of the keys in N blocks from `place` on, for each of Q queries: into `scores` (Q, length), from `at` on.
#[inline(always)]
fn score<E: Element, L: Lanes, const Q: usize, const N: usize>(
    queries: &[&[f32]; Q],
    blocks: &Blocks<'_, E>,
    place: usize,
    (scores, length, at): (&mut [f32], usize, usize),
) {
    let width = blocks.width;
    let mut keys: [&[[E; BLOCK]]; N] = [&[]; N];
    for (index, keys) in keys.iter_mut().enumerate() {
        *keys = &blocks.keys(place + index)[..width];
    }
    let mut sums = [[L::zero(); N]; Q];
    for column in 0..width {
        for query in 0..Q {
            for block in 0..N {
                let q = L::all(queries[query][column]);
                sums[query][block] = q.multiply_add(L::load(&keys[block][column]), sums[query][block]);
            }
        }
    }
    let factor = L::all(1.0 / (width as f32).sqrt());
    for (query, sums) in sums.into_iter().enumerate() {
        let scores = scores[query * length + at..][..N * BLOCK].as_chunks_mut::<BLOCK>().0;
        for (sum, scores) in sums.into_iter().zip(scores) {
            sum.multiply_add(factor, L::zero()).store(scores);
        }
    }
}

/// Makes one query's scores its weights, without their sum's division, and returns 1 / the sum. Outside `seen` they are 0.
#[inline(always)]
fn softmax(scores: &mut [f32], seen: Range<usize>) -> f32 {
    scores[..seen.start].fill(0.0);
    scores[seen.end..].fill(0.0);
    let mut most = [f32::NEG_INFINITY; 16];
    let (chunks, rest) = scores[seen.clone()].as_chunks_mut::<16>();
    for chunk in chunks.iter() {
        for i in 0..16 {
            most[i] = if chunk[i] > most[i] { chunk[i] } else { most[i] };
        }
    }
    let mut highest = f32::NEG_INFINITY;
    for &score in most.iter().chain(rest.iter()) {
        highest = if score > highest { score } else { highest };
    }
    for score in scores[seen].iter_mut() {
        *score = exp(*score - highest);
    }
    1.0 / sum(scores, |x| x)
}

/// 16 N columns from `start` on of the means of the values at `sees`, for each of Q queries, kept in registers.
#[inline(always)]
fn average<E: Element, L: Lanes, const Q: usize, const N: usize>(
    queries: &mut [Query<'_>; Q],
    blocks: &Blocks<'_, E>,
    sees: &Range<usize>,
    (weights, length, inverses): (&[f32], usize, &[f32; Q]),
    start: usize,
) {
    let mut rows: [&[f32]; Q] = [&[]; Q];
    for (query, row) in rows.iter_mut().enumerate() {
        *row = &weights[query * length..][..length];
    }
    let mut sums = [[L::zero(); N]; Q];
    let first = sees.start / BLOCK;
    for place in first..sees.end.div_ceil(BLOCK) {
        let values = blocks.values(place);
        let tokens = sees.start.max(place * BLOCK)..sees.end.min((place + 1) * BLOCK);
        for token in tokens {
            let columns = values[token % BLOCK * blocks.width + start..][..16 * N].as_chunks::<16>().0;
            for query in 0..Q {
                for part in 0..N {
                    let weight = L::all(rows[query][token - first * BLOCK]);
                    sums[query][part] = weight.multiply_add(L::load(&columns[part]), sums[query][part]);
                }
            }
        }
    }
    for (query, sums) in sums.into_iter().enumerate() {
        let output = queries[query].output[start..][..16 * N].as_chunks_mut::<16>().0;
        for (sum, output) in sums.into_iter().zip(output) {
            sum.multiply_add(L::all(inverses[query]), L::zero()).store(output);
        }
    }
}

/// Attention of Q queries together, N blocks or 16 N columns at a time.
#[inline(always)]
fn tile<E: Element, L: Lanes, const Q: usize, const N: usize>(
    queries: &mut [Query<'_>; Q],
    blocks: &Blocks<'_, E>,
    scores: &mut Vec<f32>,
) {
    let mut vectors: [&[f32]; Q] = [&[]; Q];
    let mut sees = queries[0].sees.clone();
    for (query, vector) in queries.iter().zip(&mut vectors) {
        *vector = &query.query[..blocks.width];
        sees = sees.start.min(query.sees.start)..sees.end.max(query.sees.end);
    }
    let places = sees.start / BLOCK..sees.end.div_ceil(BLOCK);
    let (length, whole) = (places.len() * BLOCK, places.end - places.len() % N);
    scores.resize(Q * length, 0.0);
    for place in (places.start..whole).step_by(N) {
        score::<E, L, Q, N>(&vectors, blocks, place, (scores, length, (place - places.start) * BLOCK));
    }
    for place in whole..places.end {
        score::<E, L, Q, 1>(&vectors, blocks, place, (scores, length, (place - places.start) * BLOCK));
    }
    let mut inverses = [0.0; Q];
    for (query, inverse) in inverses.iter_mut().enumerate() {
        let (from, to) = (queries[query].sees.start, queries[query].sees.end);
        let first = places.start * BLOCK;
        *inverse = softmax(&mut scores[query * length..][..length], from - first..to - first);
    }
    let mut start = 0;
    while start + 16 * N <= blocks.width {
        average::<E, L, Q, N>(queries, blocks, &sees, (scores, length, &inverses), start);
        start += 16 * N;
    }
    while start + 16 <= blocks.width {
        average::<E, L, Q, 1>(queries, blocks, &sees, (scores, length, &inverses), start);
        start += 16;
    }
    for query in 0..Q {
        for column in start..blocks.width {
            let mut sum = 0.0;
            for token in sees.clone() {
                let value = blocks.values(token / BLOCK)[token % BLOCK * blocks.width + column].float();
                sum += scores[query * length + token - places.start * BLOCK] * value;
            }
            queries[query].output[column] = sum * inverses[query];
        }
    }
}

/// Q queries at a time, the rest one by one.
#[inline(always)]
fn attend<E: Element, L: Lanes, const Q: usize, const N: usize>(
    queries: &mut [Query<'_>],
    blocks: &Blocks<'_, E>,
    scores: &mut Vec<f32>,
) {
    let (tiles, rest) = queries.as_chunks_mut::<Q>();
    for queries in tiles {
        tile::<E, L, Q, N>(queries, blocks, scores);
    }
    for query in rest {
        tile::<E, L, 1, 4>(std::array::from_mut(query), blocks, scores);
    }
}

macro_rules! entry {
    ($name:ident, $features:literal, $lanes:ty, $queries:literal, $parts:literal) => {
        #[cfg(target_arch = "x86_64")]
        #[target_feature(enable = $features)]
        fn $name<E: Element>(queries: &mut [Query<'_>], blocks: &Blocks<'_, E>, scores: &mut Vec<f32>) {
            attend::<E, $lanes, $queries, $parts>(queries, blocks, scores);
        }
    };
}

entry!(avx512, "avx512f", std::arch::x86_64::__m512, 4, 4);
entry!(avx2, "avx2,fma", x86::Pair, 3, 2);

/// The fastest way that this processor has, not above `level`.
pub fn kernel<E: Element>(level: Level) -> Attend<E> {
    #[cfg(target_arch = "x86_64")]
    {
        if level >= Level::Avx512 && is_x86_feature_detected!("avx512f") {
            return avx512::<E>;
        }
        if level >= Level::Avx2 && is_x86_feature_detected!("avx2") && is_x86_feature_detected!("fma") {
            return avx2::<E>;
        }
    }
    let _ = level;
    attend::<E, [f32; 16], 2, 1>
}
