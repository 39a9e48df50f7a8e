//! Drawing a token from logits, as `nutshell/infer/sampling.py` describes it.

use std::cmp::Ordering;

use super::math::exp;

/// How one row's token is drawn.
#[derive(Clone, Copy, Debug)]
pub struct Draw {
    /// Above 0.
    pub temperature: f32,
    /// Draw among this many; 0 is off.
    pub top_k: usize,
    /// Draw among the likeliest that reach this probability; 1 is off.
    pub top_p: f64,
    /// Draw among those at least this likely relative to the likeliest; 0 is off.
    pub min_p: f64,
    /// Uniform in 0..1: where the cumulative distribution is inverted.
    pub uniform: f64,
}

/// Draws from finite logits (-infinity is impossible): the token's place.
pub fn draw(logits: &[f32], draw: &Draw) -> usize {
    let most = highest(logits);
    let weight =
        |logit: f32| f64::from(exp((logit - most) / draw.temperature)) * f64::from(u8::from(logit > f32::NEG_INFINITY));
    let count = if draw.top_k > 0 { draw.top_k.min(logits.len()) } else { logits.len() };
    if draw.top_k == 0 && draw.top_p >= 1.0 && draw.min_p <= 0.0 {
        let weights: Vec<f64> = logits.iter().map(|&logit| weight(logit)).collect();
        return invert(&weights, draw.uniform);
    }
    let order = |a: &u32, b: &u32| -> Ordering {
        logits[*b as usize].total_cmp(&logits[*a as usize]).then(a.cmp(b)) // likeliest first, then the lower id
    };
    let mut ids: Vec<u32> = (0..logits.len() as u32).collect();
    if count < ids.len() {
        ids.select_nth_unstable_by(count - 1, order);
        ids.truncate(count);
    }
    ids.sort_unstable_by(order);
    let mut weights: Vec<f64> = ids.iter().map(|&id| weight(logits[id as usize])).collect();
    let reached = draw.top_p * weights.iter().sum::<f64>();
    let mut before = 0.0;
    for (place, weight) in weights.iter_mut().enumerate() {
        let kept = place == 0 || (*weight >= draw.min_p && (draw.top_p >= 1.0 || before < reached));
        before += *weight;
        *weight = if kept { *weight } else { 0.0 };
    }
    ids[invert(&weights, draw.uniform)] as usize
}

/// The first place at which the running sum passes `uniform` of the whole.
fn invert(weights: &[f64], uniform: f64) -> usize {
    let target = uniform.min(1.0 - 1e-7) * weights.iter().sum::<f64>();
    let mut sum = 0.0;
    let passed = weights.iter().position(|weight| {
        sum += weight;
        sum > target
    });
    passed.unwrap_or(weights.len() - 1)
}

/// The highest logit.
pub fn highest(logits: &[f32]) -> f32 {
    let (chunks, rest) = logits.as_chunks::<16>();
    let mut most = [f32::NEG_INFINITY; 16];
    for chunk in chunks {
        for i in 0..16 {
            most[i] = if chunk[i] > most[i] { chunk[i] } else { most[i] };
        }
    }
    most.iter().chain(rest).fold(f32::NEG_INFINITY, |most, &x| if x > most { x } else { most })
}
