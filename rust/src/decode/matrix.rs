//! Weights and activations as 32-bit words: one fp32, two bf16 or four int8 numbers that a product takes at once.

use super::math::{bf16, largest, rounded};

/// Outputs of a panel: what one 512-bit register holds.
pub const PANEL: usize = 16;
/// Panels whose lines lie side by side, so that a token alone reads memory in order while four sums run at once.
pub const GROUP: usize = 4;
/// Panels that products take at least; threads share matrices by pairs.
pub const PAIR: usize = 2;
/// Words of a token that lie side by side: a tile of tokens finds the words of all at fixed distances from the first.
pub const WORDS: usize = 256;

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
        inputs.div_ceil(self.per_word())
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

/// A weight matrix (outputs, inputs) in panels of 16 outputs. Four panels make a group: of the first word of each input their
/// lines, then of the second, so that a product reads memory in order and needs no sum across a register. What is missing from
/// the last group is zeros. Its numbers are among the `Lines` of its model.
pub struct Matrix {
    /// How it is stored.
    pub kind: Kind,
    /// Columns of the weight.
    pub inputs: usize,
    /// Where its lines begin.
    start: usize,
    /// What its outputs are multiplied by.
    pub(super) scales: Vec<[f32; PANEL]>,
}

impl Matrix {
    /// Packs weights (outputs, inputs), row by row, behind the matrices before.
    pub fn pack(kind: Kind, outputs: usize, inputs: usize, weights: &[f32], lines: &mut Lines) -> Matrix {
        assert_eq!(weights.len(), outputs * inputs);
        let (panels, words) = (outputs.div_ceil(PANEL), kind.words(inputs));
        let (start, lines) = lines.add(lines_of(kind, outputs, inputs));
        let mut scales = vec![[1.0; PANEL]; panels];
        let mut encoded = vec![0; words];
        for (output, row) in weights.chunks_exact(inputs).enumerate() {
            let (panel, lane) = (output / PANEL, output % PANEL);
            let (scale, inverse) = scale_of(kind, row);
            scales[panel][lane] = scale;
            encode(kind, row, inverse, &mut encoded);
            let group = &mut lines[panel / GROUP * GROUP * words..][..GROUP * words];
            for (lines, word) in group.chunks_exact_mut(GROUP).zip(&encoded) {
                lines[panel % GROUP].0[lane] = *word;
            }
        }
        Matrix { kind, inputs, start, scales }
    }

    /// How many panels it has.
    #[inline(always)]
    pub fn panels(&self) -> usize {
        self.scales.len()
    }

    /// How many pairs of panels it has; the last may be of one.
    pub fn pairs(&self) -> usize {
        self.panels().div_ceil(PAIR)
    }

    /// The lines of the group that a panel is in: (words, GROUP).
    #[inline(always)]
    pub fn group<'a>(&self, lines: &'a Lines, panel: usize) -> &'a [[Line; GROUP]] {
        let words = self.kind.words(self.inputs);
        lines.0[self.start + panel / GROUP * GROUP * words..][..GROUP * words].as_chunks().0
    }

    /// Bytes that a product reads.
    pub fn bytes(&self) -> usize {
        self.panels() * self.kind.words(self.inputs) * size_of::<Line>()
    }
}

/// Lines of a matrix.
pub fn lines_of(kind: Kind, outputs: usize, inputs: usize) -> usize {
    outputs.div_ceil(GROUP * PANEL) * GROUP * kind.words(inputs)
}

/// What numbers are to be multiplied by after a product, and before they are encoded.
fn scale_of(kind: Kind, numbers: &[f32]) -> (f32, f32) {
    if kind != Kind::Int8 {
        return (1.0, 1.0);
    }
    let scale = largest(numbers) / 127.0; // NaN and infinity become no numbers: they come out through the scale
    (scale, if scale > 0.0 { 1.0 / scale } else { 0.0 })
}

/// Writes numbers as words; what the last word has room for beyond them is zero.
fn encode(kind: Kind, numbers: &[f32], inverse: f32, words: &mut [u32]) {
    match kind {
        Kind::F32 => {
            for (word, number) in words.iter_mut().zip(numbers) {
                *word = number.to_bits();
            }
        }
        Kind::Bf16 => {
            let (pairs, rest) = numbers.as_chunks::<2>();
            for (word, pair) in words.iter_mut().zip(pairs) {
                *word = u32::from(bf16(pair[0])) | u32::from(bf16(pair[1])) << 16;
            }
            if let [last] = rest {
                words[pairs.len()] = u32::from(bf16(*last));
            }
        }
        Kind::Int8 => {
            let byte = |number: f32| rounded(number * inverse) & 0xFF;
            let (fours, rest) = numbers.as_chunks::<4>();
            for (word, four) in words.iter_mut().zip(fours) {
                *word = byte(four[0]) | byte(four[1]) << 8 | byte(four[2]) << 16 | byte(four[3]) << 24;
            }
            if !rest.is_empty() {
                let bytes = rest.iter().enumerate().map(|(place, &number)| byte(number) << (8 * place));
                words[fours.len()] = bytes.sum();
            }
        }
    }
}

/// Activations of several tokens, encoded for products with matrices of one kind.
#[derive(Default)]
pub struct Input {
    /// (blocks of words, tokens)
    pub(super) words: Vec<[u32; WORDS]>,
    pub(super) scales: Vec<f32>,
    /// Of the int8 numbers of each token.
    pub(super) sums: Vec<i32>,
}

impl Input {
    /// Takes rows of `inputs` numbers each.
    pub fn encode<'a>(&mut self, kind: Kind, inputs: usize, rows: impl ExactSizeIterator<Item = &'a [f32]>) {
        let (tokens, numbers) = (rows.len(), WORDS * kind.per_word());
        self.words.resize(inputs.div_ceil(numbers) * tokens, [0; WORDS]);
        self.scales.clear();
        self.sums.clear();
        for (token, row) in rows.enumerate() {
            let (scale, inverse) = scale_of(kind, row);
            let mut sum = 0;
            for (block, part) in row.chunks(numbers).enumerate() {
                let words = &mut self.words[block * tokens + token][..kind.words(part.len())];
                encode(kind, part, inverse, words);
                if kind == Kind::Int8 {
                    let of_word = |word: &u32| word.to_le_bytes().map(|byte| i32::from(byte as i8)).iter().sum::<i32>();
                    sum += words.iter().map(of_word).sum::<i32>();
                }
            }
            self.scales.push(scale);
            self.sums.push(sum);
        }
    }

    /// How many tokens it holds.
    #[inline(always)]
    pub fn rows(&self) -> usize {
        self.scales.len()
    }

    /// Blocks of words that each token has.
    #[inline(always)]
    pub fn blocks(&self) -> usize {
        self.words.len() / self.rows().max(1)
    }
}
