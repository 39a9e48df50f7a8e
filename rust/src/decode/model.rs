//! The model: its weights, and one step through all layers.
//!
//! Legend: C width, H query heads, K key/value heads, D head width, V vocabulary.

use std::ops::Range;

use super::attention::{self, Seen, BLOCK};
use super::dot::{self, Level, Product};
use super::math::{self, bf16, inverse_rms, sigmoid};
use super::matrix::{Input, Kind, Matrix, PANEL};
use super::sampling::highest;
use super::table::Table;
use super::team::{share, Barrier, Shared, Team};

/// Tokens that go through the layers together: bounds the buffers, and leaves the activations in the cache.
const TOKENS_AT_ONCE: usize = 128;
const SMEAR_CHANNELS: usize = 24;
const VALUE_GATE_CHANNELS: usize = 12;

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

/// What a model looks like; the names are those of `ModelConfig`.
#[derive(Clone, Debug, Default)]
#[cfg_attr(feature = "python", derive(pyo3::FromPyObject), pyo3(from_item_all))]
pub struct Shape {
    /// V: tokens that logits are wanted of.
    pub vocab_size: usize,
    /// C
    pub width: usize,
    /// H
    pub heads: usize,
    /// K, divides H.
    pub kv_heads: usize,
    /// D, even.
    pub head_dim: usize,
    /// Hidden channels of the MLP.
    pub mlp_width: usize,
    /// Positions that there are rotary tables for.
    pub context: usize,
    /// For each layer, how many tokens it attends over, itself included.
    pub windows: Vec<usize>,
    /// The token that smearing does not reach across; no token where it is out of the vocabulary.
    pub bos_id: i64,
    /// Logits are capped smoothly to this; 0 caps nothing.
    pub softcap: f32,
    /// Embeddings are normed.
    pub normed_embedding: bool,
    /// SwiGLU, else relu squared.
    pub gated_mlp: bool,
    /// Each embedding is mixed with the one before it.
    pub smear: bool,
    /// The middle layer's output is subtracted before the head.
    pub backout: bool,
    /// Layers that add a gated embedding of the token to their values.
    pub value_embeddings: Vec<bool>,
}

struct Layer {
    attention_norm: Vec<f32>,
    /// All queries, then keys, then values: (H + 2K) D outputs.
    qkv: Matrix,
    query_norm: Vec<f32>,
    key_norm: Vec<f32>,
    out: Matrix,
    mlp_norm: Vec<f32>,
    gate: Option<Matrix>,
    up: Matrix,
    down: Matrix,
    /// (V, K D), and its gate (K, 12).
    value_embedding: Option<(Table, Vec<f32>)>,
    /// x is multiplied by the first and the embedding times the second added, before this layer.
    scales: (f32, f32),
    window: usize,
}

/// Tokens that follow what the cache holds of their sequence.
#[derive(Clone, Debug)]
pub struct Sequence {
    /// Where the sequence lies in the cache: token t in block `blocks[t / BLOCK]`. Blocks that this step does not write
    /// may belong to other sequences too.
    pub blocks: Vec<u32>,
    /// Position of the first of these tokens: how many the cache holds already.
    pub start: usize,
    /// The token before the first, where there is one.
    pub previous: Option<u32>,
    /// At least one.
    pub ids: Vec<u32>,
}

/// Keys (layers, blocks, K, D, BLOCK) and values (layers, blocks, K, BLOCK, D) of all layers, which the caller owns.
pub struct Cache<'a, E> {
    keys: *mut E,
    values: *mut E,
    /// Numbers of either.
    length: usize,
    blocks: usize,
    lent: std::marker::PhantomData<&'a mut [E]>,
}

// SAFETY: threads write and read disjoint parts, or wait for each other in between; `Decoder::run` says how.
unsafe impl<E: Send> Sync for Cache<'_, E> {}

impl<'a, E: Element> Cache<'a, E> {
    /// Takes both tensors for a while.
    pub fn new(keys: &'a mut [E], values: &'a mut [E], blocks: usize) -> Cache<'a, E> {
        assert_eq!(keys.len(), values.len());
        let (length, keys, values) = (keys.len(), keys.as_mut_ptr(), values.as_mut_ptr());
        Cache { keys, values, length, blocks, lent: std::marker::PhantomData }
    }
}

struct Token {
    id: u32,
    previous: Option<u32>,
    /// Which of the step's sequences it belongs to.
    sequence: usize,
    position: usize,
}

/// Up to `TOKENS_AT_ONCE` tokens, and who wants to know what follows.
struct Chunk {
    tokens: Vec<Token>,
    /// Neighbouring tokens of one sequence.
    runs: Vec<Range<usize>>,
    /// Tokens whose logits are wanted, with the row of the result.
    wanted: Vec<(usize, usize)>,
}

/// What all threads share in a step.
struct Buffers {
    /// The residual stream, the embedding it began with, and what it was after the middle layer.
    x: Shared,
    x0: Shared,
    middle: Shared,
    qkv: Shared,
    attended: Shared,
    hidden: Shared,
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

/// A model with packed weights and threads of its own.
pub struct Decoder {
    shape: Shape,
    kind: Kind,
    level: Level,
    product: Product,
    /// (V, C)
    embedding: Table,
    layers: Vec<Layer>,
    final_norm: Vec<f32>,
    head: Matrix,
    smear_gate: Vec<f32>,
    smear_lambda: f32,
    backout: f32,
    /// (context, D) each; the sines carry their sign.
    cos: Vec<f32>,
    sin: Vec<f32>,
    buffers: Buffers,
    scratch: Vec<std::sync::Mutex<Scratch>>,
    team: Option<Team>,
}

impl Decoder {
    /// Packs the weights that `weight(name)` gives, each (outputs, inputs) in fp32, row by row, and reads embeddings from
    /// `table(name)`. An error is one of these two's, a size that the shape does not have, or the operating system's where it
    /// starts no threads.
    pub fn new(
        shape: Shape,
        kind: Kind,
        level: Level,
        threads: usize,
        mut weight: impl FnMut(&str) -> Result<Vec<f32>, String>,
        mut table: impl FnMut(&str) -> Result<Table, String>,
    ) -> Result<Decoder, String> {
        let Shape { vocab_size, width, head_dim, mlp_width, context, .. } = shape;
        let (query_width, value_width) = (shape.heads * head_dim, shape.kv_heads * head_dim);
        if [vocab_size, width, query_width, value_width, mlp_width, threads].contains(&0) || shape.windows.contains(&0)
        {
            return Err(format!("{shape:?} on {threads} threads has a zero; accepted: 1 or more of each."));
        }
        if !shape.heads.is_multiple_of(shape.kv_heads) || !head_dim.is_multiple_of(2) {
            return Err(format!("{shape:?}; accepted: kv_heads that divides heads, and an even head_dim."));
        }
        if shape.value_embeddings.len() != shape.windows.len() {
            return Err(
                "windows and value_embeddings have different lengths; accepted: one of each for every layer.".into()
            );
        }
        let mut take = |name: &str, count: usize| {
            let numbers = weight(name)?;
            if numbers.len() == count {
                return Ok(numbers);
            }
            Err(format!("{name} has {} numbers; accepted: {count} for {shape:?}.", numbers.len()))
        };
        let mut look_up = |name: &str, count: usize| {
            let table = table(name)?;
            if table.numbers() == count {
                return Ok(table);
            }
            Err(format!("{name} has {} numbers; accepted: {count} for {shape:?}.", table.numbers()))
        };
        let mut layers = Vec::new();
        for (layer, &window) in shape.windows.iter().enumerate() {
            let mut take = |name: &str, count: usize| take(&format!("{layer}.{name}"), count);
            let mut matrix = |name: &str, outputs: usize, inputs: usize| -> Result<Matrix, String> {
                Ok(Matrix::pack(kind, outputs, inputs, &take(name, outputs * inputs)?))
            };
            let qkv = matrix("qkv", query_width + 2 * value_width, width)?;
            let out = matrix("out", width, query_width)?;
            let up = matrix("up", mlp_width, width)?;
            let gate = if shape.gated_mlp { Some(matrix("gate", mlp_width, width)?) } else { None };
            let down = matrix("down", width, mlp_width)?;
            let value_embedding = if shape.value_embeddings[layer] {
                let table = look_up(&format!("{layer}.value_embedding"), vocab_size * value_width)?;
                Some((table, take("value_gate", shape.kv_heads * VALUE_GATE_CHANNELS)?))
            } else {
                None
            };
            let scales = take("scales", 2)?;
            layers.push(Layer {
                attention_norm: take("attention_norm", width)?,
                qkv,
                query_norm: take("query_norm", head_dim)?,
                key_norm: take("key_norm", head_dim)?,
                out,
                mlp_norm: take("mlp_norm", width)?,
                gate,
                up,
                down,
                value_embedding,
                scales: (scales[0], scales[1]),
                window,
            });
        }
        let embedding = look_up("embedding", vocab_size * width)?;
        let head = Matrix::pack(kind, vocab_size, width, &take("head", vocab_size * width)?);
        let (smear_gate, smear_lambda) = match shape.smear {
            true => (take("smear_gate", SMEAR_CHANNELS)?, take("smear_lambda", 1)?[0]),
            false => (Vec::new(), 0.0),
        };
        let backout = if shape.backout { take("backout", 1)?[0] } else { 0.0 };
        let buffer = |columns: usize| Shared::new(TOKENS_AT_ONCE, columns.next_multiple_of(PANEL));
        Ok(Decoder {
            final_norm: take("final_norm", width)?,
            cos: take("cos", context * head_dim)?,
            sin: take("sin", context * head_dim)?,
            buffers: Buffers {
                x: buffer(width),
                x0: buffer(width),
                middle: buffer(width),
                qkv: buffer(query_width + 2 * value_width),
                attended: buffer(query_width),
                hidden: buffer(mlp_width),
            },
            scratch: (0..threads).map(|_| std::sync::Mutex::default()).collect(),
            team: Some(Team::new(threads).map_err(|error| format!("no thread could be started ({error})"))?),
            product: dot::kernel(kind, level).0,
            shape,
            kind,
            level,
            embedding,
            layers,
            head,
            smear_gate,
            smear_lambda,
            backout,
        })
    }

    /// Bytes of weights that every step reads.
    pub fn bytes(&self) -> usize {
        let of = |layer: &Layer| {
            let gate = layer.gate.as_ref().map_or(0, Matrix::bytes);
            gate + [&layer.qkv, &layer.out, &layer.up, &layer.down].map(Matrix::bytes).iter().sum::<usize>()
        };
        self.layers.iter().map(of).sum::<usize>() + self.head.bytes()
    }

    /// Numbers from one row of logits to the next: the vocabulary, rounded up to whole panels.
    pub fn logits_stride(&self) -> usize {
        self.shape.vocab_size.next_multiple_of(PANEL)
    }

    /// Runs the next tokens of some sequences: their keys and values go into the cache, the logits after the last token of each
    /// sequence into `logits` (sequences, `logits_stride`). Returns the likeliest token of each, -1 where a logit is NaN or
    /// infinite. An error says what the shape, the cache or the vocabulary has no room for; nothing is written then.
    pub fn step<E: Element>(
        &mut self,
        sequences: &[Sequence],
        cache: &mut Cache<'_, E>,
        logits: &mut [f32],
    ) -> Result<Vec<i64>, String> {
        self.check(sequences, cache, logits)?;
        let stride = self.logits_stride();
        let logits = LogitsPointer(logits.as_mut_ptr(), logits.len());
        let mut team = self.team.take().ok_or("a step failed before; make a new decoder")?;
        for chunk in chunks(sequences) {
            team.run(&|thread, barrier| self.run(&chunk, sequences, cache, &logits, thread, barrier));
        }
        self.team = Some(team);
        // SAFETY: the threads are done, and the slice that was lent is alive.
        let logits = unsafe { std::slice::from_raw_parts(logits.0, logits.1) };
        Ok(logits
            .chunks_exact(stride)
            .take(sequences.len())
            .map(|row| likeliest(&row[..self.shape.vocab_size]))
            .collect())
    }

    fn check<E>(&self, sequences: &[Sequence], cache: &Cache<'_, E>, logits: &[f32]) -> Result<(), String> {
        let shape = &self.shape;
        let numbers = shape.windows.len() * cache.blocks * shape.kv_heads * BLOCK * shape.head_dim;
        if cache.length != numbers {
            return Err(format!("the cache has {} numbers; accepted: {numbers}", cache.length));
        }
        if logits.len() < sequences.len() * self.logits_stride() {
            return Err(format!(
                "{} sequences in a step; accepted: as many as there are rows of logits",
                sequences.len()
            ));
        }
        let mut writer = vec![usize::MAX; cache.blocks];
        for (index, sequence) in sequences.iter().enumerate() {
            let end = sequence.start + sequence.ids.len();
            let room = (sequence.blocks.len() * BLOCK).min(shape.context);
            if sequence.ids.is_empty() || end > room || sequence.blocks.iter().any(|&at| at as usize >= cache.blocks) {
                return Err(format!(
                    "tokens {}..{end} in the blocks {:?}; accepted: at least one, positions below {room}, blocks below {}",
                    sequence.start, sequence.blocks, cache.blocks
                ));
            }
            for &block in &sequence.blocks[sequence.start / BLOCK..end.div_ceil(BLOCK)] {
                if writer[block as usize] != usize::MAX {
                    return Err(format!("block {block} is written twice in a step; accepted: once"));
                }
                writer[block as usize] = index;
            }
            if let Some(id) = sequence.ids.iter().chain(&sequence.previous).find(|&&id| id as usize >= shape.vocab_size)
            {
                return Err(format!("token {id}; accepted: 0 to {}", shape.vocab_size - 1));
            }
        }
        for (index, sequence) in sequences.iter().enumerate() {
            let others = |&&block: &&u32| ![index, usize::MAX].contains(&writer[block as usize]);
            if let Some(block) = sequence.blocks.iter().find(others) {
                return Err(format!("block {block} is written for another sequence; accepted: blocks that are not"));
            }
        }
        Ok(())
    }

    /// A thread's part of a chunk. Products are divided by outputs, attention by sequences and key/value heads. Between two
    /// barriers a thread writes only its own part of a buffer, and none reads what another one writes.
    fn run<E: Element>(
        &self,
        chunk: &Chunk,
        sequences: &[Sequence],
        cache: &Cache<'_, E>,
        logits: &LogitsPointer,
        thread: usize,
        barrier: &Barrier,
    ) {
        let Buffers { x, x0, middle, qkv, attended, hidden } = &self.buffers;
        let (threads, tokens, width) = (self.scratch.len(), chunk.tokens.len(), self.shape.width);
        let mut scratch = self.scratch[thread].try_lock().expect("one job at a time");
        let Scratch { normed, row, input, scores } = &mut *scratch;
        normed.resize(TOKENS_AT_ONCE * width, 0.0);
        let own = |columns: usize| {
            let panels = share(columns.div_ceil(PANEL), threads, thread);
            panels.start * PANEL..(panels.end * PANEL).min(columns)
        };
        let channels = own(width);
        for token in share(tokens, threads, thread) {
            // SAFETY: this thread's tokens.
            let (x, x0) = unsafe { (x.get_mut(token, 0..width), x0.get_mut(token, 0..width)) };
            self.embed(&chunk.tokens[token], x0, row);
            let (r, a) = self.layers.first().map_or((1.0, 0.0), |layer| layer.scales);
            for (x, x0) in x.iter_mut().zip(x0) {
                *x = r * *x0 + a * *x0;
            }
        }
        barrier.wait();
        for (index, layer) in self.layers.iter().enumerate() {
            self.norm(x, tokens, &layer.attention_norm, normed);
            input.encode(self.kind, width, normed.chunks_exact(width).take(tokens));
            self.multiply(&layer.qkv, input, qkv, thread);
            barrier.wait();

            for item in share(chunk.runs.len() * self.shape.kv_heads, threads, thread) {
                let (run, kv_head) = (&chunk.runs[item / self.shape.kv_heads], item % self.shape.kv_heads);
                let blocks = &sequences[chunk.tokens[run.start].sequence].blocks;
                for token in run.clone() {
                    self.remember(index, kv_head, token, &chunk.tokens[token], normed, row, blocks, cache);
                }
                for token in run.clone() {
                    self.attend(index, kv_head, token, chunk.tokens[token].position, blocks, cache, scores);
                }
            }
            barrier.wait();

            // SAFETY: nobody writes `attended` before the next barrier.
            input.encode(
                self.kind,
                layer.out.inputs,
                (0..tokens).map(|token| unsafe { attended.get(token, 0..layer.out.inputs) }),
            );
            self.accumulate(&layer.out, input, thread);
            barrier.wait();

            self.norm(x, tokens, &layer.mlp_norm, normed);
            input.encode(self.kind, width, normed.chunks_exact(width).take(tokens));
            self.multiply(&layer.up, input, hidden, thread);
            if let Some(gate) = &layer.gate {
                self.gate(gate, input, thread);
            } else {
                for token in 0..tokens {
                    // SAFETY: this thread's columns.
                    for u in unsafe { hidden.get_mut(token, own(layer.up.outputs)) } {
                        *u = u.max(0.0) * u.max(0.0);
                    }
                }
            }
            barrier.wait();

            // SAFETY: nobody writes `hidden` before the next barrier.
            input.encode(
                self.kind,
                layer.down.inputs,
                (0..tokens).map(|token| unsafe { hidden.get(token, 0..layer.down.inputs) }),
            );
            self.accumulate(&layer.down, input, thread);
            for token in 0..tokens {
                // SAFETY: this thread's channels.
                let (x, x0, middle) = unsafe {
                    (
                        x.get_mut(token, channels.clone()),
                        x0.get(token, channels.clone()),
                        middle.get_mut(token, channels.clone()),
                    )
                };
                if index == self.layers.len() / 2 {
                    middle.copy_from_slice(x);
                }
                if let Some(next) = self.layers.get(index + 1) {
                    for (x, x0) in x.iter_mut().zip(x0) {
                        *x = next.scales.0 * *x + next.scales.1 * x0;
                    }
                } else if self.shape.backout {
                    for (x, middle) in x.iter_mut().zip(middle) {
                        *x -= self.backout * *middle;
                    }
                }
            }
            barrier.wait();
        }
        if chunk.wanted.is_empty() {
            return;
        }
        for ((token, _), normed) in chunk.wanted.iter().zip(normed.chunks_exact_mut(width)) {
            // SAFETY: nobody writes `x` any more.
            norm_row(unsafe { x.get(*token, 0..width) }, &self.final_norm, normed);
        }
        input.encode(self.kind, width, normed.chunks_exact(width).take(chunk.wanted.len()));
        let (cap, stride) = (self.shape.softcap, self.logits_stride());
        self.each_panel(&self.head, input, thread, &mut |index, panel, outputs| {
            let start = chunk.wanted[index].1 * stride + panel * PANEL;
            assert!(start + PANEL <= logits.1);
            // SAFETY: within the slice that was lent, and this thread's columns.
            unsafe { std::slice::from_raw_parts_mut(logits.0.add(start), PANEL) }.copy_from_slice(outputs);
        });
        if cap > 0.0 {
            let own = share(self.head.panels(), threads, thread);
            for (_, row) in &chunk.wanted {
                // SAFETY: as above, and `softcap_kernel` has found the kernel's instructions on this processor.
                unsafe {
                    let start = logits.0.add(row * stride + own.start * PANEL);
                    math::softcap_kernel(self.level)(std::slice::from_raw_parts_mut(start, own.len() * PANEL), cap);
                }
            }
        }
    }

    /// A token's embedding, mixed with the one before it.
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

    fn norm(&self, x: &Shared, tokens: usize, weights: &[f32], normed: &mut [f32]) {
        for (token, normed) in normed.chunks_exact_mut(weights.len()).take(tokens).enumerate() {
            // SAFETY: callers have passed a barrier since x was written, and do not write it before the next one.
            norm_row(unsafe { x.get(token, 0..weights.len()) }, weights, normed);
        }
    }

    /// This thread's panels of a product.
    fn each_panel(
        &self,
        matrix: &Matrix,
        input: &mut Input,
        thread: usize,
        write: &mut dyn FnMut(usize, usize, &[f32; PANEL]),
    ) {
        let panels = share(matrix.panels(), self.scratch.len(), thread);
        // SAFETY: `dot::kernel` has found the kernel's instructions on this processor.
        unsafe { (self.product)(matrix, panels, input, write) }
    }

    fn multiply(&self, matrix: &Matrix, input: &mut Input, output: &Shared, thread: usize) {
        self.each_panel(matrix, input, thread, &mut |token, panel, outputs| {
            // SAFETY: this thread's columns; buffers have whole panels.
            unsafe { output.get_mut(token, panel * PANEL..(panel + 1) * PANEL) }.copy_from_slice(outputs);
        });
    }

    /// Adds a product to the residual stream.
    fn accumulate(&self, matrix: &Matrix, input: &mut Input, thread: usize) {
        self.each_panel(matrix, input, thread, &mut |token, panel, outputs| {
            // SAFETY: this thread's columns; buffers have whole panels.
            let x = unsafe { self.buffers.x.get_mut(token, panel * PANEL..(panel + 1) * PANEL) };
            for (x, output) in x.iter_mut().zip(outputs) {
                *x += output;
            }
        });
    }

    /// SwiGLU (arXiv 2002.05202): silu(gate) times what `hidden` holds.
    fn gate(&self, gate: &Matrix, input: &mut Input, thread: usize) {
        self.each_panel(gate, input, thread, &mut |token, panel, outputs| {
            // SAFETY: this thread's columns; buffers have whole panels.
            let up = unsafe { self.buffers.hidden.get_mut(token, panel * PANEL..(panel + 1) * PANEL) };
            for (up, gate) in up.iter_mut().zip(outputs) {
                *up *= gate * sigmoid(*gate);
            }
        });
    }

    /// Norms and turns the queries and the key of a key/value head, and writes key and value into the cache.
    #[allow(clippy::too_many_arguments)]
    fn remember<E: Element>(
        &self,
        index: usize,
        kv_head: usize,
        token: usize,
        at: &Token,
        normed: &[f32],
        row: &mut Vec<f32>,
        blocks: &[u32],
        cache: &Cache<'_, E>,
    ) {
        let (shape, layer, dim) = (&self.shape, &self.layers[index], self.shape.head_dim);
        let tables = at.position * dim..(at.position + 1) * dim;
        let (cos, sin) = (&self.cos[tables.clone()], &self.sin[tables]);
        let group = shape.heads / shape.kv_heads;
        for head in kv_head * group..(kv_head + 1) * group {
            // SAFETY: only this thread has this head of this token, in `qkv` and in the cache.
            rotate(
                unsafe { self.buffers.qkv.get_mut(token, head * dim..(head + 1) * dim) },
                &layer.query_norm,
                cos,
                sin,
            );
        }
        let (key, value) = ((shape.heads + kv_head) * dim, (shape.heads + shape.kv_heads + kv_head) * dim);
        // SAFETY: as above; the two do not overlap.
        let (key, value) = unsafe {
            (self.buffers.qkv.get_mut(token, key..key + dim), self.buffers.qkv.get_mut(token, value..value + dim))
        };
        rotate(key, &layer.key_norm, cos, sin);
        if let Some((table, gates)) = &layer.value_embedding {
            let gates = &gates[kv_head * VALUE_GATE_CHANNELS..][..VALUE_GATE_CHANNELS];
            let gate: f32 = normed[token * shape.width..].iter().zip(gates).map(|(x, w)| x * w).sum();
            let gate = 3.0 * sigmoid(gate);
            row.resize(dim, 0.0);
            table.read((at.id as usize * shape.kv_heads + kv_head) * dim, row);
            for (value, embedded) in value.iter_mut().zip(row) {
                *value += gate * *embedded;
            }
        }
        let (block, offset) = (at.position / BLOCK, at.position % BLOCK);
        let start = self.place(cache, index, blocks[block] as usize, kv_head);
        // SAFETY: as above, because `check` has seen that no other sequence writes or reads this block; it is within the cache.
        let (keys, values) = unsafe {
            (
                std::slice::from_raw_parts_mut(cache.keys.add(start), dim * BLOCK),
                std::slice::from_raw_parts_mut(cache.values.add(start + offset * dim), dim),
            )
        };
        for i in 0..dim {
            (keys[i * BLOCK + offset], values[i]) = (E::of(key[i]), E::of(value[i]));
        }
    }

    /// Where a block's keys of a layer and head begin in the cache.
    fn place<E>(&self, cache: &Cache<'_, E>, layer: usize, block: usize, kv_head: usize) -> usize {
        ((layer * cache.blocks + block) * self.shape.kv_heads + kv_head) * BLOCK * self.shape.head_dim
    }

    #[allow(clippy::too_many_arguments)]
    fn attend<E: Element>(
        &self,
        index: usize,
        kv_head: usize,
        token: usize,
        position: usize,
        blocks: &[u32],
        cache: &Cache<'_, E>,
        scores: &mut Vec<f32>,
    ) {
        let (shape, dim) = (&self.shape, self.shape.head_dim);
        let first = (position + 1).saturating_sub(self.layers[index].window);
        let start = self.place(cache, index, 0, kv_head);
        // SAFETY: `check` has seen that the blocks are within the cache, and that what this step writes of them is of this
        // sequence, whose head only this thread writes until the next barrier.
        let seen = unsafe {
            Seen::new(
                cache.keys.add(start),
                cache.values.add(start),
                blocks,
                shape.kv_heads * BLOCK * dim,
                dim,
                first..position + 1,
            )
        };
        let group = shape.heads / shape.kv_heads;
        for head in kv_head * group..(kv_head + 1) * group {
            // SAFETY: only this thread has this head of this token.
            let (query, output) = unsafe {
                (
                    self.buffers.qkv.get(token, head * dim..(head + 1) * dim),
                    self.buffers.attended.get_mut(token, head * dim..(head + 1) * dim),
                )
            };
            // SAFETY: `attention::kernel` has found the kernel's instructions on this processor.
            unsafe { attention::kernel::<E>(self.level)(query, &seen, output, scores) }
        }
    }
}

/// Where logits go. The slice behind it is lent to `Decoder::step`, which waits for the threads that write it.
struct LogitsPointer(*mut f32, usize);

// SAFETY: threads write disjoint columns.
unsafe impl Sync for LogitsPointer {}

/// Cuts the tokens of all sequences into chunks, in order.
fn chunks(sequences: &[Sequence]) -> Vec<Chunk> {
    let mut chunks: Vec<Chunk> = Vec::new();
    for (result, sequence) in sequences.iter().enumerate() {
        for (offset, &id) in sequence.ids.iter().enumerate() {
            if chunks.last().is_none_or(|chunk| chunk.tokens.len() == TOKENS_AT_ONCE) {
                chunks.push(Chunk { tokens: Vec::new(), runs: Vec::new(), wanted: Vec::new() });
            }
            let chunk = chunks.last_mut().expect("pushed above");
            let at = chunk.tokens.len();
            match chunk.runs.last_mut() {
                Some(run) if offset > 0 => run.end = at + 1,
                _ => chunk.runs.push(at..at + 1),
            }
            let previous = if offset > 0 { Some(sequence.ids[offset - 1]) } else { sequence.previous };
            chunk.tokens.push(Token { id, previous, sequence: result, position: sequence.start + offset });
            if offset + 1 == sequence.ids.len() {
                chunk.wanted.push((at, result));
            }
        }
    }
    chunks
}

fn norm_row(x: &[f32], weights: &[f32], output: &mut [f32]) {
    let factor = inverse_rms(x);
    for ((output, x), weight) in output.iter_mut().zip(x).zip(weights) {
        *output = factor * x * weight;
    }
}

/// Norms a head, then turns its halves by the position's angle (arXiv 2104.09864).
fn rotate(head: &mut [f32], weights: &[f32], cos: &[f32], sin: &[f32]) {
    let (factor, half) = (inverse_rms(head), head.len() / 2);
    let (lower, upper) = head.split_at_mut(half);
    for i in 0..half {
        let (a, b) = (factor * weights[i] * lower[i], factor * weights[half + i] * upper[i]);
        lower[i] = a * cos[i] + b * sin[i];
        upper[i] = b * cos[half + i] + a * sin[half + i];
    }
}

/// The first of the highest logits; -1 where one is NaN or infinite.
fn likeliest(logits: &[f32]) -> i64 {
    if !sum_is_finite(logits) {
        return -1;
    }
    let most = highest(logits);
    logits.iter().position(|&x| x == most).map_or(-1, |place| place as i64)
}

fn sum_is_finite(logits: &[f32]) -> bool {
    // x * 0 is NaN where x is NaN or infinite, else 0.
    math::sum(logits, |x| x * 0.0) == 0.0
}
