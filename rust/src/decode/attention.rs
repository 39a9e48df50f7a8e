//! Attention of one query over the keys and values of its sequence, fp32 or bf16 in blocks of the cache.

use std::marker::PhantomData;
use std::ops::Range;

use super::dot::Level;
use super::math::{exp, sum, total};
use super::model::Element;

/// Attends with a query (D) over T tokens: writes the mean of their values into `output` (D). `scores` (T) is scratch.
pub type Attend<E> = unsafe fn(&[f32], &Seen<'_, E>, &mut [f32], &mut [f32]);

/// The tokens that a query sees, which lie in blocks of one layer and head. Sums run over tokens, not over blocks: their bits
/// do not depend on where the blocks are or how large.
pub struct Seen<'a, E> {
    keys: *const E,
    values: *const E,
    blocks: &'a [u32],
    stride: usize,
    block_size: usize,
    width: usize,
    tokens: Range<usize>,
    lent: PhantomData<&'a [E]>,
}

impl<'a, E> Seen<'a, E> {
    /// Tokens of width D, `block_size` to a block; block b begins `b * stride` numbers behind `keys` and `values`.
    ///
    /// # Safety
    /// That holds for each of `blocks`, which cover `tokens`, and nobody writes these tokens during `'a`.
    pub unsafe fn new(
        keys: *const E,
        values: *const E,
        blocks: &'a [u32],
        stride: usize,
        block_size: usize,
        width: usize,
        tokens: Range<usize>,
    ) -> Seen<'a, E> {
        assert!(tokens.end <= blocks.len() * block_size);
        Seen { keys, values, blocks, stride, block_size, width, tokens, lent: PhantomData }
    }

    /// Places in `blocks` that hold seen tokens.
    #[inline(always)]
    fn places(&self) -> Range<usize> {
        self.tokens.start / self.block_size..self.tokens.end.div_ceil(self.block_size)
    }

    /// Keys and values (tokens, D) of the seen tokens in the block at `place`.
    #[inline(always)]
    fn block(&self, place: usize) -> (&'a [E], &'a [E]) {
        let first = place * self.block_size;
        let (from, to) = (self.tokens.start.max(first), self.tokens.end.min(first + self.block_size));
        let start = self.blocks[place] as usize * self.stride + (from - first) * self.width;
        let numbers = (to - from) * self.width;
        // SAFETY: within the block, by the promise made to `new`.
        unsafe {
            (
                std::slice::from_raw_parts(self.keys.add(start), numbers),
                std::slice::from_raw_parts(self.values.add(start), numbers),
            )
        }
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
    fn total(self) -> f32;
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
    fn total(self) -> f32 {
        total(self)
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
        fn total(self) -> f32 {
            // SAFETY: above.
            unsafe { _mm512_reduce_add_ps(self) }
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
        fn total(self) -> f32 {
            // SAFETY: above.
            unsafe {
                let eight = _mm256_add_ps(self.0, self.1);
                let four = _mm_add_ps(_mm256_castps256_ps128(eight), _mm256_extractf128_ps(eight, 1));
                let two = _mm_add_ps(four, _mm_movehl_ps(four, four));
                _mm_cvtss_f32(_mm_add_ss(two, _mm_shuffle_ps(two, two, 1)))
            }
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

/// Scores of N keys.
#[inline(always)]
fn dots<E: Element, L: Lanes, const N: usize>(query: &[f32], keys: &[E], scores: &mut [f32]) {
    let width = query.len();
    let (chunks, rest) = query.as_chunks::<16>();
    let (mut lanes, mut last) = ([L::zero(); N], [0f32; N]);
    for (index, chunk) in chunks.iter().enumerate() {
        let q = L::load(chunk);
        for key in 0..N {
            let chunk = keys[key * width + 16 * index..].first_chunk().expect("a key of whole chunks");
            lanes[key] = q.multiply_add(L::load::<E>(chunk), lanes[key]);
        }
    }
    for (index, q) in rest.iter().enumerate() {
        for key in 0..N {
            last[key] += q * keys[key * width + 16 * chunks.len() + index].float();
        }
    }
    for key in 0..N {
        scores[key] = (lanes[key].total() + last[key]) / (width as f32).sqrt();
    }
}

#[inline(always)]
fn attend<E: Element, L: Lanes>(query: &[f32], seen: &Seen<'_, E>, scores: &mut [f32], output: &mut [f32]) {
    let width = query.len();
    let mut rest = &mut *scores;
    for place in seen.places() {
        let (keys, _) = seen.block(place);
        let (scores, later) = rest.split_at_mut(keys.len() / width);
        rest = later;
        let whole = scores.len() / 4 * 4; // four keys at a time: each waits for sums of its own
        for (scores, keys) in scores[..whole].chunks_exact_mut(4).zip(keys.chunks_exact(4 * width)) {
            dots::<E, L, 4>(query, keys, scores);
        }
        for (score, key) in scores[whole..].chunks_exact_mut(1).zip(keys[whole * width..].chunks_exact(width)) {
            dots::<E, L, 1>(query, key, score);
        }
    }
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
        let values = seen.places().flat_map(|place| seen.block(place).1.chunks_exact(width));
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
        let (_, values) = seen.block(place);
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
        fn $name<E: Element>(query: &[f32], seen: &Seen<'_, E>, scores: &mut [f32], output: &mut [f32]) {
            attend::<E, $lanes>(query, seen, scores, output);
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
