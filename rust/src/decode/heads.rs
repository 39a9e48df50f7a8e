//! What lies between the products of attention, for one key/value head with its queries.

use super::attention::{self, Blocks, Query, BLOCK};
use super::cache::Element;
use super::math::{inverse_rms, sigmoid};
use super::model::VALUE_GATE_CHANNELS;
use super::step::Part;

impl<E: Element> Part<'_, E> {
    /// Norms and turns the key, and writes key and value into the cache. `normed` (tokens, C) is what the layer's products
    /// read; `row` is scratch.
    pub(super) fn remember(&self, layer: usize, kv_head: usize, token: usize, normed: &[f32], row: &mut Vec<f32>) {
        let (shape, weights, numbers) =
            (&self.model.shape, &self.model.layers[layer], &self.model.workspace.keys_values);
        let (dim, at) = (shape.head_dim, &self.chunk.tokens[token]);
        let (key, value) = (kv_head * dim, (shape.kv_heads + kv_head) * dim);
        // SAFETY: only this thread has this head of this token, here and in the cache; the two do not overlap.
        let (key, value) =
            unsafe { (numbers.get_mut(token, key..key + dim), numbers.get_mut(token, value..value + dim)) };
        self.rotate(key, &weights.key_norm, at.position);
        if let Some((table, gates)) = &weights.value_embedding {
            let gates = &gates[kv_head * VALUE_GATE_CHANNELS..][..VALUE_GATE_CHANNELS];
            let gate: f32 = normed[token * shape.width..].iter().zip(gates).map(|(x, w)| x * w).sum();
            let gate = 3.0 * sigmoid(gate);
            row.resize(dim, 0.0);
            table.read((at.id as usize * shape.kv_heads + kv_head) * dim, row);
            for (value, embedded) in value.iter_mut().zip(row) {
                *value += gate * *embedded;
            }
        }
        let (block, offset) = (self.blocks_of(token)[at.position / BLOCK], at.position % BLOCK);
        let start = self.place(layer, block as usize, kv_head);
        // SAFETY: as above, because `check` has seen that no other sequence writes or reads this block; it is within the cache.
        let (keys, values) = unsafe {
            (
                std::slice::from_raw_parts_mut(self.cache.keys.add(start), dim * BLOCK),
                std::slice::from_raw_parts_mut(self.cache.values.add(start + offset * dim), dim),
            )
        };
        for i in 0..dim {
            (keys[i * BLOCK + offset], values[i]) = (E::of(key[i]), E::of(value[i]));
        }
    }

    /// Norms and turns the queries of some tokens of a sequence, and averages the values that each sees, into `attended`;
    /// `scores` is scratch.
    pub(super) fn attend(&self, layer: usize, kv_head: usize, tokens: &[usize], scores: &mut Vec<f32>) {
        let (shape, workspace, dim) = (&self.model.shape, &self.model.workspace, self.model.shape.head_dim);
        let (weights, group) = (&self.model.layers[layer], shape.heads / shape.kv_heads);
        let Some(&first) = tokens.first() else { return };
        let mut queries = Vec::with_capacity(tokens.len() * group);
        for &token in tokens {
            let position = self.chunk.tokens[token].position;
            for head in kv_head * group..(kv_head + 1) * group {
                let columns = head * dim..(head + 1) * dim;
                // SAFETY: only this thread has this head of this token.
                let (query, output) = unsafe {
                    (workspace.queries.get_mut(token, columns.clone()), workspace.attended.get_mut(token, columns))
                };
                self.rotate(query, &weights.query_norm, position);
                queries.push(Query {
                    query,
                    output,
                    sees: (position + 1).saturating_sub(weights.window)..position + 1,
                });
            }
        }
        let start = self.place(layer, 0, kv_head);
        // SAFETY: `check` has seen that the blocks are within the cache, and that what this step writes of them is of this
        // sequence, whose head only this thread writes until the next barrier. `kernel` has found the kernel's instructions.
        unsafe {
            let (keys, values) = (self.cache.keys.add(start), self.cache.values.add(start));
            let blocks = Blocks::new(keys, values, self.blocks_of(first), shape.kv_heads * BLOCK * dim, dim);
            attention::kernel::<E>(self.model.level)(&mut queries, &blocks, scores);
        }
    }

    /// Norms a head, then turns its halves by the position's angle (arXiv 2104.09864).
    fn rotate(&self, head: &mut [f32], weights: &[f32], position: usize) {
        let tables = position * head.len()..(position + 1) * head.len();
        let (cos, sin) = (&self.model.cos[tables.clone()], &self.model.sin[tables]);
        let (factor, half) = (inverse_rms(head), head.len() / 2);
        let (lower, upper) = head.split_at_mut(half);
        for i in 0..half {
            let (a, b) = (factor * weights[i] * lower[i], factor * weights[half + i] * upper[i]);
            lower[i] = a * cos[i] + b * sin[i];
            upper[i] = b * cos[half + i] + a * sin[half + i];
        }
    }

    fn blocks_of(&self, token: usize) -> &[u32] {
        &self.sequences[self.chunk.tokens[token].sequence].blocks
    }

    /// Where a block's keys and values of a layer and head begin in the cache.
    fn place(&self, layer: usize, block: usize, kv_head: usize) -> usize {
        let shape = &self.model.shape;
        ((layer * self.cache.blocks + block) * shape.kv_heads + kv_head) * BLOCK * shape.head_dim
    }
}
