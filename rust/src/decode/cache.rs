//! The KV cache that a step reads and writes: the caller's memory, in blocks.

use std::marker::PhantomData;

use super::math::bf16;

/// A number of the KV cache.
///
/// # Safety
/// The type is `u16` where `BF16`, else `f32`: kernels load it by that.
pub unsafe trait Element: Copy + Send + Sync {
    /// Whether it is bf16 as its bits, else fp32.
    const BF16: bool;
    /// Widened.
    fn float(self) -> f32;
    /// Rounded.
    fn of(x: f32) -> Self;
}

// SAFETY: it is f32.
unsafe impl Element for f32 {
    const BF16: bool = false;
    #[inline(always)]
    fn float(self) -> f32 {
        self
    }
    #[inline(always)]
    fn of(x: f32) -> f32 {
        x
    }
}

// SAFETY: bf16 as its bits.
unsafe impl Element for u16 {
    const BF16: bool = true;
    #[inline(always)]
    fn float(self) -> f32 {
        f32::from_bits(u32::from(self) << 16)
    }
    #[inline(always)]
    fn of(x: f32) -> u16 {
        bf16(x)
    }
}

/// Keys (layers, blocks, K, D, BLOCK) and values (layers, blocks, K, BLOCK, D) of all layers, which the caller owns.
pub struct Cache<'a, E> {
    pub(super) keys: *mut E,
    pub(super) values: *mut E,
    /// Numbers of either.
    pub(super) length: usize,
    pub(super) blocks: usize,
    lent: PhantomData<&'a mut [E]>,
}

// SAFETY: threads write and read disjoint parts, or wait for each other in between; `step.rs` says how.
unsafe impl<E: Send> Sync for Cache<'_, E> {}

impl<'a, E: Element> Cache<'a, E> {
    /// Takes both tensors for a while.
    pub fn new(keys: &'a mut [E], values: &'a mut [E], blocks: usize) -> Cache<'a, E> {
        assert_eq!(keys.len(), values.len());
        let (length, keys, values) = (keys.len(), keys.as_mut_ptr(), values.as_mut_ptr());
        Cache { keys, values, length, blocks, lent: PhantomData }
    }
}
