//! Small functions of numbers and rows.

/// The nearest bf16, ties to even; NaN stays NaN.
#[inline(always)]
pub fn bf16(x: f32) -> u16 {
    let bits = x.to_bits();
    if x.is_nan() {
        0x7FC0
    } else {
        ((bits + 0x7FFF + (bits >> 16 & 1)) >> 16) as u16
    }
}

/// e^x to 2 units in the last place, without a branch, so that loops over it become vector instructions. Polynomial of
/// Cephes' `expf` (netlib.org/cephes). NaN stays NaN; below -87 it is about 1e-38, never a denormal.
#[inline(always)]
pub fn exp(x: f32) -> f32 {
    let x = if x > 88.0 { 88.0 } else { x };
    let x = if x < -87.0 { -87.0 } else { x };
    // Adding and subtracting 1.5 * 2^23 rounds to whole numbers, and leaves them in the low bits meanwhile.
    let shifted = x * std::f32::consts::LOG2_E + 12_582_912.0;
    let n = shifted - 12_582_912.0;
    let r = x - n * 0.693_359_4 + n * 2.121_944_4e-4;
    let mut p = 1.987_569_1e-4;
    for c in [1.398_2e-3, 8.333_452e-3, 4.166_579_6e-2, 1.666_666_5e-1, 0.5] {
        p = p * r + c;
    }
    let power = (shifted.to_bits().wrapping_add(127)) << 23;
    (p * r * r + r + 1.0) * f32::from_bits(power)
}

/// 1 / (1 + e^-x)
#[inline(always)]
pub fn sigmoid(x: f32) -> f32 {
    1.0 / (1.0 + exp(-x))
}

/// tanh(x) by the exponential: absolute error about 1e-7.
#[inline(always)]
pub fn tanh(x: f32) -> f32 {
    let e = exp(2.0 * x);
    (e - 1.0) / (e + 1.0)
}

/// Sum of `term` over a row in 16 partial sums: the same order for every row of this length.
#[inline(always)]
pub fn sum(row: &[f32], term: impl Fn(f32) -> f32) -> f32 {
    let (chunks, rest) = row.as_chunks::<16>();
    let (mut lanes, mut last) = ([0f32; 16], 0f32);
    for chunk in chunks {
        for i in 0..16 {
            lanes[i] += term(chunk[i]);
        }
    }
    for &x in rest {
        last += term(x);
    }
    total(lanes) + last
}

/// Sum of 16 numbers in a tree. (Functions of the standard library that take closures are not inlined into code of more
/// instructions: where it matters there are plain loops.)
#[inline(always)]
pub fn total(lanes: [f32; 16]) -> f32 {
    let (mut eight, mut four) = ([0f32; 8], [0f32; 4]);
    for i in 0..8 {
        eight[i] = lanes[i] + lanes[i + 8];
    }
    for i in 0..4 {
        four[i] = eight[i] + eight[i + 4];
    }
    (four[0] + four[2]) + (four[1] + four[3])
}

/// What a row is multiplied by to have a root mean square of 1 (arXiv 1910.07467; eps 1e-6).
#[inline(always)]
pub fn inverse_rms(row: &[f32]) -> f32 {
    1.0 / (sum(row, |x| x * x) / row.len() as f32 + 1e-6).sqrt()
}

/// The largest absolute value of a row; NaN where one is NaN or infinite.
pub fn largest(row: &[f32]) -> f32 {
    // Without the sign, bits are in the order of the numbers, and NaN is above infinity.
    let most = row.iter().fold(0, |most, x| (x.to_bits() & 0x7FFF_FFFF).max(most));
    if most < f32::INFINITY.to_bits() {
        f32::from_bits(most)
    } else {
        f32::NAN
    }
}

/// The whole number next to x in two's complement, for |x| < 2^22.
#[inline(always)]
pub fn rounded(x: f32) -> u32 {
    (x + 12_582_912.0).to_bits() // 1.5 * 2^23: numbers of this size have no fraction
}
