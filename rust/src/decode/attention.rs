//! Attention of one query over the keys and values of its row, fp32 or bf16 in the cache.

use super::dot::Level;
use super::math::{exp, sum, total};
use super::model::Element;

/// Attends with a query (D) over keys and values (T, D): writes the mean of the values into `output` (D). `scores` (T) is
/// scratch.
pub type Attend<E> = unsafe fn(&[f32], &[E], &[E], &mut [f32], &mut [f32]);

/// The loops below become vector instructions by themselves; `FMA` says whether the processor multiplies and adds in one.
#[inline(always)]
fn attend<E: Element, const FMA: bool>(
    query: &[f32],
    keys: &[E],
    values: &[E],
    scores: &mut [f32],
    output: &mut [f32],
) {
    let width = query.len();
    let scale = 1.0 / (width as f32).sqrt();
    let (query_chunks, query_rest) = query.as_chunks::<16>();
    for (score, key) in scores.iter_mut().zip(keys.chunks_exact(width)) {
        let (key_chunks, key_rest) = key.as_chunks::<16>();
        let (mut lanes, mut rest) = ([0f32; 16], 0f32);
        for (q, k) in query_chunks.iter().zip(key_chunks) {
            for i in 0..16 {
                lanes[i] = multiply_add::<FMA>(q[i], k[i].float(), lanes[i]);
            }
        }
        for (q, k) in query_rest.iter().zip(key_rest) {
            rest = multiply_add::<FMA>(*q, k.float(), rest);
        }
        *score = (total(lanes) + rest) * scale;
    }
    let mut most = [f32::NEG_INFINITY; 16];
    let (chunks, rest) = scores.as_chunks::<16>();
    for chunk in chunks {
        for (most, &score) in most.iter_mut().zip(chunk) {
            *most = if score > *most { score } else { *most };
        }
    }
    let most = most.iter().chain(rest).fold(f32::NEG_INFINITY, |most, &score| most.max(score));
    for score in scores.iter_mut() {
        *score = exp(*score - most);
    }
    let inverse = 1.0 / sum(scores, |x| x);
    let mut start = 0;
    while start + 64 <= width {
        average::<E, FMA, 64>(scores, values, width, start, inverse, output);
        start += 64;
    }
    while start + 16 <= width {
        average::<E, FMA, 16>(scores, values, width, start, inverse, output);
        start += 16;
    }
    for column in start..width {
        average::<E, FMA, 1>(scores, values, width, column, inverse, output);
    }
}

/// Columns start..start + N of the mean of the values, kept in registers.
#[inline(always)]
fn average<E: Element, const FMA: bool, const N: usize>(
    scores: &[f32],
    values: &[E],
    width: usize,
    start: usize,
    inverse: f32,
    output: &mut [f32],
) {
    let mut sums = [0f32; N];
    for (&score, value) in scores.iter().zip(values.chunks_exact(width)) {
        let value: &[E; N] = value[start..start + N].try_into().expect("N columns");
        for i in 0..N {
            sums[i] = multiply_add::<FMA>(score, value[i].float(), sums[i]);
        }
    }
    for (output, sum) in output[start..start + N].iter_mut().zip(sums) {
        *output = sum * inverse;
    }
}

#[inline(always)]
fn multiply_add<const FMA: bool>(a: f32, b: f32, c: f32) -> f32 {
    if FMA {
        a.mul_add(b, c)
    } else {
        a * b + c
    }
}

macro_rules! entry {
    ($name:ident, $features:literal) => {
        #[cfg(target_arch = "x86_64")]
        #[target_feature(enable = $features)]
        fn $name<E: Element>(query: &[f32], keys: &[E], values: &[E], scores: &mut [f32], output: &mut [f32]) {
            attend::<E, true>(query, keys, values, scores, output);
        }
    };
}

entry!(avx512, "avx512f");
entry!(avx2, "avx2,fma");

/// The fastest way that this processor has, not above `level`.
pub fn kernel<E: Element>(level: Level) -> Attend<E> {
    #[cfg(target_arch = "x86_64")]
    {
        if level >= Level::Avx512 && is_x86_feature_detected!("avx512f") {
            return avx512::<E>;
        }
        if level >= Level::Avx2 && is_x86_feature_detected!("avx2") && is_x86_feature_detected!("fma") {
            return avx2::<E>;
        }
    }
    let _ = level;
    attend::<E, false>
}
