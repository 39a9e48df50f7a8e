//! Where the outputs of a product go, and what happens to them on their way.

use std::marker::PhantomData;

use super::math::{sigmoid, tanh};
use super::matrix::PANEL;

/// What is done with an output.
#[derive(Clone, Copy, Debug)]
pub enum Store {
    /// Written.
    Set,
    /// Added to what is there.
    Add,
    /// relu(x)^2 is written.
    ReluSquared,
    /// What is there is multiplied by silu(x): SwiGLU (arXiv 2002.05202).
    Gate,
    /// Written, capped smoothly to +- the number; 0 caps nothing.
    Capped(f32),
}

/// Rows of a matrix of fp32 numbers (rows, stride) that a product writes.
pub struct Output<'a> {
    start: *mut f32,
    numbers: usize,
    stride: usize,
    /// Where each token of the input goes.
    rows: &'a [usize],
    store: Store,
    lent: PhantomData<&'a mut [f32]>,
}

impl<'a> Output<'a> {
    /// `numbers` from `start` on.
    ///
    /// # Safety
    /// They are there during `'a`, and meanwhile nobody else touches the columns of these rows that panels are written to.
    pub unsafe fn new((start, numbers): (*mut f32, usize), stride: usize, rows: &'a [usize], store: Store) -> Self {
        Output { start, numbers, stride, rows, store, lent: PhantomData }
    }

    /// A panel's outputs of a token of the input.
    #[inline(always)]
    pub fn write(&self, token: usize, panel: usize, outputs: [f32; PANEL]) {
        let at = self.rows[token] * self.stride + panel * PANEL;
        assert!(panel * PANEL < self.stride && at + PANEL <= self.numbers);
        // SAFETY: within the numbers, and only this call touches them, by the promise made to `new`.
        let there = unsafe { &mut *self.start.add(at).cast::<[f32; PANEL]>() };
        match self.store {
            Store::Set => *there = outputs,
            Store::Add => {
                for i in 0..PANEL {
                    there[i] += outputs[i];
                }
            }
            Store::ReluSquared => {
                for i in 0..PANEL {
                    there[i] = outputs[i].max(0.0) * outputs[i].max(0.0);
                }
            }
            Store::Gate => {
                for i in 0..PANEL {
                    there[i] *= outputs[i] * sigmoid(outputs[i]);
                }
            }
            Store::Capped(cap) if cap > 0.0 => {
                for i in 0..PANEL {
                    there[i] = cap * tanh(outputs[i] / cap);
                }
            }
            Store::Capped(_) => *there = outputs,
        }
    }
}
