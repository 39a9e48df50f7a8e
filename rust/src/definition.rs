//! What a tokenizer is, whatever file it comes from: tokens by id, merges by rank, pattern, special
//! tokens.

use crate::Error;

/// Most bytes that all tokens of a vocabulary may have together. Real ones have a few million; a list of merges that
/// doubles its tokens over and over would fill the memory.
pub const MAX_TOKEN_BYTES: usize = 1 << 28;

/// Two tokens that join into a third.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Merge {
    /// Id of the first token.
    pub left: u32,
    /// Id of the second token.
    pub right: u32,
    /// Id of the token that has the bytes of both.
    pub merged: u32,
    /// Lower ranks merge first; merges of one rank make the same token and apply from left to right.
    pub rank: u32,
}

/// A tokenizer as data, checked by [`crate::Encoder::open`].
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Definition {
    /// Name or regex of the split pattern.
    pub pattern: String,
    /// Bytes of each token by id; empty where an id stands for no text (special tokens and holes).
    pub tokens: Vec<Vec<u8>>,
    /// All merges, ranks ascending from 0 without a hole.
    pub merges: Vec<Merge>,
    /// Whether a piece that is a token becomes that token even where the merges would not make it
    /// (tiktoken's rule, and `ignore_merges` of Hugging Face).
    pub whole_first: bool,
    /// Whether text is brought into Unicode's composed form NFC first.
    pub nfc: bool,
    /// Special tokens with their ids, by id.
    pub special: Vec<(String, u32)>,
}

impl Definition {
    /// Bytes are the ids 0 to 255; `merges[i]` makes the id `256 + i`. Says nothing of special tokens.
    /// Refuses a merge of an id that is not there yet.
    pub fn of_merges(pattern: &str, merges: &[(u32, u32)]) -> Result<Self, Error> {
        let mut tokens: Vec<Vec<u8>> = (0..=255).map(|byte| vec![byte]).collect();
        let mut all = Vec::with_capacity(merges.len());
        let mut size = tokens.len();
        for (index, &(left, right)) in merges.iter().enumerate() {
            let (Some(first), Some(second)) = (tokens.get(left as usize), tokens.get(right as usize)) else {
                return Err(Error::Merge { index, left, right });
            };
            size += first.len() + second.len();
            if size > MAX_TOKEN_BYTES {
                return Err(Error::Tokens { bytes: size });
            }
            tokens.push([&first[..], second].concat());
            all.push(Merge { left, right, merged: 256 + index as u32, rank: index as u32 });
        }
        Ok(Definition {
            pattern: pattern.to_string(),
            tokens,
            merges: all,
            whole_first: false,
            nfc: false,
            special: Vec::new(),
        })
    }

    /// Appends special tokens, without those that are there already.
    pub fn add_special(&mut self, names: impl IntoIterator<Item = String>) {
        for name in names {
            if self.special.iter().all(|(other, _)| *other != name) {
                self.special.push((name, self.tokens.len() as u32));
                self.tokens.push(Vec::new());
            }
        }
    }
}
