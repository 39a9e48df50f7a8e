//! Weights and activations as 32-bit words: one fp32, two bf16 or four int8 numbers that a product takes at once.

use super::math::{bf16, largest, round_up, rounded};

/// Outputs of a panel: what one 512-bit register holds.
pub const PANEL: usize = 16;
/// Words of an input are padded to a multiple of this, so that products have no remainder.
pub const STRIDE: usize = 4;

/// How the numbers of a matrix are stored.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Kind {
    /// Four bytes a weight; activations in fp32.
    F32,
    /// Two bytes a weight; activations are rounded to bf16 where they enter a product, sums are fp32.
    Bf16,
    /// One byte a weight and a scale for each output; activations are scaled to int8 token by token, sums are exact.
    Int8,
}

impl Kind {
    /// Numbers in a word.
    pub fn per_word(self) -> usize {
        match self {
            Kind::F32 => 1,
            Kind::Bf16 => 2,
            Kind::Int8 => 4,
        }
    }

    /// Words that hold `inputs` numbers.
    pub fn words(self, inputs: usize) -> usize {
        round_up(inputs.div_ceil(self.per_word()), STRIDE)
    }
}

/// One word of each output of a panel: a cache line.
#[derive(Clone, Copy)]
#[repr(C, align(64))]
pub struct Line(pub [u32; PANEL]);

/// The lines of all matrices of a model, one behind the other.
pub struct Lines(Vec<Line>);

/// Bytes of a huge page.
const HUGE: usize = 2 << 20;

impl Lines {
    /// Room for the matrices of so many lines, in huge pages where the operating system has them. A step reads every page once, and
    /// finding pages of 4 KB took a third of its time (fp32, 21 MB, one row).
    pub fn with_room(count: usize) -> Lines {
        let mut lines: Vec<Line> = Vec::with_capacity(count + HUGE / size_of::<Line>());
        let skipped = lines.as_ptr().align_offset(HUGE);
        lines.resize(skipped, Line([0; PANEL]));
        #[cfg(target_os = "linux")]
        // SAFETY: the range is within what was allocated, and advice changes no content. Where it is not taken, pages are small.
        unsafe {
            madvise(lines.as_mut_ptr().add(skipped).cast(), count * size_of::<Line>(), MADV_HUGEPAGE);
        }
        Lines(lines)
    }

    /// So many more, zeros, and where they begin.
    fn add(&mut self, count: usize) -> (usize, &mut [Line]) {
        let start = self.0.len();
        self.0.resize(start + count, Line([0; PANEL]));
        (start, &mut self.0[start..])
    }
}

#[cfg(target_os = "linux")]
const MADV_HUGEPAGE: std::ffi::c_int = 14;

#[cfg(target_os = "linux")]
unsafe extern "C" {
    /// Of the C library, which Rust's links anyway.
    fn madvise(start: *mut std::ffi::c_void, bytes: usize, advice: std::ffi::c_int) -> std::ffi::c_int;
}

/// A weight matrix (outputs, inputs) in panels of 16 outputs. A panel is contiguous along the inputs, so that a product
/// reads memory in order and needs no sum across a register. Its numbers are among the `Lines` of its model.
pub struct Matrix {
    /// How it is stored.
    pub kind: Kind,
    /// Rows of the weight.
    pub outputs: usize,
    /// Columns of the weight.
    pub inputs: usize,
    /// Where its lines begin.
    start: usize,
    scales: Vec<[f32; PANEL]>,
}

impl Matrix {
    /// Packs weights (outputs, inputs), row by row, behind the matrices before.
    pub fn pack(kind: Kind, outputs: usize, inputs: usize, weights: &[f32], lines: &mut Lines) -> Matrix {
        assert_eq!(weights.len(), outputs * inputs);
        let (panels, words) = (outputs.div_ceil(PANEL), kind.words(inputs));
        let (start, lines) = lines.add(panels * words);
        let mut scales = vec![[1.0; PANEL]; panels];
        let mut encoded = vec![0; words];
        for (output, row) in weights.chunks_exact(inputs).enumerate() {
            let (panel, lane) = (output / PANEL, output % PANEL);
            scales[panel][lane] = encode(kind, row, &mut encoded);
            for (line, word) in lines[panel * words..(panel + 1) * words].iter_mut().zip(&encoded) {
                line.0[lane] = *word;
            }
        }
        Matrix { kind, outputs, inputs, start, scales }
    }

    /// How many panels it has.
    pub fn panels(&self) -> usize {
        self.scales.len()
    }

    /// The words of a panel, and what its outputs are multiplied by.
    pub fn panel<'a>(&'a self, lines: &'a Lines, panel: usize) -> (&'a [Line], &'a [f32; PANEL]) {
        let words = self.kind.words(self.inputs);
        (&lines.0[self.start + panel * words..][..words], &self.scales[panel])
    }

    /// Bytes that a product reads.
    pub fn bytes(&self) -> usize {
        self.panels() * self.kind.words(self.inputs) * size_of::<Line>()
    }
}

/// Writes numbers as words, zeros behind them, and returns the scale that they are to be multiplied by.
fn encode(kind: Kind, numbers: &[f32], words: &mut [u32]) -> f32 {
    words.fill(0);
    match kind {
        Kind::F32 => {
            for (word, number) in words.iter_mut().zip(numbers) {
                *word = number.to_bits();
            }
            1.0
        }
        Kind::Bf16 => {
            let (pairs, rest) = numbers.as_chunks::<2>();
            for (word, pair) in words.iter_mut().zip(pairs) {
                *word = u32::from(bf16(pair[0])) | u32::from(bf16(pair[1])) << 16;
            }
            if let [last] = rest {
                words[pairs.len()] = u32::from(bf16(*last));
            }
            1.0
        }
        Kind::Int8 => {
            let scale = largest(numbers) / 127.0; // NaN and infinity become no numbers: they come out through the scale
            let inverse = if scale > 0.0 { 1.0 / scale } else { 0.0 };
            let byte = |number: f32| rounded(number * inverse) & 0xFF;
            let (fours, rest) = numbers.as_chunks::<4>();
            for (word, four) in words.iter_mut().zip(fours) {
                *word = byte(four[0]) | byte(four[1]) << 8 | byte(four[2]) << 16 | byte(four[3]) << 24;
            }
            for (place, &number) in rest.iter().enumerate() {
                words[fours.len()] |= byte(number) << (8 * place);
            }
            scale
        }
    }
}

/// Activations of several tokens, encoded for products with matrices of one kind.
#[derive(Default)]
pub struct Input {
    pub(super) words: Vec<[u32; STRIDE]>,
    pub(super) scales: Vec<f32>,
    /// Of the int8 numbers of each token.
    pub(super) sums: Vec<i32>,
    /// Groups of words a token.
    pub(super) groups: usize,
    /// Words of several tokens side by side: see `interleave`.
    pub(super) wide: Vec<u32>,
}

impl Input {
    /// Takes rows of `inputs` numbers each.
    pub fn encode<'a>(&mut self, kind: Kind, inputs: usize, rows: impl Iterator<Item = &'a [f32]>) {
        self.groups = kind.words(inputs) / STRIDE;
        self.words.clear();
        self.scales.clear();
        self.sums.clear();
        for row in rows {
            let start = self.words.len();
            self.words.resize(start + self.groups, [0; STRIDE]);
            let words = self.words[start..].as_flattened_mut();
            self.scales.push(encode(kind, row, words));
            let of_word = |word: &u32| word.to_le_bytes().map(|byte| i32::from(byte as i8)).iter().sum::<i32>();
            self.sums.push(if kind == Kind::Int8 { words.iter().map(of_word).sum() } else { 0 });
        }
    }

    /// Fills `wide` for whole tiles of so many tokens: the first word of each token of a tile, then the second of each.
    pub fn interleave(&mut self, tokens: usize) {
        let (tile, words) = (tokens * self.groups, self.groups * STRIDE);
        self.wide.resize(self.rows() / tokens * tokens * words, 0);
        for (wide, rows) in self.wide.chunks_exact_mut(tokens * words).zip(self.words.chunks_exact(tile)) {
            for (token, row) in rows.chunks_exact(self.groups).enumerate() {
                for (step, word) in row.as_flattened().iter().enumerate() {
                    wide[step * tokens + token] = *word;
                }
            }
        }
    }

    /// How many tokens it holds.
    pub fn rows(&self) -> usize {
        self.scales.len()
    }
}
