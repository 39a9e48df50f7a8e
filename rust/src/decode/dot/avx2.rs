//! Products in 256 bits: half a line at a time.

use super::{Dot, Line, PANEL};
use std::arch::x86_64::*;

// SAFETY of this module: its functions are inlined into kernels that are entered only after AVX2 and FMA were found
// (`kernel`). Loads and stores stay within the line or array that is borrowed.

#[inline(always)]
fn load(line: &Line) -> [__m256i; 2] {
    let start = line.0.as_ptr().cast();
    // SAFETY: above; a line is 64 bytes.
    unsafe { [_mm256_load_si256(start), _mm256_load_si256(start.add(1))] }
}

#[inline(always)]
fn store(halves: [__m256; 2]) -> [f32; PANEL] {
    let mut outputs = [0.0; PANEL];
    let start = outputs.as_mut_ptr();
    // SAFETY: above; 16 floats.
    unsafe {
        _mm256_storeu_ps(start, halves[0]);
        _mm256_storeu_ps(start.add(8), halves[1]);
    }
    outputs
}

macro_rules! avx2_dot {
    ($name:ident, $sum:ty, $zero:expr, $step:expr, $float:expr) => {
        pub struct $name;
        impl Dot for $name {
            type Sum = [$sum; 2];
            type Weights = [__m256i; 2];
            #[inline(always)]
            fn zero() -> Self::Sum {
                // SAFETY: above.
                unsafe { [$zero; 2] }
            }
            #[inline(always)]
            fn load(line: &Line) -> Self::Weights {
                load(line)
            }
            #[inline(always)]
            fn step(sum: Self::Sum, weights: Self::Weights, word: u32) -> Self::Sum {
                // SAFETY: above.
                unsafe {
                    let word = _mm256_set1_epi32(word as i32);
                    [$step(sum[0], weights[0], word), $step(sum[1], weights[1], word)]
                }
            }
            #[inline(always)]
            fn finish(sum: Self::Sum, _: i32) -> [f32; PANEL] {
                store([$float(sum[0]), $float(sum[1])])
            }
        }
    };
}

avx2_dot!(
    F32,
    __m256,
    _mm256_setzero_ps(),
    |sum, w, x| _mm256_fmadd_ps(_mm256_castsi256_ps(w), _mm256_castsi256_ps(x), sum),
    |sum| sum
);

/// bf16 is the upper half of fp32: a shift widens the lower number of a word, a mask the upper one.
#[inline(always)]
unsafe fn halves(words: __m256i) -> [__m256; 2] {
    // SAFETY: above.
    unsafe {
        let upper = _mm256_and_si256(words, _mm256_set1_epi32(0xFFFF_0000_u32 as i32));
        [_mm256_castsi256_ps(_mm256_slli_epi32(words, 16)), _mm256_castsi256_ps(upper)]
    }
}

avx2_dot!(
    Bf16,
    __m256,
    _mm256_setzero_ps(),
    |sum, w, x| {
        let ([a, b], [c, d]) = (halves(w), halves(x));
        _mm256_fmadd_ps(b, d, _mm256_fmadd_ps(a, c, sum))
    },
    |sum| sum
);

// `maddubs` multiplies unsigned by signed numbers: |x| by the weight with the sign of x. No pair of products saturates
// 16 bits, because none of the numbers is -128.
avx2_dot!(
    Int8,
    __m256i,
    _mm256_setzero_si256(),
    |sum, w, x| {
        let pairs = _mm256_maddubs_epi16(_mm256_abs_epi8(x), _mm256_sign_epi8(w, x));
        _mm256_add_epi32(sum, _mm256_madd_epi16(pairs, _mm256_set1_epi16(1)))
    },
    // SAFETY: above.
    |sum| unsafe { _mm256_cvtepi32_ps(sum) }
);
