//! One step: the next tokens of some sequences through all layers, divided among the threads.

use std::ops::Range;

use super::batch::{check, chunks, Chunk, Sequence, Token, Wanted, TOKENS_AT_ONCE};
use super::cache::{Cache, Element};
use super::math::{self, inverse_rms, sigmoid};
use super::matrix::{Input, Matrix, PAIR, PANEL};
use super::model::{Decoder, Layer};
use super::output::{Output, Store};
use super::sampling::highest;
use super::team::{share, Barrier};
use super::workspace::{Scratch, Shared, Workspace};

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
            // Of the last layer's tokens only those that logits are wanted after have a use beyond their key and value.
            let last = index + 1 == self.model.layers.len();
            let tokens = if last { &self.chunk.wanted } else { &self.chunk.all };
            self.attention(index, layer, tokens, &mut scratch);
            self.barrier.wait();
            self.mlp(layer, tokens, &mut scratch);
            self.after(index, tokens);
            self.barrier.wait();
        }
        self.write_logits(&mut scratch);
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

    /// Adds attention to the residual stream of some tokens; all write their keys and values.
    fn attention(&self, index: usize, layer: &Layer, tokens: &[usize], scratch: &mut Scratch) {
        let Scratch { normed, row, input, scores } = scratch;
        let (workspace, kv_heads, all) = (&self.model.workspace, self.model.shape.kv_heads, &self.chunk.all);
        self.norm(&layer.attention_norm, all, normed, input);
        self.multiply(&layer.keys_values, input, &workspace.keys_values, all, Store::Set);
        if tokens.len() < all.len() {
            let width = self.model.shape.width;
            input.encode(self.model.kind, width, tokens.iter().map(|token| &normed[token * width..][..width]));
        }
        self.multiply(&layer.queries, input, &workspace.queries, tokens, Store::Set);
        self.barrier.wait();

        for item in self.share(self.chunk.runs.len() * kv_heads) {
            let (run, kv_head) = (&self.chunk.runs[item / kv_heads], item % kv_heads);
            for token in run.clone() {
                self.remember(index, kv_head, token, normed, row);
            }
            let place = |end: usize| tokens.partition_point(|&token| token < end);
            self.attend(index, kv_head, &tokens[place(run.start)..place(run.end)], scores);
        }
        self.barrier.wait();

        // SAFETY: nobody writes `attended` before the next barrier.
        unsafe { self.encode(&workspace.attended, layer.out.inputs, tokens, input) };
        self.multiply(&layer.out, input, &workspace.x, tokens, Store::Add);
    }

    /// Adds the MLP to the residual stream of some tokens.
    fn mlp(&self, layer: &Layer, tokens: &[usize], scratch: &mut Scratch) {
        let (Workspace { hidden, x, .. }, input) = (&self.model.workspace, &mut scratch.input);
        self.norm(&layer.mlp_norm, tokens, &mut scratch.normed, input);
        if let Some(gate) = &layer.gate {
            self.multiply(&layer.up, input, hidden, tokens, Store::Set);
            self.multiply(gate, input, hidden, tokens, Store::Gate);
        } else {
            self.multiply(&layer.up, input, hidden, tokens, Store::ReluSquared);
        }
        self.barrier.wait();

        // SAFETY: nobody writes `hidden` before the next barrier.
        unsafe { self.encode(hidden, layer.down.inputs, tokens, input) };
        self.multiply(&layer.down, input, x, tokens, Store::Add);
    }

    /// What happens to the residual stream between a layer and the next, or the head.
    fn after(&self, index: usize, tokens: &[usize]) {
        let (model, Workspace { x, x0, middle, .. }) = (self.model, &self.model.workspace);
        let channels = self.columns(model.shape.width);
        for &token in tokens {
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
        let (model, Chunk { wanted, rows, .. }) = (self.model, self.chunk);
        self.norm(&model.final_norm, wanted, &mut scratch.normed, &mut scratch.input);
        let store = Store::Capped(model.shape.softcap);
        // SAFETY: the slice that was lent, and this thread's columns.
        let output = unsafe { Output::new((self.logits.0, self.logits.1), model.logits_stride(), rows, store) };
        self.product(&model.head, &scratch.input, &output);
    }

    /// This thread's share of 0..count.
    fn share(&self, count: usize) -> Range<usize> {
        share(count, self.barrier.threads(), self.thread)
    }

    /// This thread's columns of what a product with so many outputs has written.
    fn columns(&self, outputs: usize) -> Range<usize> {
        let pairs = self.share(outputs.div_ceil(PAIR * PANEL));
        pairs.start * PAIR * PANEL..(pairs.end * PAIR * PANEL).min(outputs)
    }

    /// Norms the residual stream of some tokens and makes it the input of products.
    fn norm(&self, weights: &[f32], tokens: &[usize], normed: &mut [f32], input: &mut Input) {
        let width = weights.len();
        for (&token, normed) in tokens.iter().zip(normed.chunks_exact_mut(width)) {
            // SAFETY: all threads have passed a barrier since x was written, and none writes it before the next one.
            norm_row(unsafe { self.model.workspace.x.get(token, 0..width) }, weights, normed);
        }
        input.encode(self.model.kind, width, normed.chunks_exact(width).take(tokens.len()));
    }

    /// # Safety
    /// Nobody writes `buffer` before the next barrier.
    unsafe fn encode(&self, buffer: &Shared, columns: usize, tokens: &[usize], input: &mut Input) {
        // SAFETY: the caller's promise.
        let rows = tokens.iter().map(|&token| unsafe { buffer.get(token, 0..columns) });
        input.encode(self.model.kind, columns, rows);
    }

    /// This thread's panels of a product.
    fn product(&self, matrix: &Matrix, input: &Input, output: &Output<'_>) {
        // SAFETY: `dot::kernel` has found the kernel's instructions on this processor.
        unsafe { (self.model.product)(matrix, &self.model.lines, self.share(matrix.pairs()), input, output) }
    }

    /// This thread's panels of a product with some tokens, into a buffer.
    fn multiply(&self, matrix: &Matrix, input: &Input, buffer: &Shared, tokens: &[usize], store: Store) {
        let (numbers, stride) = buffer.raw();
        // SAFETY: this thread's columns; buffers have whole panels.
        self.product(matrix, input, &unsafe { Output::new(numbers, stride, tokens, store) });
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
