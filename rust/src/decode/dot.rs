//! Products of packed matrices with a few tokens, in the instructions that the processor has.
//!
//! A tile is one panel (16 outputs) times a few tokens. Each word of the inputs is one step: of every output the word is
//! multiplied with the token's word and added to a sum. Sums run in a fixed number of chains, whatever the number of tokens:
//! with few tokens side by side (latency of an addition is four cycles), with many one after the other, so that as many tokens
//! share a load of the weights. The bits are the same.

use std::ops::Range;

use super::matrix::{Input, Kind, Line, Lines, Matrix, PANEL, STRIDE};

/// Multiplies panels with all tokens of an input: `write(token, panel, outputs)`.
pub type Product = unsafe fn(&Matrix, &Lines, Range<usize>, &mut Input, &mut dyn FnMut(usize, usize, &[f32; PANEL]));

/// One instruction set's way to multiply words of one kind.
trait Dot {
    type Sum: Copy;
    type Weights: Copy;
    fn zero() -> Self::Sum;
    fn load(line: &Line) -> Self::Weights;
    /// sum + weights * word, for each output.
    fn step(sum: Self::Sum, weights: Self::Weights, word: u32) -> Self::Sum;
    fn add(a: Self::Sum, b: Self::Sum) -> Self::Sum;
    /// `inputs` is the sum of the token's int8 numbers.
    fn finish(sum: Self::Sum, inputs: i32) -> [f32; PANEL];
}

#[inline(always)]
fn tile<D: Dot, const CHAINS: usize, const TOKENS: usize>(
    lines: &[Line],
    scales: &[f32; PANEL],
    input: &Input,
    first: usize,
    write: &mut dyn FnMut(usize, &[f32; PANEL]),
) {
    let groups = lines.as_chunks::<STRIDE>().0;
    let mut words: [&[[u32; STRIDE]]; TOKENS] = [&[]; TOKENS];
    for (token, words) in words.iter_mut().enumerate() {
        *words = &input.words[(first + token) * groups.len()..][..groups.len()];
    }
    let mut sums = [[D::zero(); TOKENS]; CHAINS];
    for (group, lines) in groups.iter().enumerate() {
        for (step, line) in lines.iter().enumerate() {
            let weights = D::load(line);
            for token in 0..TOKENS {
                let sum = &mut sums[step % CHAINS][token];
                *sum = D::step(*sum, weights, words[token][group][step]);
            }
        }
    }
    for token in 0..TOKENS {
        let mut sum = sums[0][token];
        for chain in &sums[1..] {
            sum = D::add(sum, chain[token]);
        }
        finish::<D>(sum, scales, input, first + token, write);
    }
}

/// The same with one chain after the other.
#[inline(always)]
fn wide_tile<D: Dot, const CHAINS: usize, const TOKENS: usize>(
    lines: &[Line],
    scales: &[f32; PANEL],
    input: &Input,
    first: usize,
    write: &mut dyn FnMut(usize, &[f32; PANEL]),
) {
    let groups = lines.as_chunks::<STRIDE>().0;
    let words = input.wide[first * lines.len()..][..TOKENS * lines.len()].as_chunks::<TOKENS>().0;
    let words = words.as_chunks::<STRIDE>().0;
    let mut totals = [D::zero(); TOKENS];
    for chain in 0..CHAINS {
        let mut sums = [D::zero(); TOKENS];
        for (lines, words) in groups.iter().zip(words) {
            for step in (chain..STRIDE).step_by(CHAINS) {
                let weights = D::load(&lines[step]);
                for token in 0..TOKENS {
                    sums[token] = D::step(sums[token], weights, words[step][token]);
                }
            }
        }
        for (total, sum) in totals.iter_mut().zip(sums) {
            *total = if chain == 0 { sum } else { D::add(*total, sum) };
        }
    }
    for (token, total) in totals.into_iter().enumerate() {
        finish::<D>(total, scales, input, first + token, write);
    }
}

#[inline(always)]
fn finish<D: Dot>(
    sum: D::Sum,
    scales: &[f32; PANEL],
    input: &Input,
    token: usize,
    write: &mut dyn FnMut(usize, &[f32; PANEL]),
) {
    let mut outputs = D::finish(sum, input.sums[token]);
    for (output, scale) in outputs.iter_mut().zip(scales) {
        *output *= scale * input.scales[token];
    }
    write(token, &outputs);
}

/// `MOST` and `WIDE` tokens are as many as leave all sums of a tile and of a wide tile in registers.
#[inline(always)]
fn product<D: Dot, const CHAINS: usize, const MOST: usize, const WIDE: usize>(
    matrix: &Matrix,
    lines: &Lines,
    panels: Range<usize>,
    input: &mut Input,
    write: &mut dyn FnMut(usize, usize, &[f32; PANEL]),
) {
    input.interleave(WIDE);
    let wide = input.rows() / WIDE * WIDE;
    let rest = input.rows() - wide;
    let tiles = rest.div_ceil(MOST);
    for panel in panels {
        let (lines, scales) = matrix.panel(lines, panel);
        let write = &mut |token: usize, outputs: &[f32; PANEL]| write(token, panel, outputs);
        for first in (0..wide).step_by(WIDE) {
            wide_tile::<D, CHAINS, WIDE>(lines, scales, input, first, write);
        }
        for index in 0..tiles {
            let (first, end) = (wide + rest * index / tiles, wide + rest * (index + 1) / tiles);
            match end - first {
                1 => tile::<D, CHAINS, 1>(lines, scales, input, first, write),
                2 if MOST > 1 => tile::<D, CHAINS, 2>(lines, scales, input, first, write),
                3 if MOST > 2 => tile::<D, CHAINS, 3>(lines, scales, input, first, write),
                4 if MOST > 3 => tile::<D, CHAINS, 4>(lines, scales, input, first, write),
                5 if MOST > 4 => tile::<D, CHAINS, 5>(lines, scales, input, first, write),
                6 if MOST > 5 => tile::<D, CHAINS, 6>(lines, scales, input, first, write),
                _ => unreachable!("a tile has 1 to 6 tokens"),
            }
        }
    }
}

/// The way without special instructions, which shows what the others compute.
mod portable {
    use super::{Dot, Line, PANEL};

    fn step(sum: &mut [f32; PANEL], weights: &[u32; PANEL], dot: impl Fn(u32) -> f32) {
        for (sum, &weight) in sum.iter_mut().zip(weights) {
            *sum += dot(weight);
        }
    }

    fn halves(word: u32) -> (f32, f32) {
        (f32::from_bits(word << 16), f32::from_bits(word & 0xFFFF_0000))
    }

    macro_rules! float_dot {
        ($name:ident, |$weight:ident, $word:ident| $dot:expr) => {
            pub struct $name;
            impl Dot for $name {
                type Sum = [f32; PANEL];
                type Weights = [u32; PANEL];
                #[inline(always)]
                fn zero() -> Self::Sum {
                    [0.0; PANEL]
                }
                #[inline(always)]
                fn load(line: &Line) -> Self::Weights {
                    line.0
                }
                #[inline(always)]
                fn step(mut sum: Self::Sum, weights: Self::Weights, $word: u32) -> Self::Sum {
                    step(&mut sum, &weights, |$weight| $dot);
                    sum
                }
                #[inline(always)]
                fn add(a: Self::Sum, b: Self::Sum) -> Self::Sum {
                    std::array::from_fn(|i| a[i] + b[i])
                }
                #[inline(always)]
                fn finish(sum: Self::Sum, _: i32) -> [f32; PANEL] {
                    sum
                }
            }
        };
    }

    float_dot!(F32, |weight, word| f32::from_bits(weight) * f32::from_bits(word));
    float_dot!(Bf16, |weight, word| {
        let ((a, b), (c, d)) = (halves(weight), halves(word));
        a * c + b * d
    });

    pub struct Int8;
    impl Dot for Int8 {
        type Sum = [i32; PANEL];
        type Weights = [u32; PANEL];
        #[inline(always)]
        fn zero() -> Self::Sum {
            [0; PANEL]
        }
        #[inline(always)]
        fn load(line: &Line) -> Self::Weights {
            line.0
        }
        #[inline(always)]
        fn step(mut sum: Self::Sum, weights: Self::Weights, word: u32) -> Self::Sum {
            let word = word.to_le_bytes();
            for (sum, weight) in sum.iter_mut().zip(weights) {
                for (a, b) in weight.to_le_bytes().into_iter().zip(word) {
                    *sum += i32::from(a as i8) * i32::from(b as i8);
                }
            }
            sum
        }
        #[inline(always)]
        fn add(a: Self::Sum, b: Self::Sum) -> Self::Sum {
            std::array::from_fn(|i| a[i] + b[i])
        }
        #[inline(always)]
        fn finish(sum: Self::Sum, _: i32) -> [f32; PANEL] {
            sum.map(|sum| sum as f32)
        }
    }
}

/// 256 bits: half a line at a time.
#[cfg(target_arch = "x86_64")]
mod avx2 {
    use super::{Dot, Line, PANEL};
    use std::arch::x86_64::*;

    // SAFETY of this module: its functions are inlined into kernels that are entered only after AVX2 and FMA were found
    // (`kernel`). Loads and stores stay within the line or array that is borrowed.

    #[inline(always)]
    fn load(line: &Line) -> [__m256i; 2] {
        let start = line.0.as_ptr().cast();
        // SAFETY: above; a line is 64 bytes.
        unsafe { [_mm256_load_si256(start), _mm256_load_si256(start.add(1))] }
    }

    #[inline(always)]
    fn store(halves: [__m256; 2]) -> [f32; PANEL] {
        let mut outputs = [0.0; PANEL];
        let start = outputs.as_mut_ptr();
        // SAFETY: above; 16 floats.
        unsafe {
            _mm256_storeu_ps(start, halves[0]);
            _mm256_storeu_ps(start.add(8), halves[1]);
        }
        outputs
    }

    macro_rules! avx2_dot {
        ($name:ident, $sum:ty, $zero:expr, $step:expr, $add:expr, $float:expr) => {
            pub struct $name;
            impl Dot for $name {
                type Sum = [$sum; 2];
                type Weights = [__m256i; 2];
                #[inline(always)]
                fn zero() -> Self::Sum {
                    // SAFETY: above.
                    unsafe { [$zero; 2] }
                }
                #[inline(always)]
                fn load(line: &Line) -> Self::Weights {
                    load(line)
                }
                #[inline(always)]
                fn step(sum: Self::Sum, weights: Self::Weights, word: u32) -> Self::Sum {
                    // SAFETY: above.
                    unsafe {
                        let word = _mm256_set1_epi32(word as i32);
                        [$step(sum[0], weights[0], word), $step(sum[1], weights[1], word)]
                    }
                }
                #[inline(always)]
                fn add(a: Self::Sum, b: Self::Sum) -> Self::Sum {
                    // SAFETY: above.
                    unsafe { [$add(a[0], b[0]), $add(a[1], b[1])] }
                }
                #[inline(always)]
                fn finish(sum: Self::Sum, _: i32) -> [f32; PANEL] {
                    store([$float(sum[0]), $float(sum[1])])
                }
            }
        };
    }

    avx2_dot!(
        F32,
        __m256,
        _mm256_setzero_ps(),
        |sum, w, x| _mm256_fmadd_ps(_mm256_castsi256_ps(w), _mm256_castsi256_ps(x), sum),
        _mm256_add_ps,
        |sum| sum
    );

    /// bf16 is the upper half of fp32: a shift widens the lower number of a word, a mask the upper one.
    #[inline(always)]
    unsafe fn halves(words: __m256i) -> [__m256; 2] {
        // SAFETY: above.
        unsafe {
            let upper = _mm256_and_si256(words, _mm256_set1_epi32(0xFFFF_0000_u32 as i32));
            [_mm256_castsi256_ps(_mm256_slli_epi32(words, 16)), _mm256_castsi256_ps(upper)]
        }
    }

    avx2_dot!(
        Bf16,
        __m256,
        _mm256_setzero_ps(),
        |sum, w, x| {
            let ([a, b], [c, d]) = (halves(w), halves(x));
            _mm256_fmadd_ps(b, d, _mm256_fmadd_ps(a, c, sum))
        },
        _mm256_add_ps,
        |sum| sum
    );

    // `maddubs` multiplies unsigned by signed numbers: |x| by the weight with the sign of x. No pair of products saturates
    // 16 bits, because none of the numbers is -128.
    avx2_dot!(
        Int8,
        __m256i,
        _mm256_setzero_si256(),
        |sum, w, x| {
            let pairs = _mm256_maddubs_epi16(_mm256_abs_epi8(x), _mm256_sign_epi8(w, x));
            _mm256_add_epi32(sum, _mm256_madd_epi16(pairs, _mm256_set1_epi16(1)))
        },
        _mm256_add_epi32,
        // SAFETY: above.
        |sum| unsafe { _mm256_cvtepi32_ps(sum) }
    );
}

/// 512 bits: a line at a time.
#[cfg(target_arch = "x86_64")]
mod avx512 {
    use super::{Dot, Line, PANEL};
    use std::arch::x86_64::*;

    // SAFETY of this module: its functions are inlined into kernels that are entered only after AVX-512 F and the instruction
    // they use (BF16, VNNI) were found (`kernel`). Loads and stores stay within the line or array that is borrowed.

    macro_rules! avx512_dot {
        ($name:ident, $sum:ty, $zero:expr, $step:expr, $add:expr, $float:expr) => {
            pub struct $name;
            impl Dot for $name {
                type Sum = $sum;
                type Weights = __m512i;
                #[inline(always)]
                fn zero() -> Self::Sum {
                    // SAFETY: above.
                    unsafe { $zero }
                }
                #[inline(always)]
                fn load(line: &Line) -> Self::Weights {
                    // SAFETY: above; a line is 64 bytes and aligned to as many.
                    unsafe { _mm512_load_si512(line.0.as_ptr().cast()) }
                }
                #[inline(always)]
                fn step(sum: Self::Sum, weights: Self::Weights, word: u32) -> Self::Sum {
                    // SAFETY: above.
                    unsafe { $step(sum, weights, _mm512_set1_epi32(word as i32)) }
                }
                #[inline(always)]
                fn add(a: Self::Sum, b: Self::Sum) -> Self::Sum {
                    // SAFETY: above.
                    unsafe { $add(a, b) }
                }
                #[inline(always)]
                fn finish(sum: Self::Sum, inputs: i32) -> [f32; PANEL] {
                    let mut outputs = [0.0; PANEL];
                    // SAFETY: above; 16 floats.
                    unsafe { _mm512_storeu_ps(outputs.as_mut_ptr(), $float(sum, inputs)) };
                    outputs
                }
            }
        };
    }

    avx512_dot!(
        F32,
        __m512,
        _mm512_setzero_ps(),
        |sum, w, x| _mm512_fmadd_ps(_mm512_castsi512_ps(w), _mm512_castsi512_ps(x), sum),
        _mm512_add_ps,
        |sum, _| sum
    );

    /// AVX512-BF16: both products of a word in one instruction.
    #[inline(always)]
    unsafe fn pairs(sum: __m512, w: __m512i, x: __m512i) -> __m512 {
        // SAFETY: above; both types are 512 bits without a rule about their content.
        unsafe {
            _mm512_dpbf16_ps(
                sum,
                std::mem::transmute::<__m512i, __m512bh>(w),
                std::mem::transmute::<__m512i, __m512bh>(x),
            )
        }
    }

    avx512_dot!(Bf16, __m512, _mm512_setzero_ps(), |sum, w, x| pairs(sum, w, x), _mm512_add_ps, |sum, _| sum);

    // VNNI multiplies unsigned by signed numbers: the weights are raised by 128 (their upper bit turned), and 128 times the
    // sum of the inputs is taken off again.
    avx512_dot!(
        Int8,
        __m512i,
        _mm512_setzero_si512(),
        |sum, w, x| _mm512_dpbusd_epi32(sum, _mm512_xor_si512(w, _mm512_set1_epi8(-128)), x),
        _mm512_add_epi32,
        |sum, inputs: i32| _mm512_cvtepi32_ps(_mm512_sub_epi32(sum, _mm512_set1_epi32(128 * inputs)))
    );
}

/// A kernel with its instructions enabled: without the attribute intrinsics are calls, ten times slower.
macro_rules! entry {
    ($name:ident, $features:literal, $dot:ty, $chains:literal, $most:literal, $wide:literal) => {
        #[cfg(target_arch = "x86_64")]
        #[target_feature(enable = $features)]
        fn $name(
            matrix: &Matrix,
            lines: &Lines,
            panels: Range<usize>,
            input: &mut Input,
            write: &mut dyn FnMut(usize, usize, &[f32; PANEL]),
        ) {
            product::<$dot, $chains, $most, $wide>(matrix, lines, panels, input, write);
        }
    };
}

entry!(avx512_f32, "avx512f", avx512::F32, 4, 6, 12);
entry!(avx512_bf16, "avx512f,avx512bf16", avx512::Bf16, 4, 6, 12);
entry!(avx512_int8, "avx512f,avx512bw,avx512vnni", avx512::Int8, 4, 6, 12);
entry!(avx2_f32, "avx2,fma", avx2::F32, 2, 3, 6);
entry!(avx2_bf16, "avx2,fma", avx2::Bf16, 2, 3, 4);
entry!(avx2_int8, "avx2,fma", avx2::Int8, 2, 3, 4);

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
        Kind::F32 => (product::<portable::F32, 1, 2, 4>, "plain"),
        Kind::Bf16 => (product::<portable::Bf16, 1, 2, 4>, "plain"),
        Kind::Int8 => (product::<portable::Int8, 1, 2, 4>, "plain"),
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
