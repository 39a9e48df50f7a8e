//! Embeddings: rows of numbers that are looked up and never multiplied by a matrix, so they are read where the caller has them.

/// A table of fp32 or bf16 numbers that the caller keeps alive and in place.
pub struct Table {
    start: *const u8,
    numbers: usize,
    bf16: bool,
}

// SAFETY: the numbers are only read, by any thread.
unsafe impl Send for Table {}
// SAFETY: as above.
unsafe impl Sync for Table {}

impl Table {
    /// # Safety
    /// So many numbers of that type begin at `start`, aligned; they stay as long as the table, and nobody writes them while it is
    /// read.
    pub unsafe fn new(start: *const u8, numbers: usize, bf16: bool) -> Table {
        Table { start, numbers, bf16 }
    }

    /// How many numbers it has.
    pub fn numbers(&self) -> usize {
        self.numbers
    }

    /// All numbers, widened.
    pub fn all(&self) -> Vec<f32> {
        let mut numbers = vec![0.0; self.numbers];
        self.read(0, &mut numbers);
        numbers
    }

    /// Widens the numbers from place `first` on.
    pub fn read(&self, first: usize, output: &mut [f32]) {
        assert!(first + output.len() <= self.numbers);
        for (place, number) in output.iter_mut().enumerate() {
            // SAFETY: within the table, by the assertion and the promise made to `new`.
            *number = unsafe {
                if self.bf16 {
                    f32::from_bits(u32::from(*self.start.cast::<u16>().add(first + place)) << 16)
                } else {
                    *self.start.cast::<f32>().add(first + place)
                }
            };
        }
    }
}
