//! The binding: `nutshell.tokenizer._bpe.Decoder`. It converts and releases the GIL, nothing else.

use std::cell::RefCell;
use std::sync::{Mutex, PoisonError};

use pyo3::exceptions::PyValueError;
use pyo3::prelude::*;

use super::{Cache, Element, Kind, Level, Sequence, Shape, Table, Wanted};

fn refused(message: String) -> PyErr {
    PyValueError::new_err(message)
}

/// A tensor of the caller's: where its first number is, and how many there are.
type Lent = (usize, usize);

/// A model that decodes into a KV cache of the caller's.
#[pyclass(frozen)]
pub struct Decoder {
    inner: Mutex<super::Decoder>,
    keys: Lent,
    values: Lent,
    logits: Lent,
    blocks: usize,
    bf16: bool,
}

#[pymethods]
impl Decoder {
    /// `shape` is a dictionary of `Shape`'s fields; `weight(name)` gives a weight as its parts, one below the other, each (address,
    /// numbers, whether they are bf16, else fp32). The caller keeps the parts until the next is asked for, embeddings, which are one
    /// part, as long as the decoder.
    ///
    /// `keys` (layers, blocks, kv_heads, head_dim, 16), `values` (layers, blocks, kv_heads, 16, head_dim), of bf16 or fp32, and `logits` (sequences, stride), fp32,
    /// are (address, numbers) of contiguous tensors. The caller keeps all of these alive and in place as long as the decoder, and
    /// touches none of them during a step.
    #[new]
    #[pyo3(signature = (shape, weight, *, kind, threads, keys, values, blocks, bf16, logits))]
    #[allow(clippy::too_many_arguments)]
    fn new(
        shape: Shape,
        weight: &Bound<'_, PyAny>,
        kind: &str,
        threads: usize,
        keys: Lent,
        values: Lent,
        blocks: usize,
        bf16: bool,
        logits: Lent,
    ) -> PyResult<Decoder> {
        let raised = RefCell::new(None);
        let parts = |name: &str| -> Result<Vec<Table>, String> {
            let found = weight.call1((name,)).and_then(|found| found.extract::<Vec<(usize, usize, bool)>>());
            let found = found.map_err(|error| {
                raised.replace(Some(error));
                name.to_owned()
            })?;
            // SAFETY: the caller lends that many numbers, until the next weight is asked for or as long as the decoder lives.
            Ok(found.into_iter().map(|part| unsafe { Table::new(part.0 as *const u8, part.1, part.2) }).collect())
        };
        let take = |name: &str| Ok(parts(name)?.iter().flat_map(Table::all).collect());
        let look_up = |name: &str| parts(name)?.pop().ok_or_else(|| format!("{name} has no part; accepted: one."));
        let built = super::Decoder::new(shape, kind_of(kind)?, Level::Avx512, threads, take, look_up);
        let inner = Mutex::new(built.map_err(|message| raised.take().unwrap_or_else(|| refused(message)))?);
        Ok(Decoder { inner, keys, values, logits, blocks, bf16 })
    }

    /// Runs the next tokens of sequences, each (blocks, position of the first, token before it or -1, token ids): the logits
    /// after the last token of each go into the rows of `logits`. Or, with `every`, those after every token into the rows of that
    /// tensor, which the caller keeps alive and leaves alone for the call. Returns the likeliest token of each row, -1 where a
    /// logit is NaN or infinite.
    #[pyo3(signature = (sequences, every=None))]
    fn step(
        &self,
        py: Python<'_>,
        sequences: Vec<(Vec<u32>, usize, i64, Vec<u32>)>,
        every: Option<Lent>,
    ) -> PyResult<Vec<i64>> {
        let sequence =
            |(blocks, start, previous, ids)| Sequence { blocks, start, previous: u32::try_from(previous).ok(), ids };
        let sequences: Vec<Sequence> = sequences.into_iter().map(sequence).collect();
        py.detach(|| if self.bf16 { self.run::<u16>(&sequences, every) } else { self.run::<f32>(&sequences, every) })
            .map_err(refused)
    }

    /// Bytes of weights that every step reads.
    #[getter]
    fn bytes(&self) -> usize {
        self.inner.lock().unwrap_or_else(PoisonError::into_inner).bytes()
    }
}

impl Decoder {
    fn run<E: Element>(&self, sequences: &[Sequence], every: Option<Lent>) -> Result<Vec<i64>, String> {
        let mut inner = self.inner.lock().unwrap_or_else(PoisonError::into_inner);
        let wanted = if every.is_some() { Wanted::Every } else { Wanted::Last };
        // SAFETY: `new` and `step` ask their callers for tensors that outlive this and that nobody touches during a step; the lock
        // keeps a second step out.
        let (keys, values, logits) =
            unsafe { (slice::<E>(self.keys), slice::<E>(self.values), slice::<f32>(every.unwrap_or(self.logits))) };
        inner.step(sequences, wanted, &mut Cache::new(keys, values, self.blocks), logits)
    }
}

/// # Safety
/// A tensor of that many T begins at the address, and nothing else refers to it while the slice is alive.
unsafe fn slice<'a, T>((address, numbers): Lent) -> &'a mut [T] {
    // SAFETY: the caller's promise.
    unsafe { std::slice::from_raw_parts_mut(address as *mut T, numbers) }
}

fn kind_of(name: &str) -> PyResult<Kind> {
    match name {
        "float32" => Ok(Kind::F32),
        "bfloat16" => Ok(Kind::Bf16),
        "int8" => Ok(Kind::Int8),
        _ => Err(refused(format!("kind is {name:?}; accepted: float32, bfloat16, int8."))),
    }
}

/// Name of the instructions that weights of this kind are multiplied with on this processor.
#[pyfunction]
pub fn instructions(kind: &str) -> PyResult<&'static str> {
    Ok(super::instructions(kind_of(kind)?))
}

/// Draws a token of each row of logits: `vocab_size` fp32 numbers each, `stride` apart (0: all draw from one), in a tensor given
/// as (address, numbers). Each row comes with (temperature, top_k, top_p, min_p, uniform). The caller keeps the tensor alive and as it is.
#[pyfunction]
pub fn draw(
    logits: Lent,
    stride: usize,
    vocab_size: usize,
    rows: Vec<(f32, usize, f64, f64, f64)>,
) -> PyResult<Vec<usize>> {
    let needed = rows.len().saturating_sub(1) * stride + vocab_size;
    if vocab_size == 0 || logits.1 < needed {
        let (count, numbers) = (rows.len(), logits.1);
        return Err(refused(format!(
            "{count} rows of {vocab_size} logits, {stride} apart, in {numbers}; accepted: what fits."
        )));
    }
    // SAFETY: the caller lends that many numbers for the call.
    let logits: &[f32] = unsafe { slice(logits) };
    let one = |(row, (temperature, top_k, top_p, min_p, uniform))| {
        super::draw(&logits[row * stride..][..vocab_size], &super::Draw { temperature, top_k, top_p, min_p, uniform })
    };
    Ok(rows.into_iter().enumerate().map(one).collect())
}
