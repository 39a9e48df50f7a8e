//! Products in 512 bits: a line at a time.

use super::{Dot, Line, PANEL};
use std::arch::x86_64::*;

// SAFETY of this module: its functions are inlined into kernels that are entered only after AVX-512 F and the instruction
// they use (BF16, VNNI) were found (`kernel`). Loads and stores stay within the line or array that is borrowed.

macro_rules! avx512_dot {
    ($name:ident, $sum:ty, $zero:expr, $step:expr, $float:expr) => {
        pub struct $name;
        impl Dot for $name {
            type Sum = $sum;
            type Weights = __m512i;
            #[inline(always)]
            fn zero() -> Self::Sum {
                // SAFETY: above.
                unsafe { $zero }
            }
            #[inline(always)]
            fn load(line: &Line) -> Self::Weights {
                // SAFETY: above; a line is 64 bytes and aligned to as many.
                unsafe { _mm512_load_si512(line.0.as_ptr().cast()) }
            }
            #[inline(always)]
            fn step(sum: Self::Sum, weights: Self::Weights, word: u32) -> Self::Sum {
                // SAFETY: above.
                unsafe { $step(sum, weights, _mm512_set1_epi32(word as i32)) }
            }
            #[inline(always)]
            fn finish(sum: Self::Sum, inputs: i32) -> [f32; PANEL] {
                let mut outputs = [0.0; PANEL];
                // SAFETY: above; 16 floats.
                unsafe { _mm512_storeu_ps(outputs.as_mut_ptr(), $float(sum, inputs)) };
                outputs
            }
        }
    };
}

avx512_dot!(
    F32,
    __m512,
    _mm512_setzero_ps(),
    |sum, w, x| _mm512_fmadd_ps(_mm512_castsi512_ps(w), _mm512_castsi512_ps(x), sum),
    |sum, _| sum
);

/// AVX512-BF16: both products of a word in one instruction.
#[inline(always)]
unsafe fn pairs(sum: __m512, w: __m512i, x: __m512i) -> __m512 {
    // SAFETY: above; both types are 512 bits without a rule about their content.
    unsafe {
        _mm512_dpbf16_ps(sum, std::mem::transmute::<__m512i, __m512bh>(w), std::mem::transmute::<__m512i, __m512bh>(x))
    }
}

avx512_dot!(Bf16, __m512, _mm512_setzero_ps(), |sum, w, x| pairs(sum, w, x), |sum, _| sum);

// VNNI multiplies unsigned by signed numbers: the weights are raised by 128 (their upper bit turned), and 128 times the
// sum of the inputs is taken off again.
avx512_dot!(
    Int8,
    __m512i,
    _mm512_setzero_si512(),
    |sum, w, x| _mm512_dpbusd_epi32(sum, _mm512_xor_si512(w, _mm512_set1_epi8(-128)), x),
    |sum, inputs: i32| _mm512_cvtepi32_ps(_mm512_sub_epi32(sum, _mm512_set1_epi32(128 * inputs)))
);
