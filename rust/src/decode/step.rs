//! One step: the next tokens of some sequences through all layers, divided among the threads.

use std::ops::Range;
use std::sync::Mutex;

use super::batch::{check, chunks, Chunk, Sequence, Token, Wanted, TOKENS_AT_ONCE};
use super::cache::{Cache, Element};
use super::math::{self, inverse_rms, sigmoid};
use super::matrix::{Input, Matrix, PANEL};
use super::model::{Decoder, Layer, Shape};
use super::sampling::highest;
use super::team::{share, Barrier, Shared, Team};

/// Buffers (TOKENS_AT_ONCE, columns) that all threads share in a step, what each has for itself, and the threads.
pub(super) struct Workspace {
    /// The residual stream, the embedding it began with, and what it was after the middle layer.
    x: Shared,
    x0: Shared,
    middle: Shared,
    pub(super) qkv: Shared,
    pub(super) attended: Shared,
    hidden: Shared,
    scratch: Vec<Mutex<Scratch>>,
    team: Option<Team>,
}

/// What a thread has for itself.
#[derive(Default)]
struct Scratch {
    normed: Vec<f32>,
    /// Of an embedding.
    row: Vec<f32>,
    input: Input,
    scores: Vec<f32>,
}

impl Workspace {
    /// Of a model of this shape.
    pub(super) fn new(shape: &Shape, threads: usize) -> Result<Workspace, String> {
        let buffer = |columns: usize| Shared::new(TOKENS_AT_ONCE, columns.next_multiple_of(PANEL));
        Ok(Workspace {
            x: buffer(shape.width),
            x0: buffer(shape.width),
            middle: buffer(shape.width),
            qkv: buffer((shape.heads + 2 * shape.kv_heads) * shape.head_dim),
            attended: buffer(shape.heads * shape.head_dim),
            hidden: buffer(shape.mlp_width),
            scratch: (0..threads).map(|_| Mutex::default()).collect(),
            team: Some(Team::new(threads).map_err(|error| format!("no thread could be started ({error})"))?),
        })
    }
}

impl Decoder {
    /// Runs the next tokens of some sequences: their keys and values go into the cache, the logits after the wanted tokens, in
    /// order, into the rows of `logits` (rows, `logits_stride`). Returns the likeliest token of each row, -1 where a logit is NaN
    /// or infinite. An error says what the shape, the cache or the vocabulary has no room for; nothing is written then.
    pub fn step<E: Element>(
        &mut self,
        sequences: &[Sequence],
        wanted: Wanted,
        cache: &mut Cache<'_, E>,
        logits: &mut [f32],
    ) -> Result<Vec<i64>, String> {
        let (rows, stride) = (wanted.rows(sequences), self.logits_stride());
        check(&self.shape, sequences, cache)?;
        if logits.len() < rows * stride {
            return Err(format!("{rows} rows of logits in a step; accepted: {}, of {stride}", logits.len() / stride));
        }
        let logits = LogitsPointer(logits.as_mut_ptr(), logits.len());
        let mut team = self.workspace.team.take().ok_or("a step failed before; make a new decoder")?;
        for chunk in chunks(sequences, wanted) {
            team.run(&|thread, barrier| {
                Part { model: self, chunk: &chunk, sequences, cache, logits: &logits, thread, barrier }.run();
            });
        }
        self.workspace.team = Some(team);
        // SAFETY: the threads are done, and the slice that was lent is alive.
        let logits = unsafe { std::slice::from_raw_parts(logits.0, logits.1) };
        Ok(logits.chunks_exact(stride).take(rows).map(|row| likeliest(&row[..self.shape.vocab_size])).collect())
    }
}

/// Where logits go. The slice behind it is lent to `Decoder::step`, which waits for the threads that write it.
struct LogitsPointer(*mut f32, usize);

// SAFETY: threads write disjoint columns.
unsafe impl Sync for LogitsPointer {}

/// A thread's part of a chunk. Products are divided by outputs, attention by sequences and key/value heads. Between two
/// barriers a thread writes only its own part of a buffer, and none reads what another one writes.
pub(super) struct Part<'a, E> {
    pub(super) model: &'a Decoder,
    pub(super) chunk: &'a Chunk,
    pub(super) sequences: &'a [Sequence],
    pub(super) cache: &'a Cache<'a, E>,
    logits: &'a LogitsPointer,
    thread: usize,
    barrier: &'a Barrier,
}

impl<E: Element> Part<'_, E> {
    fn run(&self) {
        let mut scratch = self.model.workspace.scratch[self.thread].try_lock().expect("one job at a time");
        scratch.normed.resize(TOKENS_AT_ONCE * self.model.shape.width, 0.0);
        self.embed(&mut scratch.row);
        self.barrier.wait();
        for (index, layer) in self.model.layers.iter().enumerate() {
            self.attention(index, layer, &mut scratch);
            self.barrier.wait();
            self.mlp(layer, &mut scratch);
            self.after(index);
            self.barrier.wait();
        }
        if !self.chunk.wanted.is_empty() {
            self.write_logits(&mut scratch);
        }
    }

    /// This thread's tokens as they enter the first layer.
    fn embed(&self, row: &mut Vec<f32>) {
        let (model, workspace) = (self.model, &self.model.workspace);
        let (r, a) = model.layers.first().map_or((1.0, 0.0), |layer| layer.scales);
        for token in self.share(self.chunk.tokens.len()) {
            let columns = 0..model.shape.width;
            // SAFETY: this thread's tokens.
            let (x, x0) =
                unsafe { (workspace.x.get_mut(token, columns.clone()), workspace.x0.get_mut(token, columns)) };
            model.embed(&self.chunk.tokens[token], x0, row);
            for (x, x0) in x.iter_mut().zip(x0) {
                *x = r * *x0 + a * *x0;
            }
        }
    }

    /// Adds attention to the residual stream.
    fn attention(&self, index: usize, layer: &Layer, scratch: &mut Scratch) {
        let Scratch { normed, row, input, scores } = scratch;
        let (workspace, kv_heads) = (&self.model.workspace, self.model.shape.kv_heads);
        self.norm(&layer.attention_norm, normed, input);
        self.multiply(&layer.qkv, input, &workspace.qkv);
        self.barrier.wait();

        for item in self.share(self.chunk.runs.len() * kv_heads) {
            let (run, kv_head) = (&self.chunk.runs[item / kv_heads], item % kv_heads);
            for token in run.clone() {
                self.remember(index, kv_head, token, normed, row);
            }
            for token in run.clone() {
                self.attend(index, kv_head, token, scores);
            }
        }
        self.barrier.wait();

        // SAFETY: nobody writes `attended` before the next barrier.
        unsafe { self.encode(&workspace.attended, layer.out.inputs, input) };
        self.accumulate(&layer.out, input);
    }

    /// Adds the MLP to the residual stream.
    fn mlp(&self, layer: &Layer, scratch: &mut Scratch) {
        let (hidden, input) = (&self.model.workspace.hidden, &mut scratch.input);
        self.norm(&layer.mlp_norm, &mut scratch.normed, input);
        self.multiply(&layer.up, input, hidden);
        if let Some(gate) = &layer.gate {
            self.gate(gate, input);
        } else {
            for token in 0..self.chunk.tokens.len() {
                // SAFETY: this thread's columns.
                for u in unsafe { hidden.get_mut(token, self.columns(layer.up.outputs)) } {
                    *u = u.max(0.0) * u.max(0.0);
                }
            }
        }
        self.barrier.wait();

        // SAFETY: nobody writes `hidden` before the next barrier.
        unsafe { self.encode(hidden, layer.down.inputs, input) };
        self.accumulate(&layer.down, input);
    }

    /// What happens to the residual stream between a layer and the next, or the head.
    fn after(&self, index: usize) {
        let (model, Workspace { x, x0, middle, .. }) = (self.model, &self.model.workspace);
        let channels = self.columns(model.shape.width);
        for token in 0..self.chunk.tokens.len() {
            // SAFETY: this thread's channels.
            let (x, x0, middle) = unsafe {
                (
                    x.get_mut(token, channels.clone()),
                    x0.get(token, channels.clone()),
                    middle.get_mut(token, channels.clone()),
                )
            };
            if index == model.layers.len() / 2 {
                middle.copy_from_slice(x);
            }
            if let Some(next) = model.layers.get(index + 1) {
                for (x, x0) in x.iter_mut().zip(x0) {
                    *x = next.scales.0 * *x + next.scales.1 * x0;
                }
            } else if model.shape.backout {
                for (x, middle) in x.iter_mut().zip(middle) {
                    *x -= model.backout * *middle;
                }
            }
        }
    }

    /// This thread's columns of the logits.
    fn write_logits(&self, scratch: &mut Scratch) {
        let (model, logits, wanted, Scratch { normed, input, .. }) =
            (self.model, self.logits, &self.chunk.wanted, scratch);
        let (width, cap, stride) = (model.shape.width, model.shape.softcap, model.logits_stride());
        for ((token, _), normed) in wanted.iter().zip(normed.chunks_exact_mut(width)) {
            // SAFETY: nobody writes `x` any more.
            norm_row(unsafe { model.workspace.x.get(*token, 0..width) }, &model.final_norm, normed);
        }
        input.encode(model.kind, width, normed.chunks_exact(width).take(wanted.len()));
        self.each_panel(&model.head, input, &mut |index, panel, outputs| {
            let start = wanted[index].1 * stride + panel * PANEL;
            assert!(start + PANEL <= logits.1);
            // SAFETY: within the slice that was lent, and this thread's columns.
            unsafe { std::slice::from_raw_parts_mut(logits.0.add(start), PANEL) }.copy_from_slice(outputs);
        });
        if cap > 0.0 {
            let own = self.share(model.head.panels());
            for (_, row) in wanted {
                // SAFETY: as above, and `softcap_kernel` has found the kernel's instructions on this processor.
                unsafe {
                    let start = logits.0.add(row * stride + own.start * PANEL);
                    math::softcap_kernel(model.level)(std::slice::from_raw_parts_mut(start, own.len() * PANEL), cap);
                }
            }
        }
    }

    /// This thread's share of 0..count.
    fn share(&self, count: usize) -> Range<usize> {
        share(count, self.barrier.threads(), self.thread)
    }

    /// This thread's columns of what a product with so many outputs has written.
    fn columns(&self, outputs: usize) -> Range<usize> {
        let panels = self.share(outputs.div_ceil(PANEL));
        panels.start * PANEL..(panels.end * PANEL).min(outputs)
    }

    /// Norms the residual stream of all tokens and makes it the input of products.
    fn norm(&self, weights: &[f32], normed: &mut [f32], input: &mut Input) {
        let (tokens, width) = (self.chunk.tokens.len(), weights.len());
        for (token, normed) in normed.chunks_exact_mut(width).take(tokens).enumerate() {
            // SAFETY: all threads have passed a barrier since x was written, and none writes it before the next one.
            norm_row(unsafe { self.model.workspace.x.get(token, 0..width) }, weights, normed);
        }
        input.encode(self.model.kind, width, normed.chunks_exact(width).take(tokens));
    }

    /// # Safety
    /// Nobody writes `buffer` before the next barrier.
    unsafe fn encode(&self, buffer: &Shared, columns: usize, input: &mut Input) {
        // SAFETY: the caller's promise.
        let rows = (0..self.chunk.tokens.len()).map(|token| unsafe { buffer.get(token, 0..columns) });
        input.encode(self.model.kind, columns, rows);
    }

    /// This thread's panels of a product.
    fn each_panel(&self, matrix: &Matrix, input: &mut Input, write: &mut dyn FnMut(usize, usize, &[f32; PANEL])) {
        // SAFETY: `dot::kernel` has found the kernel's instructions on this processor.
        unsafe { (self.model.product)(matrix, &self.model.lines, self.share(matrix.panels()), input, write) }
    }

    fn multiply(&self, matrix: &Matrix, input: &mut Input, output: &Shared) {
        self.each_panel(matrix, input, &mut |token, panel, outputs| {
            // SAFETY: this thread's columns; buffers have whole panels.
            unsafe { output.get_mut(token, panel * PANEL..(panel + 1) * PANEL) }.copy_from_slice(outputs);
        });
    }

    /// Adds a product to the residual stream.
    fn accumulate(&self, matrix: &Matrix, input: &mut Input) {
        self.each_panel(matrix, input, &mut |token, panel, outputs| {
            // SAFETY: this thread's columns; buffers have whole panels.
            let x = unsafe { self.model.workspace.x.get_mut(token, panel * PANEL..(panel + 1) * PANEL) };
            for (x, output) in x.iter_mut().zip(outputs) {
                *x += output;
            }
        });
    }

    /// SwiGLU (arXiv 2002.05202): silu(gate) times what `hidden` holds.
    fn gate(&self, gate: &Matrix, input: &mut Input) {
        self.each_panel(gate, input, &mut |token, panel, outputs| {
            // SAFETY: this thread's columns; buffers have whole panels.
            let up = unsafe { self.model.workspace.hidden.get_mut(token, panel * PANEL..(panel + 1) * PANEL) };
            for (up, gate) in up.iter_mut().zip(outputs) {
                *up *= gate * sigmoid(*gate);
            }
        });
    }
}

impl Decoder {
    /// A token's embedding, mixed with the one before it; `before` is scratch.
    fn embed(&self, token: &Token, output: &mut [f32], before: &mut Vec<f32>) {
        let width = self.shape.width;
        let scale = |row: &[f32]| if self.shape.normed_embedding { inverse_rms(row) } else { 1.0 };
        self.embedding.read(token.id as usize * width, output);
        let factor = scale(output);
        for x in output.iter_mut() {
            *x *= factor;
        }
        if let (true, Some(previous)) = (self.shape.smear && i64::from(token.id) != self.shape.bos_id, token.previous) {
            before.resize(width, 0.0);
            self.embedding.read(previous as usize * width, before);
            let gate: f32 = output.iter().zip(&self.smear_gate).map(|(x, w)| x * w).sum();
            let factor = self.smear_lambda * sigmoid(gate) * scale(before);
            for (output, x) in output.iter_mut().zip(before) {
                *output += factor * *x;
            }
        }
    }
}

fn norm_row(x: &[f32], weights: &[f32], output: &mut [f32]) {
    let factor = inverse_rms(x);
    for ((output, x), weight) in output.iter_mut().zip(x).zip(weights) {
        *output = factor * x * weight;
    }
}

/// The first of the highest logits; -1 where one is NaN or infinite.
fn likeliest(logits: &[f32]) -> i64 {
    // x * 0 is NaN where x is NaN or infinite, else 0.
    if math::sum(logits, |x| x * 0.0) != 0.0 {
        return -1;
    }
    let most = highest(logits);
    logits.iter().position(|&x| x == most).map_or(-1, |place| place as i64)
}
