//! A text as tokens in one flat array that shrinks in place, used by training and by the encoding of
//! long pieces. There is a slot for each byte. A token stands in its first slot and, marked, in its
//! last one, so both neighbours of a token are found from its place and its length alone, without
//! links. Slots in between hold nothing.

/// Marks the end of a word; stands in its own slot.
pub const WALL: u32 = 0x7FFF_FFFF;
/// A slot inside a token.
const INSIDE: u32 = 0x7FFF_FFFE;
/// Set in the last slot of a token of two or more bytes: no id ever has this bit, so a place that
/// became the end of another token is never mistaken for the start of one.
const LAST: u32 = 0x8000_0000;

/// The array.
pub struct Symbols {
    slots: Vec<u32>,
}

impl Symbols {
    /// Room for `slots` slots.
    pub fn with_capacity(slots: usize) -> Self {
        Symbols { slots: Vec::with_capacity(slots) }
    }

    /// Appends a token of one byte, or a [`WALL`].
    pub fn push(&mut self, id: u32) {
        self.slots.push(id);
    }

    /// Puts a token of one slot, or a [`WALL`], at `place`.
    #[inline(always)]
    pub fn put(&mut self, place: usize, id: u32) {
        self.slots[place] = id;
    }

    /// Keeps the first `slots` slots.
    pub fn truncate(&mut self, slots: usize) {
        self.slots.truncate(slots);
    }

    /// Number of slots.
    pub fn len(&self) -> usize {
        self.slots.len()
    }

    /// The token that starts at `place`, or [`WALL`], or no id at all where none starts.
    #[inline(always)]
    pub fn get(&self, place: usize) -> u32 {
        self.slots[place]
    }

    /// The token that ends before the one at `place`; `None` behind a wall.
    #[inline(always)]
    pub fn before(&self, place: usize) -> Option<u32> {
        let slot = self.slots[place - 1];
        (slot != WALL).then_some(slot & !LAST)
    }

    /// Puts `merged` in place of the tokens `place..middle` and `middle..end`.
    #[inline(always)]
    pub fn join(&mut self, place: usize, middle: usize, end: usize, merged: u32) {
        self.slots[middle - 1] = INSIDE;
        self.slots[middle] = INSIDE;
        self.slots[place] = merged;
        self.slots[end - 1] = merged | LAST;
    }
}
