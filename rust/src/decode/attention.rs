//! Attention of one query over the keys and values of its sequence, fp32 or bf16 in blocks of the cache.

use std::marker::PhantomData;
use std::ops::Range;

use super::cache::Element;
use super::dot::Level;
use super::math::{exp, sum};

/// Tokens of a block: as many keys as a register holds are scored at once.
pub const BLOCK: usize = 16;

/// Attends with a query (D) over T tokens: writes the mean of their values into `output` (D). The last is scratch.
pub type Attend<E> = unsafe fn(&[f32], &Seen<'_, E>, &mut [f32], &mut Vec<f32>);

/// The tokens that a query sees, which lie in blocks of one layer and head: keys (D, BLOCK), values (BLOCK, D). The bits of the
/// result do not depend on where the blocks are.
pub struct Seen<'a, E> {
    keys: *const E,
    values: *const E,
    blocks: &'a [u32],
    stride: usize,
    width: usize,
    tokens: Range<usize>,
    lent: PhantomData<&'a [E]>,
}

impl<'a, E> Seen<'a, E> {
    /// `tokens` of width D; block b begins `b * stride` numbers behind `keys` and `values`.
    ///
    /// # Safety
    /// That holds for each of `blocks`, which cover `tokens`, and nobody writes these blocks during `'a`.
    pub unsafe fn new(
        keys: *const E,
        values: *const E,
        blocks: &'a [u32],
        stride: usize,
        width: usize,
        tokens: Range<usize>,
    ) -> Seen<'a, E> {
        assert!(tokens.end <= blocks.len() * BLOCK);
        Seen { keys, values, blocks, stride, width, tokens, lent: PhantomData }
    }

    /// Places in `blocks` that hold seen tokens.
    #[inline(always)]
    fn places(&self) -> Range<usize> {
        self.tokens.start / BLOCK..self.tokens.end.div_ceil(BLOCK)
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

    /// Values (tokens, D) of the seen tokens in the block at `place`.
    #[inline(always)]
    fn values(&self, place: usize) -> &'a [E] {
        let first = place * BLOCK;
        let (from, to) = (self.tokens.start.max(first), self.tokens.end.min(first + BLOCK));
        let start = self.blocks[place] as usize * self.stride + (from - first) * self.width;
        // SAFETY: within the block, by the promise made to `new`.
        unsafe { std::slice::from_raw_parts(self.values.add(start), (to - from) * self.width) }
    }
}

/// Sixteen fp32 numbers in registers.
trait Lanes: Copy {
    fn zero() -> Self;
    /// Every lane is x.
    fn all(x: f32) -> Self;
    fn load<E: Element>(numbers: &[E; 16]) -> Self;
    /// self * x + y
    fn multiply_add(self, x: Self, y: Self) -> Self;
    fn store(self, numbers: &mut [f32; 16]);
}

impl Lanes for [f32; 16] {
    #[inline(always)]
    fn zero() -> Self {
        [0.0; 16]
    }
    #[inline(always)]
    fn all(x: f32) -> Self {
        [x; 16]
    }
    #[inline(always)]
    fn load<E: Element>(numbers: &[E; 16]) -> Self {
        numbers.map(E::float)
    }
    #[inline(always)]
    fn multiply_add(mut self, x: Self, y: Self) -> Self {
        for i in 0..16 {
            self[i] = self[i] * x[i] + y[i];
        }
        self
    }
    #[inline(always)]
    fn store(self, numbers: &mut [f32; 16]) {
        *numbers = self;
    }
}

#[cfg(target_arch = "x86_64")]
mod x86 {
    use super::{Element, Lanes};
    use std::arch::x86_64::*;

    // SAFETY of this module: its functions are inlined into kernels that are entered only after their instructions were found
    // (`kernel`). Loads and stores stay within the array that is borrowed; `Element` says which of the two types it holds.

    impl Lanes for __m512 {
        #[inline(always)]
        fn zero() -> Self {
            // SAFETY: above.
            unsafe { _mm512_setzero_ps() }
        }
        #[inline(always)]
        fn all(x: f32) -> Self {
            // SAFETY: above.
            unsafe { _mm512_set1_ps(x) }
        }
        #[inline(always)]
        fn load<E: Element>(numbers: &[E; 16]) -> Self {
            // SAFETY: above.
            unsafe {
                if E::BF16 {
                    let halves = _mm256_loadu_si256(numbers.as_ptr().cast());
                    _mm512_castsi512_ps(_mm512_slli_epi32(_mm512_cvtepu16_epi32(halves), 16))
                } else {
                    _mm512_loadu_ps(numbers.as_ptr().cast())
                }
            }
        }
        #[inline(always)]
        fn multiply_add(self, x: Self, y: Self) -> Self {
            // SAFETY: above.
            unsafe { _mm512_fmadd_ps(self, x, y) }
        }
        #[inline(always)]
        fn store(self, numbers: &mut [f32; 16]) {
            // SAFETY: above.
            unsafe { _mm512_storeu_ps(numbers.as_mut_ptr(), self) }
        }
    }

    /// Two halves of 256 bits.
    #[derive(Clone, Copy)]
    pub struct Pair(__m256, __m256);

    impl Lanes for Pair {
        #[inline(always)]
        fn zero() -> Self {
            // SAFETY: above.
            unsafe { Pair(_mm256_setzero_ps(), _mm256_setzero_ps()) }
        }
        #[inline(always)]
        fn all(x: f32) -> Self {
            // SAFETY: above.
            unsafe { Pair(_mm256_set1_ps(x), _mm256_set1_ps(x)) }
        }
        #[inline(always)]
        fn load<E: Element>(numbers: &[E; 16]) -> Self {
            let start = numbers.as_ptr();
            // SAFETY: above.
            unsafe {
                if E::BF16 {
                    let widen = |half| _mm256_castsi256_ps(_mm256_slli_epi32(_mm256_cvtepu16_epi32(half), 16));
                    Pair(widen(_mm_loadu_si128(start.cast())), widen(_mm_loadu_si128(start.add(8).cast())))
                } else {
                    Pair(_mm256_loadu_ps(start.cast()), _mm256_loadu_ps(start.add(8).cast()))
                }
            }
        }
        #[inline(always)]
        fn multiply_add(self, x: Self, y: Self) -> Self {
            // SAFETY: above.
            unsafe { Pair(_mm256_fmadd_ps(self.0, x.0, y.0), _mm256_fmadd_ps(self.1, x.1, y.1)) }
        }
        #[inline(always)]
        fn store(self, numbers: &mut [f32; 16]) {
            let start = numbers.as_mut_ptr();
            // SAFETY: above.
            unsafe {
                _mm256_storeu_ps(start, self.0);
                _mm256_storeu_ps(start.add(8), self.1);
            }
        }
    }
}

/// Scores of all keys in N blocks. Four sums run side by side: latency of an addition is four cycles.
#[inline(always)]
fn scores_of<E: Element, L: Lanes, const N: usize>(
    query: &[f32],
    keys: [&[[E; BLOCK]]; N],
    factor: f32,
    scores: &mut [[f32; BLOCK]],
) {
    let mut sums = [[L::zero(); 4]; N];
    let (fours, rest) = query.as_chunks::<4>();
    for (index, four) in fours.iter().enumerate() {
        for chain in 0..4 {
            let q = L::all(four[chain]);
            for block in 0..N {
                sums[block][chain] = q.multiply_add(L::load(&keys[block][4 * index + chain]), sums[block][chain]);
            }
        }
    }
    for (index, q) in rest.iter().enumerate() {
        for block in 0..N {
            let key = L::load(&keys[block][4 * fours.len() + index]);
            sums[block][index] = L::all(*q).multiply_add(key, sums[block][index]);
        }
    }
    for block in 0..N {
        let [a, b, c, d] = sums[block];
        let add = |x: L, y: L| x.multiply_add(L::all(1.0), y);
        add(add(a, b), add(c, d)).multiply_add(L::all(factor), L::zero()).store(&mut scores[block]);
    }
}

#[inline(always)]
fn attend<E: Element, L: Lanes>(query: &[f32], seen: &Seen<'_, E>, output: &mut [f32], scores: &mut Vec<f32>) {
    let (width, places) = (query.len(), seen.places());
    scores.resize(places.len() * BLOCK, 0.0);
    let factor = 1.0 / (width as f32).sqrt();
    let (pairs, last) = scores.as_chunks_mut::<BLOCK>().0.as_chunks_mut::<2>();
    for (place, pair) in places.clone().step_by(2).zip(pairs) {
        scores_of::<E, L, 2>(query, [seen.keys(place), seen.keys(place + 1)], factor, pair);
    }
    if !last.is_empty() {
        scores_of::<E, L, 1>(query, [seen.keys(places.end - 1)], factor, last);
    }
    let scores = &mut scores[seen.tokens.start - places.start * BLOCK..][..seen.tokens.len()];
    let mut most = [f32::NEG_INFINITY; 16];
    let (chunks, rest) = scores.as_chunks::<16>();
    for chunk in chunks {
        for i in 0..16 {
            most[i] = if chunk[i] > most[i] { chunk[i] } else { most[i] };
        }
    }
    let most = most.iter().chain(rest).fold(f32::NEG_INFINITY, |most, &score| most.max(score));
    for score in scores.iter_mut() {
        *score = exp(*score - most);
    }
    let inverse = 1.0 / sum(scores, |x| x);
    let mut start = 0;
    while start + 64 <= width {
        average::<E, L, 4>(scores, seen, start, inverse, output);
        start += 64;
    }
    while start + 16 <= width {
        average::<E, L, 1>(scores, seen, start, inverse, output);
        start += 16;
    }
    for column in start..width {
        let values = seen.places().flat_map(|place| seen.values(place).chunks_exact(width));
        let weighted = scores.iter().zip(values).map(|(score, value)| score * value[column].float());
        output[column] = weighted.sum::<f32>() * inverse;
    }
}

/// 16 N columns from `start` on of the mean of the values, kept in registers.
#[inline(always)]
fn average<E: Element, L: Lanes, const N: usize>(
    scores: &[f32],
    seen: &Seen<'_, E>,
    start: usize,
    inverse: f32,
    output: &mut [f32],
) {
    let mut sums = [L::zero(); N];
    let mut rest = scores;
    for place in seen.places() {
        let values = seen.values(place);
        let (scores, later) = rest.split_at(values.len() / seen.width);
        rest = later;
        for (&score, value) in scores.iter().zip(values.chunks_exact(seen.width)) {
            let chunks = value[start..start + 16 * N].as_chunks::<16>().0;
            for i in 0..N {
                sums[i] = L::all(score).multiply_add(L::load(&chunks[i]), sums[i]);
            }
        }
    }
    for (chunk, sum) in output[start..start + 16 * N].as_chunks_mut::<16>().0.iter_mut().zip(sums) {
        sum.multiply_add(L::all(inverse), L::zero()).store(chunk);
    }
}

macro_rules! entry {
    ($name:ident, $features:literal, $lanes:ty) => {
        #[cfg(target_arch = "x86_64")]
        #[target_feature(enable = $features)]
        fn $name<E: Element>(query: &[f32], seen: &Seen<'_, E>, output: &mut [f32], scores: &mut Vec<f32>) {
            attend::<E, $lanes>(query, seen, output, scores);
        }
    };
}

entry!(avx512, "avx512f", std::arch::x86_64::__m512);
entry!(avx2, "avx2,fma", x86::Pair);

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
    attend::<E, [f32; 16]>
}
