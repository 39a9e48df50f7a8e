//! Sixteen fp32 numbers at once, in the registers that the processor has.

use super::cache::Element;

/// Sixteen fp32 numbers in registers.
pub trait Lanes: Copy {
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
pub mod x86 {
    use super::{Element, Lanes};
    use std::arch::x86_64::*;

    // SAFETY of this module: its functions are inlined into kernels that are entered only after their instructions were found
    // (`attention::kernel`). Loads and stores stay within the array that is borrowed; `Element` says which of the two types it holds.

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
