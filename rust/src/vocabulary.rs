//! The tokens: their bytes, and which two of them make which.

use crate::definition::{Merge, MAX_TOKEN_BYTES};
use crate::hash::{RankTable, MAX_ID};
use crate::{Definition, Error};

/// Stands for "no merge": above every rank, and with a place behind it still a positive `i32`.
pub const NONE: u32 = (1 << 23) - 1;
/// Bytes that [`Vocabulary::decode`] copies at once: longer than nearly all tokens.
const CHUNK: usize = 16;

/// Tokens by id and merges by pair. Ids may come in any order: what merges first is the rank's matter.
pub struct Vocabulary {
    bytes: [u32; 256],
    /// Rank of each pair of ids below 256, `left << 8 | right`. In all vocabularies in use these are the
    /// bytes, with which every piece begins.
    low_pairs: Vec<u32>,
    pairs: RankTable,
    /// The token that each rank makes.
    made: Vec<u32>,
    /// Bytes of all tokens one after the other, where each starts, and some room behind the last.
    text: Vec<u8>,
    starts: Vec<u32>,
    in_order: bool,
    /// For each token the lowest rank at which it merges with what stands before it, and with what
    /// follows it, where that is not ASCII and a character begins between the two.
    borders: Vec<[u32; 2]>,
}

impl Vocabulary {
    /// Builds the tables and checks that every merge makes sense.
    pub fn new(definition: &Definition) -> Result<Self, Error> {
        let Definition { tokens, merges, .. } = definition;
        let size: usize = tokens.iter().map(Vec::len).sum();
        if size > MAX_TOKEN_BYTES {
            return Err(Error::Tokens { bytes: size });
        }
        if tokens.len() > MAX_ID {
            return Err(Error::Size { size: tokens.len() });
        }
        let mut text = Vec::with_capacity(size + CHUNK);
        let mut starts = Vec::with_capacity(tokens.len() + 1);
        let mut bytes = [NONE; 256];
        for (id, token) in tokens.iter().enumerate() {
            starts.push(text.len() as u32);
            text.extend_from_slice(token);
            if let [byte] = token[..] {
                bytes[usize::from(byte)] = id as u32;
            }
        }
        starts.push(text.len() as u32);
        text.resize(size + CHUNK, 0);
        if let Some(byte) = bytes.iter().position(|&id| id == NONE) {
            return Err(Error::Byte { byte: byte as u8 });
        }
        let mut vocabulary = Vocabulary {
            bytes,
            low_pairs: vec![NONE; 1 << 16],
            pairs: RankTable::with_capacity(merges.len()),
            made: Vec::new(),
            text,
            starts,
            in_order: true,
            borders: vec![[NONE; 2]; tokens.len()],
        };
        vocabulary.add_merges(merges)?;
        Ok(vocabulary)
    }

    fn add_merges(&mut self, merges: &[Merge]) -> Result<(), Error> {
        let size = self.size() as u32;
        // The rank that makes each token; bytes are there from the start.
        let mut rank_of = vec![NONE; size as usize];
        for (index, &Merge { left, right, merged, rank }) in merges.iter().enumerate() {
            let refused = Err(Error::Merge { index, left, right });
            if left >= size || right >= size || merged >= size || self.length(left) == 0 || self.length(right) == 0 {
                return refused;
            }
            let (whole, first) = (self.token(merged), self.length(left));
            if whole.strip_prefix(self.token(left)) != Some(self.token(right)) {
                return refused;
            }
            let is_border = whole[first] >= 0xC0 && !whole[first - 1].is_ascii();
            if rank as usize == self.made.len() && self.made.len() < MAX_ID {
                self.made.push(merged);
            } else if rank as usize + 1 != self.made.len() || self.made[rank as usize] != merged {
                return refused;
            }
            if self.pairs.get_or_insert(left, right, rank) != rank {
                return refused;
            }
            if (left | right) < 256 {
                self.low_pairs[(left << 8 | right) as usize] = rank;
            }
            if is_border {
                for (id, side) in [(right, 0), (left, 1)] {
                    let border = &mut self.borders[id as usize][side];
                    *border = rank.min(*border);
                }
            }
            let made_before = |id: u32| self.length(id) == 1 || rank_of[id as usize] < rank;
            self.in_order &= made_before(left) && made_before(right);
            rank_of[merged as usize] = rank_of[merged as usize].min(rank);
        }
        Ok(())
    }

    /// Number of ids.
    pub fn size(&self) -> usize {
        self.starts.len() - 1
    }

    /// Number of ranks.
    pub fn ranks(&self) -> usize {
        self.made.len()
    }

    /// Whether every merge joins bytes or tokens of lower ranks, as in all that was learned by merging.
    pub fn in_order(&self) -> bool {
        self.in_order
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

    /// The token of one byte.
    #[inline(always)]
    pub fn byte(&self, byte: u8) -> u32 {
        self.bytes[usize::from(byte)]
    }

    /// The rank at which a pair of tokens merges, or [`NONE`]. Lower ones are merged first.
    #[inline(always)]
    pub fn rank(&self, left: u32, right: u32) -> u32 {
        if (left | right) < 256 {
            self.low_pairs[(left << 8 | right) as usize]
        } else {
            self.pairs.get(left, right).unwrap_or(NONE)
        }
    }

    /// The lowest rank at which a token merges with what stands before it, where that is not ASCII and
    /// the token starts a character; or [`NONE`].
    pub fn first_joined(&self, id: u32) -> u32 {
        self.borders[id as usize][0]
    }

    /// The lowest rank at which a token that ends with a character merges with a next one that is not
    /// ASCII; or [`NONE`].
    pub fn last_joined(&self, id: u32) -> u32 {
        self.borders[id as usize][1]
    }

    /// The token that the merges of a rank make.
    #[inline(always)]
    pub fn made(&self, rank: u32) -> u32 {
        self.made[rank as usize]
    }

    /// The bytes that ids stand for.
    pub fn decode(&self, ids: &[u32]) -> Result<Vec<u8>, Error> {
        let mut bytes = Vec::with_capacity(ids.len() * 6 + CHUNK);
        for &id in ids {
            if id as usize >= self.size() {
                return Err(Error::Id { id, size: self.size() });
            }
            let (start, end) = self.span(id);
            // A copy of fixed size is one load and one store; what is too much is cut off again.
            if end - start <= CHUNK {
                bytes.extend_from_slice(&self.text[start..start + CHUNK]);
                bytes.truncate(bytes.len() - CHUNK + (end - start));
            } else {
                bytes.extend_from_slice(&self.text[start..end]);
            }
        }
        Ok(bytes)
    }

    /// For each id, whether merging the token's own bytes ends in it.
    pub fn reached(&self, merges: &[Merge]) -> Vec<bool> {
        let mut reached: Vec<bool> = (0..self.size() as u32).map(|id| self.length(id) == 1).collect();
        if !self.in_order() || merges.len() != self.made.len() {
            let mut ids = Vec::new();
            for &id in &self.made {
                ids.clear();
                self.merge_medium(self.token(id), &mut ids); // a token need not be whole characters
                reached[id as usize] = ids == [id];
            }
            return reached;
        }
        // Each token has one way to be made, from tokens made before it.
        let mut parts = vec![Parts { left: 0, right: 0, rank: -1 }; self.size()];
        for &Merge { left, right, merged, rank } in merges {
            parts[merged as usize] = Parts { left, right, rank: i64::from(rank) };
            let both = reached[left as usize] && reached[right as usize];
            reached[merged as usize] = both && !self.is_crossed(left, right, &parts, i64::from(rank));
        }
        reached
    }

    /// Whether, when the bytes of two tokens stand side by side, a pair over the border between them
    /// merges before `limit`. Undoes the last merge beside the border, one after the other, to see each
    /// pair that ever met there (the idea of GitHub's crate `bpe`).
    fn is_crossed(&self, mut left: u32, mut right: u32, parts: &[Parts], mut limit: i64) -> bool {
        loop {
            let rank = self.rank(left, right);
            if i64::from(rank) < limit {
                return true;
            }
            let (before, after) = (parts[left as usize], parts[right as usize]);
            if before.rank < 0 && after.rank < 0 {
                return false;
            }
            // Among equal ranks what stands on the left merges first.
            if before.rank > after.rank {
                limit = before.rank;
                left = before.right;
            } else {
                limit = after.rank + 1;
                right = after.left;
            }
        }
    }
}

/// The merge that makes a token; rank -1 for a byte.
#[derive(Clone, Copy)]
struct Parts {
    left: u32,
    right: u32,
    rank: i64,
}
