//! The step against a plain loop in f64 is in Python's tests, which have the model in torch; here are the parts.

use super::attention::{self, Blocks, Query, BLOCK};
use super::dot::{kernel, Level};
use super::math::{exp, tanh};
use super::matrix::{lines_of, Input, Kind, Lines, Matrix, PANEL};
use super::output::{Output, Store};
use super::{Cache, Decoder, Sequence, Shape, Table, Wanted};

const LEVELS: [Level; 3] = [Level::Plain, Level::Avx2, Level::Avx512];
const KINDS: [Kind; 3] = [Kind::F32, Kind::Bf16, Kind::Int8];

/// Numbers between -1 and 1 that follow from a seed.
fn noise(count: usize, mut seed: u64) -> Vec<f32> {
    let mut next = || {
        seed = seed.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        (seed >> 40) as f32 / (1 << 23) as f32 - 1.0
    };
    (0..count).map(|_| next()).collect()
}

fn product(kind: Kind, level: Level, outputs: usize, inputs: usize, tokens: usize) -> Vec<Vec<f32>> {
    let mut lines = Lines::with_room(lines_of(kind, outputs, inputs));
    let matrix = Matrix::pack(kind, outputs, inputs, &noise(outputs * inputs, 1), &mut lines);
    let rows = noise(tokens * inputs, 2);
    let mut input = Input::default();
    input.encode(kind, inputs, rows.chunks_exact(inputs));
    let stride = matrix.panels() * PANEL;
    let (mut found, rows) = (vec![f32::NAN; tokens * stride], (0..tokens).collect::<Vec<usize>>());
    // SAFETY: the numbers are there, and `kernel` has found the instructions.
    unsafe {
        let output = Output::new((found.as_mut_ptr(), found.len()), stride, &rows, Store::Set);
        kernel(kind, level).0(&matrix, &lines, 0..matrix.pairs(), &input, &output);
    }
    found.chunks_exact(stride).map(<[f32]>::to_vec).collect()
}

#[test]
fn products_are_those_of_f64_in_every_instruction_set_and_shape() {
    for (outputs, inputs) in [(16, 16), (1, 1), (40, 37), (17, 64), (33, 130), (100, 600)] {
        let (weights, rows) = (noise(outputs * inputs, 1), noise(29 * inputs, 2));
        for (kind, tolerance) in [(Kind::F32, 1e-6), (Kind::Bf16, 4e-3), (Kind::Int8, 8e-3)] {
            for level in LEVELS {
                for tokens in [1, 2, 3, 5, 6, 7, 12, 14, 29] {
                    let found = product(kind, level, outputs, inputs, tokens);
                    for (token, row) in rows.chunks_exact(inputs).take(tokens).enumerate() {
                        for (output, weight) in weights.chunks_exact(inputs).enumerate() {
                            let exact: f64 = row.iter().zip(weight).map(|(x, w)| f64::from(*x) * f64::from(*w)).sum();
                            let error = (f64::from(found[token][output]) - exact).abs();
                            assert!(
                                error < tolerance * (inputs as f64).sqrt().max(4.0),
                                "{kind:?} {level:?} {outputs}x{inputs} {tokens}: {error}"
                            );
                        }
                        assert!(found[token][outputs..].iter().all(|&padding| padding == 0.0));
                    }
                }
            }
        }
    }
}

#[test]
fn a_token_gets_the_same_bits_alone_and_among_others() {
    for kind in KINDS {
        for level in LEVELS {
            for (outputs, inputs) in [(48, 75), (120, 1100)] {
                let together = product(kind, level, outputs, inputs, 26);
                for tokens in 1..26 {
                    let found = product(kind, level, outputs, inputs, tokens);
                    assert_eq!(found, together[..tokens], "{kind:?} {level:?} {outputs} {tokens}");
                }
            }
        }
    }
}

#[test]
fn int8_sums_are_exact_in_every_instruction_set() {
    assert_eq!(product(Kind::Int8, Level::Avx512, 48, 300, 7), product(Kind::Int8, Level::Plain, 48, 300, 7));
    assert_eq!(product(Kind::Int8, Level::Avx2, 48, 300, 7), product(Kind::Int8, Level::Plain, 48, 300, 7));
}

#[test]
fn exp_and_tanh_are_those_of_the_standard_library() {
    for step in -8600..8800 {
        let x = step as f32 / 100.0;
        let exact = f64::from(x).exp();
        assert!((f64::from(exp(x)) / exact - 1.0).abs() < 3e-7, "exp({x})");
        assert!((f64::from(tanh(x)) - f64::from(x).tanh()).abs() < 5e-7, "tanh({x})");
    }
    assert!(exp(f32::NAN).is_nan() && tanh(f32::NAN).is_nan());
    assert_eq!((exp(f32::NEG_INFINITY) < 1e-37, tanh(1e9), tanh(-1e9)), (true, 1.0, -1.0));
}

fn shape() -> Shape {
    Shape {
        vocab_size: 50,
        width: 40,
        heads: 4,
        kv_heads: 2,
        head_dim: 10,
        mlp_width: 70,
        context: 200,
        windows: vec![20, 200, 200],
        bos_id: 3,
        softcap: 15.0,
        normed_embedding: true,
        gated_mlp: false,
        smear: true,
        backout: true,
        value_embeddings: vec![true, false, true],
    }
}

fn decoder(kind: Kind, level: Level, threads: usize) -> Decoder {
    let sizes = |name: &str| match name.rsplit('.').next().expect("a name") {
        "qkv" => 80 * 40,
        "out" => 40 * 40,
        "up" | "down" => 70 * 40,
        "value_embedding" => 50 * 20,
        "value_gate" => 24,
        "scales" => 2,
        "query_norm" | "key_norm" => 10,
        "embedding" | "head" => 50 * 40,
        "smear_gate" => 24,
        "smear_lambda" | "backout" => 1,
        "cos" | "sin" => 200 * 10,
        _ => 40,
    };
    let numbers = |name: &str| Ok(noise(sizes(name), name.len() as u64));
    Decoder::new(shape(), kind, level, threads, numbers, |name| Ok(table(noise(sizes(name), name.len() as u64))))
        .expect("a decoder")
}

fn table(numbers: Vec<f32>) -> Table {
    let numbers = numbers.leak();
    // SAFETY: they are never freed.
    unsafe { Table::new(numbers.as_ptr().cast(), numbers.len(), false) }
}

/// Logits of sequences in a cache of six rows of 13 blocks, after what earlier steps fed.
fn run(decoder: &mut Decoder, steps: &[Vec<Sequence>]) -> Vec<Vec<f32>> {
    let numbers = 3 * 78 * 2 * BLOCK * 10;
    let (mut keys, mut values) = (vec![0f32; numbers], vec![0f32; numbers]);
    let mut logits = vec![0f32; 6 * decoder.logits_stride()];
    for step in steps {
        let mut cache = Cache::new(&mut keys, &mut values, 78);
        decoder.step(step, Wanted::Last, &mut cache, &mut logits).expect("a step");
    }
    let count = steps.last().map_or(0, Vec::len);
    logits.chunks_exact(decoder.logits_stride()).take(count).map(|row| row[..50].to_vec()).collect()
}

fn sequence(row: usize, start: usize, ids: &[u32]) -> Sequence {
    let previous = if start > 0 { Some((start as u32 - 1) * 7 % 50) } else { None }; // ids are multiples of 7
    let blocks = (0..13).map(|place| ((place * 7 + row) % 13 * 6 + row) as u32).collect(); // rows of scattered blocks
    Sequence { blocks, start, previous, ids: ids.to_vec() }
}

#[test]
fn rows_threads_and_chunks_do_not_change_a_bit() {
    let ids: Vec<u32> = (0..150).map(|at| at * 7 % 50).collect();
    for (kind, level) in KINDS.into_iter().flat_map(|kind| LEVELS.map(|level| (kind, level))) {
        let run = |threads, steps: &[Vec<Sequence>]| run(&mut decoder(kind, level, threads), steps);
        let alone = run(1, &[vec![sequence(0, 0, &ids)]]);
        let crowd = vec![sequence(5, 0, &ids[..40]), sequence(2, 0, &ids), sequence(1, 0, &ids[..1])];
        for threads in [1, 2, 3] {
            assert_eq!(run(threads, std::slice::from_ref(&crowd))[1], alone[0], "{kind:?} {level:?} {threads}");
        }
        let parts = [vec![sequence(4, 0, &ids[..33])], vec![sequence(4, 33, &ids[33..])]];
        assert_eq!(run(1, &parts), alone, "{kind:?} {level:?}");
    }
}

#[test]
fn blocks_may_be_shared_and_lie_anywhere() {
    let ids: Vec<u32> = (0..50).map(|at| at * 7 % 50).collect();
    let mut decoder = decoder(Kind::Bf16, Level::Avx512, 2);
    let first = sequence(0, 0, &ids);
    let alone = run(&mut decoder, std::slice::from_ref(&vec![first.clone()]));
    let mut second = sequence(1, 32, &ids[32..]); // reads two blocks of the first
    second.blocks[..2].copy_from_slice(&first.blocks[..2]);
    let mut third = sequence(2, 48, &ids[48..]);
    third.blocks[..3].copy_from_slice(&first.blocks[..3]);
    assert_eq!(run(&mut decoder, &[vec![first], vec![second, third]]), [alone[0].clone(), alone[0].clone()]);
}

#[test]
fn logits_after_every_token_are_those_after_the_last_of_shorter_texts() {
    let ids: Vec<u32> = (0..140).map(|at| at * 7 % 50).collect();
    for kind in KINDS {
        let mut decoder = decoder(kind, Level::Avx512, 2);
        let stride = decoder.logits_stride();
        let (mut keys, mut values) = (vec![0f32; 3 * 78 * 2 * BLOCK * 10], vec![0f32; 3 * 78 * 2 * BLOCK * 10]);
        let mut logits = vec![0f32; 141 * stride];
        let texts = [sequence(3, 0, &ids[..1]), sequence(0, 0, &ids)];
        let mut cache = Cache::new(&mut keys, &mut values, 78);
        let best = decoder.step(&texts, Wanted::Every, &mut cache, &mut logits).expect("a step");
        assert_eq!((best.len(), best[0]), (141, best[1]));
        for length in [1, 17, 128, 129, 140] {
            let alone = run(&mut decoder, &[vec![sequence(0, 0, &ids[..length])]]);
            assert_eq!(alone[0], logits[length * stride..][..50], "{kind:?} {length}");
        }
    }
}

#[test]
fn what_has_no_room_is_refused() {
    let mut decoder = decoder(Kind::F32, Level::Plain, 1);
    let numbers = 3 * 6 * 2 * BLOCK * 10;
    let (mut keys, mut values) = (vec![0f32; numbers], vec![0f32; numbers]);
    let mut logits = vec![0f32; 2 * decoder.logits_stride()];
    let of = |blocks: &[u32], start: usize, ids: &[u32]| Sequence {
        blocks: blocks.to_vec(),
        start,
        previous: None,
        ids: ids.to_vec(),
    };
    let mut refused = |sequences: &[Sequence], blocks: usize| {
        let mut cache = Cache::new(&mut keys, &mut values, blocks);
        decoder.step(sequences, Wanted::Last, &mut cache, &mut logits).expect_err("refused")
    };
    assert!(refused(&[of(&[0, 1], 31, &[1, 2])], 6).contains("tokens 31..33"));
    assert!(refused(&[of(&[0, 6], 0, &[1])], 6).contains("blocks below 6"));
    assert!(refused(&[of(&[0], 0, &[50])], 6).contains("token 50"));
    assert!(refused(&[of(&[0], 0, &[])], 6).contains("at least one"));
    assert!(refused(&[of(&[0], 0, &[1]), of(&[0], 1, &[1])], 6).contains("written twice"));
    assert!(refused(&[of(&[0], 0, &[1]), of(&[0, 1], 16, &[1])], 6).contains("written for another"));
    assert!(refused(&[of(&[0], 0, &[1])], 5).contains("the cache has"));
    assert!(refused(&[of(&[0], 0, &[1]), of(&[1], 0, &[1]), of(&[2], 0, &[1])], 6).contains("3 rows"));
    let wrong = Decoder::new(shape(), Kind::F32, Level::Plain, 1, |_| Ok(vec![0.0]), |_| Ok(table(vec![0.0])));
    assert!(wrong.err().is_some_and(|message| message.contains("has 1 numbers")));
}

/// Attention of queries at the last positions, each over at most `window` tokens, as one tile after the other.
fn attended(level: Level, width: usize, tokens: usize, count: usize, window: usize) -> Vec<Vec<f32>> {
    let (keys, values) = (noise(tokens * width, 2), noise(tokens * width, 3));
    let places = tokens.div_ceil(BLOCK);
    let (mut key_blocks, mut value_blocks) = (noise(places * BLOCK * width, 4), noise(places * BLOCK * width, 5));
    for token in 0..tokens {
        let start = (places - 1 - token / BLOCK) * BLOCK * width; // the last block first
        for column in 0..width {
            key_blocks[start + column * BLOCK + token % BLOCK] = keys[token * width + column];
            value_blocks[start + token % BLOCK * width + column] = values[token * width + column];
        }
    }
    let blocks: Vec<u32> = (0..places as u32).rev().collect();
    let (vectors, mut outputs) = (noise(tokens * width, 1), vec![vec![0.0; width]; count]);
    let ends = tokens - count + 1..;
    let queries = vectors.chunks_exact(width).skip(tokens - count).zip(&mut outputs).zip(ends);
    let mut queries: Vec<Query> = queries
        .map(|((query, output), end)| Query { query, output, sees: usize::saturating_sub(end, window)..end })
        .collect();
    // SAFETY: the blocks are as it says; `kernel` has found the instructions.
    unsafe {
        let blocks = Blocks::new(key_blocks.as_ptr(), value_blocks.as_ptr(), &blocks, BLOCK * width, width);
        attention::kernel::<f32>(level)(&mut queries, &blocks, &mut Vec::new());
    }
    outputs
}

#[test]
fn attention_is_that_of_f64_in_every_instruction_set() {
    for width in [2, 16, 24, 64, 144] {
        for (tokens, count, window) in [(1, 1, 9), (5, 1, 5), (16, 9, 16), (33, 33, 100), (150, 7, 20), (150, 1, 150)] {
            let (vectors, keys, values) =
                (noise(tokens * width, 1), noise(tokens * width, 2), noise(tokens * width, 3));
            for level in LEVELS {
                let found = attended(level, width, tokens, count, window);
                for (index, found) in found.iter().enumerate() {
                    let end = tokens - count + index + 1;
                    let sees = end.saturating_sub(window)..end;
                    let query = &vectors[(end - 1) * width..end * width];
                    let dot = |key: &[f32]| -> f64 {
                        key.iter().zip(query).map(|(k, q)| f64::from(*k) * f64::from(*q)).sum()
                    };
                    let weight = |t: usize| (dot(&keys[t * width..][..width]) / (width as f64).sqrt()).exp();
                    let weights: Vec<f64> = sees.clone().map(weight).collect();
                    let total: f64 = weights.iter().sum();
                    for (column, &found) in found.iter().enumerate() {
                        let value = |t: usize| f64::from(values[t * width + column]);
                        let exact: f64 = sees.clone().zip(&weights).map(|(t, weight)| weight / total * value(t)).sum();
                        assert!((f64::from(found) - exact).abs() < 2e-6, "{level:?} {width} {tokens} {index} {column}");
                    }
                }
            }
        }
    }
}

#[test]
fn a_query_gets_the_same_bits_alone_and_in_a_tile() {
    for level in LEVELS {
        for window in [5, 20, 200] {
            let together = attended(level, 72, 150, 23, window);
            for count in 1..23 {
                assert_eq!(
                    attended(level, 72, 150, count, window),
                    together[23 - count..],
                    "{level:?} {window} {count}"
                );
            }
        }
    }
}
