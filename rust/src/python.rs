//! The binding: `nutshell.tokenizer._bpe`. It converts and releases the GIL, nothing else.

use std::path::PathBuf;

use pyo3::exceptions::{PyKeyboardInterrupt, PyOSError, PyValueError};
use pyo3::prelude::*;
use pyo3::pybacked::PyBackedStr;
use pyo3::types::{PyByteArray, PyBytes, PyInt, PyList};

use crate::{Error, Splitter};

impl From<Error> for PyErr {
    fn from(error: Error) -> PyErr {
        let message = error.to_string();
        match error {
            Error::File { .. } => PyOSError::new_err(message),
            Error::Stopped => PyKeyboardInterrupt::new_err(message),
            _ => PyValueError::new_err(message),
        }
    }
}

/// Runs `progress(done)` if there is one, and looks for Ctrl-C. Keeps the first exception in
/// `raised` and returns whether to go on.
fn tick(progress: Option<&Py<PyAny>>, done: usize, raised: &mut Option<PyErr>) -> bool {
    Python::attach(|py| {
        let outcome = py.check_signals().and_then(|()| match progress {
            Some(progress) => progress.call1(py, (done,)).map(|_| ()),
            None => Ok(()),
        });
        outcome.map_err(|error| *raised = Some(error)).is_ok()
    })
}

/// Counts the pieces of texts and files, then learns merges from the counts.
#[pyclass(frozen)]
struct Counter {
    inner: crate::Counter,
}

#[pymethods]
impl Counter {
    #[new]
    #[pyo3(signature = (pattern, threads=0))]
    fn new(pattern: &str, threads: usize) -> PyResult<Self> {
        Ok(Counter { inner: crate::Counter::new(Splitter::new(pattern)?, crate::pool(threads)) })
    }

    /// Counts the pieces of each text.
    fn add(&self, py: Python<'_>, texts: Vec<PyBackedStr>) -> PyResult<()> {
        Ok(py.detach(|| self.inner.add(&texts))?)
    }

    /// Counts the pieces of each row of an Arrow column: the bytes of all rows, and where each starts and
    /// the last one ends, as an int64 array. `name` and the number of the first row are for messages.
    fn add_column(&self, py: Python<'_>, name: &str, first: usize, data: &[u8], offsets: &[u8]) -> PyResult<()> {
        let offset = |bytes: &[u8]| i64::from_le_bytes(bytes.try_into().expect("8 bytes")) as usize;
        Ok(py.detach(|| {
            let offsets: Vec<usize> = offsets.chunks_exact(8).map(offset).collect();
            self.inner.add_column(name, first, data, &offsets)
        })?)
    }

    /// Counts the pieces of a UTF-8 file taken as one text.
    #[pyo3(signature = (path, progress=None))]
    fn add_file(&self, py: Python<'_>, path: PathBuf, progress: Option<Py<PyAny>>) -> PyResult<()> {
        let mut raised = None;
        let outcome = py.detach(|| self.inner.add_file(&path, |done| tick(progress.as_ref(), done, &mut raised)));
        raised.map_or_else(|| Ok(outcome?), Err)
    }

    /// Number of different pieces.
    fn __len__(&self) -> usize {
        self.inner.len()
    }

    /// Learns up to `merges` merges; the counter is empty afterwards.
    #[pyo3(signature = (merges, progress=None))]
    fn train(&self, py: Python<'_>, merges: usize, progress: Option<Py<PyAny>>) -> PyResult<Vec<(u32, u32)>> {
        let mut raised = None;
        let outcome = py.detach(|| {
            let trainer = crate::train::Trainer::new(&self.inner.take())?;
            trainer.learn(merges, |done| tick(progress.as_ref(), done, &mut raised))
        });
        raised.map_or_else(|| Ok(outcome?), Err)
    }
}

/// A vocabulary that encodes and decodes; `silent` ids after it decode to nothing.
#[pyclass(frozen)]
struct Encoder {
    inner: crate::Encoder,
    silent: usize,
    /// The ids as Python integers, made once: filling a list then makes no object per token.
    integers: Vec<Py<PyInt>>,
}

#[pymethods]
impl Encoder {
    #[new]
    #[pyo3(signature = (merges, pattern, silent=0))]
    fn new(py: Python<'_>, merges: Vec<(u32, u32)>, pattern: &str, silent: usize) -> PyResult<Self> {
        let splitter = Splitter::new(pattern)?;
        let inner = py.detach(|| crate::Encoder::new(splitter, &merges))?;
        let integers = (0..inner.size()).map(|id| Ok(id.into_pyobject(py)?.unbind())).collect::<PyResult<_>>()?;
        Ok(Encoder { inner, silent, integers })
    }

    /// The pattern as a regex.
    #[getter]
    fn pattern(&self) -> &str {
        self.inner.pattern()
    }

    /// Number of ids, without the silent ones.
    fn __len__(&self) -> usize {
        self.inner.size()
    }

    /// Ids of a text.
    fn encode<'py>(&self, py: Python<'py>, text: PyBackedStr) -> PyResult<Bound<'py, PyList>> {
        let ids = py.detach(|| self.inner.encode(&text))?;
        PyList::new(py, ids.iter().map(|&id| self.integers[id as usize].bind(py)))
    }

    /// Ids of many texts as the bytes of a uint32 array, and their N + 1 offsets as those of an int64
    /// array, both little-endian.
    #[pyo3(signature = (texts, threads=0))]
    fn encode_batch<'py>(
        &self,
        py: Python<'py>,
        texts: Vec<PyBackedStr>,
        threads: usize,
    ) -> PyResult<(Bound<'py, PyByteArray>, Bound<'py, PyByteArray>)> {
        let batch = py.detach(|| self.inner.encode_batch(&texts, &crate::pool(threads)))?;
        let total: usize = batch.parts.iter().map(Vec::len).sum();
        let ids = PyByteArray::new_with(py, total * 4, |buffer| {
            let mut rest = buffer;
            for part in &batch.parts {
                let (now, later) = rest.split_at_mut(part.len() * 4);
                for (bytes, id) in now.chunks_exact_mut(4).zip(part) {
                    bytes.copy_from_slice(&id.to_le_bytes());
                }
                rest = later;
            }
            Ok(())
        })?;
        let offsets: Vec<u8> = batch.offsets.iter().flat_map(|offset| offset.to_le_bytes()).collect();
        Ok((ids, PyByteArray::new(py, &offsets)))
    }

    /// The bytes of ids.
    fn decode<'py>(&self, py: Python<'py>, ids: Vec<u32>) -> PyResult<Bound<'py, PyBytes>> {
        let bytes = py.detach(|| self.inner.decode(ids.into_iter(), self.silent))?;
        Ok(PyBytes::new(py, &bytes))
    }

    /// The bytes of ids given as those of a little-endian uint32 array.
    fn decode_array<'py>(&self, py: Python<'py>, ids: &[u8]) -> PyResult<Bound<'py, PyBytes>> {
        let words = ids.chunks_exact(4).map(|word| u32::from_le_bytes([word[0], word[1], word[2], word[3]]));
        let bytes = py.detach(|| self.inner.decode(words, self.silent))?;
        Ok(PyBytes::new(py, &bytes))
    }

    /// The bytes of every token, in the order of the ids.
    fn tokens<'py>(&self, py: Python<'py>) -> PyResult<Vec<Bound<'py, PyBytes>>> {
        (0..self.inner.size() as u32).map(|id| Ok(PyBytes::new(py, self.inner.token(id)?))).collect()
    }

    /// The pieces that the pattern cuts a text into.
    fn split(&self, text: &str) -> PyResult<Vec<String>> {
        let mut pieces = Vec::new();
        self.inner.pieces(text, |piece| pieces.push(String::from_utf8_lossy(piece).into_owned()))?;
        Ok(pieces)
    }
}

#[pymodule]
fn _bpe(module: &Bound<'_, PyModule>) -> PyResult<()> {
    module.add("PATTERN_NAMES", crate::split::NAMES.to_vec())?;
    module.add_class::<Counter>()?;
    module.add_class::<Encoder>()
}
