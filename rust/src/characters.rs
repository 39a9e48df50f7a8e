//! Characters of two and three bytes, merged ahead as far as nothing beside them can matter.
//!
//! A text in Chinese is one long piece after the other, hardly ever the same, and most of its merges
//! only put the bytes of a character together. Those are the same each time, up to the point where a
//! merge over the character's border may come first. So for each character the tokens at that point
//! are worked out once, and merging starts from there.

use crate::vocabulary::{Vocabulary, NONE};

/// Room that [`Characters::fill`] needs behind the last token.
pub const SLACK: usize = 3;

/// Up to three tokens of each character below U+10000, then their number; 0 where nobody asked yet.
pub struct Characters {
    known: Vec<[u32; 4]>,
}

impl Default for Characters {
    fn default() -> Self {
        Characters { known: vec![[0; 4]; 1 << 16] } // zeros take no memory until they are written over
    }
}

impl Characters {
    /// Writes what the merging of a piece of UTF-8 starts from; returns the number of tokens.
    #[inline]
    pub fn fill(&mut self, vocabulary: &Vocabulary, piece: &[u8], tokens: &mut [u32]) -> usize {
        let (mut at, mut count) = (0, 0);
        while at < piece.len() {
            let length = match piece[at] {
                0..=0x7F => 1,
                0x80..=0xDF => 2,
                0xE0..=0xEF => 3,
                _ => 4,
            };
            let end = piece.len().min(at + length);
            let character = &piece[at..end];
            // Merges with ASCII are left out of the limits: they are many, and would come early.
            let apart = (at == 0 || !piece[at - 1].is_ascii()) && piece.get(end).is_none_or(|next| !next.is_ascii());
            let low = |byte: u8| usize::from(byte & 0x3F);
            let code = match *character {
                [first, second] if apart => Some(low(first) << 6 | low(second)),
                [first, second, third] if apart => Some((low(first) & 15) << 12 | low(second) << 6 | low(third)),
                _ => None,
            };
            if let Some(code) = code {
                let mut known = self.known[code];
                if known[3] == 0 {
                    known = settle(vocabulary, character);
                    self.known[code] = known;
                }
                tokens[count..count + SLACK].copy_from_slice(&known[..3]);
                count += known[3] as usize;
            } else {
                for &byte in character {
                    tokens[count] = vocabulary.byte(byte);
                    count += 1;
                }
            }
            at = end;
        }
        count
    }
}

/// The tokens of a character between others that are not ASCII, merged until a merge with one of
/// them may come first.
#[cold]
fn settle(vocabulary: &Vocabulary, character: &[u8]) -> [u32; 4] {
    let mut tokens: Vec<u32> = character.iter().map(|&byte| vocabulary.byte(byte)).collect();
    loop {
        let ranks = tokens.windows(2).map(|pair| vocabulary.rank(pair[0], pair[1])).enumerate();
        let Some((place, rank)) = ranks.min_by_key(|&(_, rank)| rank) else { break };
        let border = vocabulary.first_joined(tokens[0]).min(vocabulary.last_joined(tokens[tokens.len() - 1]));
        if rank == NONE || border < rank {
            break;
        }
        tokens[place] = vocabulary.made(rank);
        tokens.remove(place + 1);
    }
    let mut known = [0, 0, 0, tokens.len() as u32];
    known[..tokens.len()].copy_from_slice(&tokens);
    known
}
