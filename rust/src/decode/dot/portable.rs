//! Products without special instructions, which show what the others compute.

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
    fn finish(sum: Self::Sum, _: i32) -> [f32; PANEL] {
        sum.map(|sum| sum as f32)
    }
}
