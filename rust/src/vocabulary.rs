//! The tokens: their bytes, and which pair of them makes which.

use crate::hash::{pack, PairTable};
use crate::Error;

/// Stands for "no merge".
pub const NONE: u32 = u32::MAX;

/// Tokens by id (a byte, or 256 plus the index of a merge) and merges by pair.
pub struct Vocabulary {
    merges: PairTable,
    /// Bytes of all tokens one after the other, and where each starts.
    text: Vec<u8>,
    starts: Vec<u32>,
}

impl Vocabulary {
    /// Builds the tables. Every merge joins two ids that exist before it, and no pair comes twice.
    pub fn new(merges: &[(u32, u32)]) -> Result<Self, Error> {
        let mut vocabulary = Vocabulary {
            merges: PairTable::with_capacity(merges.len()),
            text: (0..=255).collect(),
            starts: (0..=256).collect(),
        };
        for (index, &(left, right)) in merges.iter().enumerate() {
            let id = 256 + index as u32;
            if left >= id || right >= id || vocabulary.merges.get_or_insert_with(pack(left, right), || id) != id {
                return Err(Error::Merge { index, left, right });
            }
            for part in [left, right] {
                let (start, end) = vocabulary.span(part);
                vocabulary.text.extend_from_within(start..end);
            }
            if vocabulary.text.len() > crate::MAX_BYTES {
                return Err(Error::TooLong { what: "all tokens together", bytes: vocabulary.text.len() });
            }
            vocabulary.starts.push(vocabulary.text.len() as u32);
        }
        Ok(vocabulary)
    }

    /// Number of ids.
    pub fn size(&self) -> usize {
        self.starts.len() - 1
    }

    #[inline(always)]
    fn span(&self, id: u32) -> (usize, usize) {
        (self.starts[id as usize] as usize, self.starts[id as usize + 1] as usize)
    }

    /// Bytes of a token that exists.
    #[inline(always)]
    pub fn token(&self, id: u32) -> &[u8] {
        let (start, end) = self.span(id);
        &self.text[start..end]
    }

    /// Number of bytes of a token that exists.
    #[inline(always)]
    pub fn length(&self, id: u32) -> usize {
        let (start, end) = self.span(id);
        end - start
    }

    /// The id that a pair merges into, or [`NONE`]. Lower ones are merged first.
    #[inline(always)]
    pub fn rank(&self, left: u32, right: u32) -> u32 {
        self.merges.get(pack(left, right)).unwrap_or(NONE)
    }
}
