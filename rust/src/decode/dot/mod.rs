//! Products of packed matrices with a few tokens, in the instructions that the processor has.
//!
//! A tile is a few panels (of 16 outputs) times a few tokens. Each word of the inputs is one step: of every output the word is
//! multiplied with the token's word and added to one sum, word after word. So the bits do not depend on how many panels and
//! tokens share a tile; the speed does: an addition takes four cycles, so at least four sums run side by side, and each load of a
//! weight serves all tokens of the tile, each load of a token's word all panels.

#[cfg(target_arch = "x86_64")]
mod avx2;
#[cfg(target_arch = "x86_64")]
mod avx512;
mod portable;

use std::ops::Range;

use super::matrix::{Input, Kind, Line, Lines, Matrix, GROUP, PAIR, PANEL, WORDS};
use super::output::Output;
use super::team::share;

/// Multiplies pairs of panels with all tokens of an input.
pub type Product = unsafe fn(&Matrix, &Lines, Range<usize>, &Input, &Output<'_>);

/// One instruction set's way to multiply words of one kind.
trait Dot {
    type Sum: Copy;
    type Weights: Copy;
    fn zero() -> Self::Sum;
    fn load(line: &Line) -> Self::Weights;
    /// sum + weights * word, for each output.
    fn step(sum: Self::Sum, weights: Self::Weights, word: u32) -> Self::Sum;
    /// `inputs` is the sum of the token's int8 numbers.
    fn finish(sum: Self::Sum, inputs: i32) -> [f32; PANEL];
}

/// So many panels from `panel` on times so many tokens from `token` on.
#[inline(always)]
fn tile<D: Dot, const PANELS: usize, const TOKENS: usize>(
    (matrix, lines, panel): (&Matrix, &Lines, usize),
    (input, token): (&Input, usize),
    output: &Output<'_>,
) {
    let (group, first) = (matrix.group(lines, panel), panel % GROUP);
    let mut sums = [[D::zero(); PANELS]; TOKENS];
    for block in 0..input.blocks() {
        let words = input.words[block * input.rows() + token..].first_chunk::<TOKENS>().expect("rows of the tile");
        let lines = &group[block * WORDS..];
        let lines = &lines[..lines.len().min(WORDS)];
        for step in 0..lines.len() {
            let lines = &lines[step][first..first + PANELS];
            for token in 0..TOKENS {
                for panel in 0..PANELS {
                    sums[token][panel] = D::step(sums[token][panel], D::load(&lines[panel]), words[token][step]);
                }
            }
        }
    }
    for (index, sums) in sums.into_iter().enumerate() {
        let token = token + index;
        for (sum, panel) in sums.into_iter().zip(panel..matrix.panels()) {
            let mut outputs = D::finish(sum, input.sums[token]);
            for (output, scale) in outputs.iter_mut().zip(&matrix.scales[panel]) {
                *output *= scale * input.scales[token];
            }
            output.write(token, panel, outputs);
        }
    }
}

/// So many panels times all tokens, in tiles that leave their `SUMS` sums in registers.
#[inline(always)]
fn strip<D: Dot, const PANELS: usize, const SUMS: usize>(
    panels: (&Matrix, &Lines, usize),
    input: &Input,
    output: &Output<'_>,
) {
    let tiles = input.rows().div_ceil(SUMS / PANELS);
    for index in 0..tiles {
        let tokens = share(input.rows(), tiles, index);
        let words = (input, tokens.start);
        macro_rules! tile_of {
            ($($count:literal)*) => {
                match tokens.len() {
                    $($count if const { $count * PANELS <= SUMS } => tile::<D, PANELS, $count>(panels, words, output),)*
                    _ => unreachable!("a tile has 1 to 12 tokens"),
                }
            };
        }
        tile_of!(1 2 3 4 5 6 7 8 9 10 11 12);
    }
}

/// With up to `FEW` tokens tiles have whole groups of panels, which reads memory in order, with more of them `PANELS`, one or
/// two, so that more tokens share a load of the weights.
#[inline(always)]
fn product<D: Dot, const FEW: usize, const PANELS: usize, const SUMS: usize>(
    matrix: &Matrix,
    lines: &Lines,
    pairs: Range<usize>,
    input: &Input,
    output: &Output<'_>,
) {
    let (mut panel, end) = (pairs.start * PAIR, pairs.end * PAIR);
    while panel < end {
        if input.rows() <= FEW && panel.is_multiple_of(GROUP) && panel + GROUP <= end {
            strip::<D, GROUP, SUMS>((matrix, lines, panel), input, output);
            panel += GROUP;
        } else {
            strip::<D, PANELS, SUMS>((matrix, lines, panel), input, output);
            panel += PANELS;
        }
    }
}

/// A kernel with its instructions enabled: without the attribute intrinsics are calls, ten times slower.
macro_rules! entry {
    ($name:ident, $features:literal, $dot:ty, $few:literal, $panels:literal, $sums:literal) => {
        #[cfg(target_arch = "x86_64")]
        #[target_feature(enable = $features)]
        fn $name(matrix: &Matrix, lines: &Lines, pairs: Range<usize>, input: &Input, output: &Output<'_>) {
            product::<$dot, $few, $panels, $sums>(matrix, lines, pairs, input, output);
        }
    };
}

entry!(avx512_f32, "avx512f", avx512::F32, 32, 2, 24);
entry!(avx512_bf16, "avx512f,avx512bf16", avx512::Bf16, 32, 2, 24);
entry!(avx512_int8, "avx512f,avx512bw,avx512vnni", avx512::Int8, 32, 2, 24);
entry!(avx2_f32, "avx2,fma", avx2::F32, 12, 1, 6);
entry!(avx2_bf16, "avx2,fma", avx2::Bf16, 1, 1, 4);
entry!(avx2_int8, "avx2,fma", avx2::Int8, 12, 1, 4);

/// The fastest kernel that this processor has for matrices of this kind, not above `level`, and its name.
pub fn kernel(kind: Kind, level: Level) -> (Product, &'static str) {
    #[cfg(target_arch = "x86_64")]
    {
        if level >= Level::Avx512 && is_x86_feature_detected!("avx512f") {
            match kind {
                Kind::F32 => return (avx512_f32, "AVX-512"),
                Kind::Bf16 if is_x86_feature_detected!("avx512bf16") => return (avx512_bf16, "AVX512-BF16"),
                Kind::Int8 if is_x86_feature_detected!("avx512bw") && is_x86_feature_detected!("avx512vnni") => {
                    return (avx512_int8, "AVX512-VNNI");
                }
                _ => {}
            }
        }
        if level >= Level::Avx2 && is_x86_feature_detected!("avx2") && is_x86_feature_detected!("fma") {
            return match kind {
                Kind::F32 => (avx2_f32, "AVX2"),
                Kind::Bf16 => (avx2_bf16, "AVX2"),
                Kind::Int8 => (avx2_int8, "AVX2"),
            };
        }
    }
    let _ = level;
    match kind {
        Kind::F32 => (product::<portable::F32, 1, 1, 4>, "plain"),
        Kind::Bf16 => (product::<portable::Bf16, 1, 1, 4>, "plain"),
        Kind::Int8 => (product::<portable::Int8, 1, 1, 4>, "plain"),
    }
}

/// Which instructions may be used at most.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug)]
pub enum Level {
    /// What the compiler's target has.
    Plain,
    /// 256 bits.
    Avx2,
    /// 512 bits.
    Avx512,
}

/// Name of the instructions that products of this kind use on this processor.
pub fn instructions(kind: Kind) -> &'static str {
    kernel(kind, Level::Avx512).1
}
