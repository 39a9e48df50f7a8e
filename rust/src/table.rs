//! Finds strings by hash; the strings themselves lie with the caller.

/// Open addressing: `hash's upper half << 32 | index + 1`, or 0.
pub struct Table {
    slots: Vec<u64>,
}

impl Table {
    /// A table for up to `expected` strings.
    pub fn with_capacity(expected: usize) -> Self {
        Table { slots: vec![0; (expected.max(8) * 2).next_power_of_two()] }
    }

    /// Index of the string with this hash for which `equals` holds, or the slot where it belongs.
    #[inline(always)]
    fn search(&self, hash: u64, equals: impl Fn(usize) -> bool) -> Result<usize, usize> {
        let mask = self.slots.len() - 1;
        let mut at = hash as usize & mask;
        loop {
            let slot = self.slots[at];
            if slot == 0 {
                return Err(at);
            }
            let index = slot as u32 as usize - 1;
            if slot >> 32 == hash >> 32 && equals(index) {
                return Ok(index);
            }
            at = (at + 1) & mask;
        }
    }

    /// Index of the string with this hash for which `equals` holds.
    #[inline(always)]
    pub fn find(&self, hash: u64, equals: impl Fn(usize) -> bool) -> Option<usize> {
        self.search(hash, equals).ok()
    }

    /// Stores an index, unless an equal string is there already: then that one's index is the error.
    #[inline(always)]
    pub fn insert(&mut self, hash: u64, index: usize, equals: impl Fn(usize) -> bool) -> Result<(), usize> {
        match self.search(hash, equals) {
            Ok(earlier) => Err(earlier),
            Err(free) => {
                self.slots[free] = hash >> 32 << 32 | (index as u64 + 1);
                Ok(())
            }
        }
    }
}
