//! The buffers of a step: what threads share, and what each has for itself.

use std::cell::UnsafeCell;
use std::ops::Range;
use std::sync::Mutex;

use super::batch::TOKENS_AT_ONCE;
use super::matrix::{Input, PANEL};
use super::model::Shape;
use super::team::Team;

/// A matrix of activations (tokens, stride) that all threads read and each writes its own columns or tokens of.
pub struct Shared {
    data: Box<[UnsafeCell<f32>]>,
    stride: usize,
}

// SAFETY: the methods below say what their callers keep to; with it no two threads touch one number while one of them writes.
unsafe impl Sync for Shared {}

impl Shared {
    /// Zeros.
    pub fn new(tokens: usize, stride: usize) -> Shared {
        Shared { data: (0..tokens * stride).map(|_| UnsafeCell::new(0.0)).collect(), stride }
    }

    /// Where the numbers begin and how many they are, and from one token to the next.
    pub fn raw(&self) -> ((*mut f32, usize), usize) {
        ((UnsafeCell::raw_get(self.data.as_ptr()), self.data.len()), self.stride)
    }

    fn cells(&self, token: usize, columns: Range<usize>) -> &[UnsafeCell<f32>] {
        &self.data[token * self.stride..(token + 1) * self.stride][columns]
    }

    /// # Safety
    /// From the last barrier to the next no thread writes these columns of this token while the slice is alive.
    pub unsafe fn get(&self, token: usize, columns: Range<usize>) -> &[f32] {
        let cells = self.cells(token, columns);
        // SAFETY: the cells are neighbours in memory, and by the caller's promise nobody writes them.
        unsafe { std::slice::from_raw_parts(UnsafeCell::raw_get(cells.as_ptr()), cells.len()) }
    }

    /// # Safety
    /// From the last barrier to the next no other thread reads or writes these columns of this token, and this thread holds no
    /// other slice of them.
    #[allow(clippy::mut_from_ref)]
    pub unsafe fn get_mut(&self, token: usize, columns: Range<usize>) -> &mut [f32] {
        let cells = self.cells(token, columns);
        // SAFETY: the cells are neighbours in memory, and by the caller's promise nobody else touches them.
        unsafe { std::slice::from_raw_parts_mut(UnsafeCell::raw_get(cells.as_ptr()), cells.len()) }
    }
}

/// Buffers (TOKENS_AT_ONCE, columns) that all threads share in a step, what each has for itself, and the threads.
pub struct Workspace {
    /// The residual stream, the embedding it began with, and what it was after the middle layer.
    pub x: Shared,
    pub x0: Shared,
    pub middle: Shared,
    pub queries: Shared,
    pub keys_values: Shared,
    pub attended: Shared,
    pub hidden: Shared,
    pub scratch: Vec<Mutex<Scratch>>,
    pub team: Option<Team>,
}

/// What a thread has for itself.
#[derive(Default)]
pub struct Scratch {
    pub normed: Vec<f32>,
    /// Of an embedding.
    pub row: Vec<f32>,
    pub input: Input,
    pub scores: Vec<f32>,
}

impl Workspace {
    /// Of a model of this shape.
    pub fn new(shape: &Shape, threads: usize) -> Result<Workspace, String> {
        let buffer = |columns: usize| Shared::new(TOKENS_AT_ONCE, columns.next_multiple_of(PANEL));
        Ok(Workspace {
            x: buffer(shape.width),
            x0: buffer(shape.width),
            middle: buffer(shape.width),
            queries: buffer(shape.heads * shape.head_dim),
            keys_values: buffer(2 * shape.kv_heads * shape.head_dim),
            attended: buffer(shape.heads * shape.head_dim),
            hidden: buffer(shape.mlp_width),
            scratch: (0..threads).map(|_| Mutex::default()).collect(),
            team: Some(Team::new(threads).map_err(|error| format!("no thread could be started ({error})"))?),
        })
    }
}
