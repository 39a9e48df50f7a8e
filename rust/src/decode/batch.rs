//! What a step is asked for: tokens of some sequences, checked, and cut into what goes through the layers together.

use std::ops::Range;

use super::attention::BLOCK;
use super::cache::Cache;
use super::model::Shape;

/// Tokens that go through the layers together: bounds the buffers, and leaves the activations in the cache.
pub const TOKENS_AT_ONCE: usize = 128;

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

/// Which tokens of each sequence logits are wanted after.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Wanted {
    /// The last one, from which a reply goes on.
    Last,
    /// Each, to score a text.
    Every,
}

impl Wanted {
    /// Rows of logits for these sequences.
    pub fn rows(self, sequences: &[Sequence]) -> usize {
        match self {
            Wanted::Last => sequences.len(),
            Wanted::Every => sequences.iter().map(|sequence| sequence.ids.len()).sum(),
        }
    }
}

/// A token on its way through the layers.
pub struct Token {
    pub id: u32,
    pub previous: Option<u32>,
    /// Which of the step's sequences it belongs to.
    pub sequence: usize,
    pub position: usize,
}

/// Up to `TOKENS_AT_ONCE` tokens, and who wants to know what follows.
#[derive(Default)]
pub struct Chunk {
    pub tokens: Vec<Token>,
    /// Neighbouring tokens of one sequence.
    pub runs: Vec<Range<usize>>,
    /// All of the tokens: 0, 1, 2, ...
    pub all: Vec<usize>,
    /// Tokens whose logits are wanted, and the rows of the result that these go to.
    pub wanted: Vec<usize>,
    pub rows: Vec<usize>,
}

/// Cuts the tokens of all sequences into chunks, in order.
pub fn chunks(sequences: &[Sequence], wanted: Wanted) -> Vec<Chunk> {
    let mut chunks: Vec<Chunk> = Vec::new();
    let mut row = 0;
    for (index, sequence) in sequences.iter().enumerate() {
        for (offset, &id) in sequence.ids.iter().enumerate() {
            if chunks.last().is_none_or(|chunk| chunk.tokens.len() == TOKENS_AT_ONCE) {
                chunks.push(Chunk::default());
            }
            let chunk = chunks.last_mut().expect("pushed above");
            let at = chunk.tokens.len();
            match chunk.runs.last_mut() {
                Some(run) if offset > 0 => run.end = at + 1,
                _ => chunk.runs.push(at..at + 1),
            }
            let previous = if offset > 0 { Some(sequence.ids[offset - 1]) } else { sequence.previous };
            chunk.all.push(at);
            chunk.tokens.push(Token { id, previous, sequence: index, position: sequence.start + offset });
            if wanted == Wanted::Every || offset + 1 == sequence.ids.len() {
                chunk.wanted.push(at);
                chunk.rows.push(row);
                row += 1;
            }
        }
    }
    chunks
}

/// An error says what the cache, its blocks or the vocabulary have no room for.
pub fn check<E>(shape: &Shape, sequences: &[Sequence], cache: &Cache<'_, E>) -> Result<(), String> {
    let numbers = shape.windows.len() * cache.blocks * shape.kv_heads * BLOCK * shape.head_dim;
    if cache.length != numbers {
        return Err(format!("the cache has {} numbers; accepted: {numbers}", cache.length));
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
        if let Some(id) = sequence.ids.iter().chain(&sequence.previous).find(|&&id| id as usize >= shape.vocab_size) {
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
