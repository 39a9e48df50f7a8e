//! A model: its shape, and its weights as products want them.
//!
//! Legend: C width, H query heads, K key/value heads, D head width, V vocabulary.

use super::dot::{self, Level, Product};
use super::matrix::{lines_of, Kind, Lines, Matrix, PANEL};
use super::table::Table;
use super::workspace::Workspace;

const SMEAR_CHANNELS: usize = 24;
pub(super) const VALUE_GATE_CHANNELS: usize = 12;

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

impl Shape {
    /// Lines of all matrices.
    fn lines(&self, kind: Kind) -> usize {
        let of = |outputs: usize, inputs: usize| lines_of(kind, outputs, inputs);
        let (queries, keys) = (self.heads * self.head_dim, self.kv_heads * self.head_dim);
        let hidden = of(self.mlp_width, self.width) * (1 + usize::from(self.gated_mlp));
        let layer = of(queries, self.width)
            + of(2 * keys, self.width)
            + of(self.width, queries)
            + hidden
            + of(self.width, self.mlp_width);
        self.windows.len() * layer + of(self.vocab_size, self.width)
    }
}

pub(super) struct Layer {
    pub(super) attention_norm: Vec<f32>,
    /// H D outputs.
    pub(super) queries: Matrix,
    /// All keys, then values: 2K D outputs.
    pub(super) keys_values: Matrix,
    pub(super) query_norm: Vec<f32>,
    pub(super) key_norm: Vec<f32>,
    pub(super) out: Matrix,
    pub(super) mlp_norm: Vec<f32>,
    pub(super) gate: Option<Matrix>,
    pub(super) up: Matrix,
    pub(super) down: Matrix,
    /// (V, K D), and its gate (K, 12).
    pub(super) value_embedding: Option<(Table, Vec<f32>)>,
    /// x is multiplied by the first and the embedding times the second added, before this layer.
    pub(super) scales: (f32, f32),
    pub(super) window: usize,
}

/// A model with packed weights and threads of its own.
pub struct Decoder {
    pub(super) shape: Shape,
    pub(super) kind: Kind,
    pub(super) level: Level,
    pub(super) product: Product,
    pub(super) lines: Lines,
    /// (V, C)
    pub(super) embedding: Table,
    pub(super) layers: Vec<Layer>,
    pub(super) final_norm: Vec<f32>,
    pub(super) head: Matrix,
    pub(super) smear_gate: Vec<f32>,
    pub(super) smear_lambda: f32,
    pub(super) backout: f32,
    /// (context, D) each; the sines carry their sign.
    pub(super) cos: Vec<f32>,
    pub(super) sin: Vec<f32>,
    pub(super) workspace: Workspace,
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
        let mut lines = Lines::with_room(shape.lines(kind));
        let mut layers = Vec::new();
        for (layer, &window) in shape.windows.iter().enumerate() {
            let mut take = |name: &str, count: usize| take(&format!("{layer}.{name}"), count);
            let qkv = take("qkv", (query_width + 2 * value_width) * width)?;
            let (queries, keys_values) = qkv.split_at(query_width * width);
            let queries = Matrix::pack(kind, query_width, width, queries, &mut lines);
            let keys_values = Matrix::pack(kind, 2 * value_width, width, keys_values, &mut lines);
            let mut matrix = |name: &str, outputs: usize, inputs: usize| -> Result<Matrix, String> {
                Ok(Matrix::pack(kind, outputs, inputs, &take(name, outputs * inputs)?, &mut lines))
            };
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
                queries,
                keys_values,
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
        let head = Matrix::pack(kind, vocab_size, width, &take("head", vocab_size * width)?, &mut lines);
        let (smear_gate, smear_lambda) = match shape.smear {
            true => (take("smear_gate", SMEAR_CHANNELS)?, take("smear_lambda", 1)?[0]),
            false => (Vec::new(), 0.0),
        };
        let backout = if shape.backout { take("backout", 1)?[0] } else { 0.0 };
        Ok(Decoder {
            final_norm: take("final_norm", width)?,
            cos: take("cos", context * head_dim)?,
            sin: take("sin", context * head_dim)?,
            workspace: Workspace::new(&shape, threads)?,
            product: dot::kernel(kind, level).0,
            shape,
            kind,
            level,
            lines,
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
            gate + [&layer.queries, &layer.keys_values, &layer.out, &layer.up, &layer.down]
                .map(Matrix::bytes)
                .iter()
                .sum::<usize>()
        };
        self.layers.iter().map(of).sum::<usize>() + self.head.bytes()
    }

    /// Numbers from one row of logits to the next: the vocabulary, rounded up to whole panels.
    pub fn logits_stride(&self) -> usize {
        self.shape.vocab_size.next_multiple_of(PANEL)
    }
}
