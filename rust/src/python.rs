//! The binding: `nutshell.tokenizer._bpe`. It converts and releases the GIL, nothing else.

use std::path::PathBuf;

use pyo3::exceptions::{PyKeyboardInterrupt, PyOSError, PyValueError};
use pyo3::ffi;
use pyo3::prelude::*;
use pyo3::pybacked::PyBackedStr;
use pyo3::sync::PyOnceLock;
use pyo3::types::{PyByteArray, PyBytes, PyInt, PyList};
use rayon::prelude::*;

use crate::{Definition, Error, Splitter};

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

/// A tokenizer that encodes and decodes.
#[pyclass(frozen)]
struct Encoder {
    inner: crate::Encoder,
    /// What it was made of, without the tokens: those are in `inner`.
    definition: Definition,
    /// The ids as Python integers, made once: filling a list then makes no object per token.
    integers: PyOnceLock<Vec<Py<PyInt>>>,
}

impl Encoder {
    fn open(py: Python<'_>, mut definition: Definition) -> PyResult<Self> {
        let inner = py.detach(|| crate::Encoder::open(&definition))?;
        definition.tokens = Vec::new();
        Ok(Encoder { inner, definition, integers: PyOnceLock::new() })
    }

    fn integers(&self, py: Python<'_>) -> PyResult<&Vec<Py<PyInt>>> {
        self.integers.get_or_try_init(py, || {
            (0..self.inner.size()).map(|id| Ok(id.into_pyobject(py)?.unbind())).collect::<PyResult<_>>()
        })
    }
}

/// Ids from a list, or from any other sequence of integers.
fn ids_of(ids: &Bound<'_, PyAny>) -> PyResult<Vec<u32>> {
    let Ok(list) = ids.cast::<PyList>() else { return ids.extract() };
    let mut found = Vec::with_capacity(list.len());
    for index in 0..list.len() {
        // SAFETY: PyList_GetItem checks the index and lends the item, which stays alive while the list holds it;
        // PyLong_AsUnsignedLong runs no Python code on an integer and refuses everything else, null included. It is
        // twice as quick as extracting each item, and all that decoding waits for.
        let id = unsafe { ffi::PyLong_AsUnsignedLong(ffi::PyList_GetItem(list.as_ptr(), index as isize)) };
        match u32::try_from(id) {
            Ok(id) => found.push(id),
            Err(_) => {
                PyErr::take(list.py()); // the general way raises its own, or takes a NumPy integer
                found.push(list.get_item(index)?.extract()?);
            }
        }
    }
    Ok(found)
}

#[pymethods]
impl Encoder {
    /// Bytes are the ids 0 to 255, `merges[i]` makes 256 + i, and the special tokens follow.
    #[new]
    #[pyo3(signature = (merges, pattern, special))]
    fn new(py: Python<'_>, merges: Vec<(u32, u32)>, pattern: &str, special: Vec<String>) -> PyResult<Self> {
        let mut definition = Definition::of_merges(pattern, &merges)?;
        definition.add_special(special);
        Self::open(py, definition)
    }

    /// Opens the content of a file; `source` names it in errors.
    #[staticmethod]
    #[pyo3(signature = (content, source, pattern=None))]
    fn parse(py: Python<'_>, content: &[u8], source: &str, pattern: Option<&str>) -> PyResult<Self> {
        Self::open(py, py.detach(|| crate::formats::parse(content, source, pattern))?)
    }

    /// The same tokenizer with further special tokens at the end; those that it has stay as they are.
    fn with_special(&self, py: Python<'_>, names: Vec<String>) -> PyResult<Self> {
        let mut definition = self.definition.clone();
        for id in 0..self.inner.size() as u32 {
            definition.tokens.push(self.inner.token(id)?.to_vec());
        }
        definition.add_special(names);
        Self::open(py, definition)
    }

    /// The pattern as a regex.
    #[getter]
    fn pattern(&self) -> &str {
        self.inner.pattern()
    }

    /// Names and ids of the special tokens.
    #[getter]
    fn special(&self) -> Vec<(String, u32)> {
        self.definition.special.clone()
    }

    /// Pairs of ids that merge, highest priority first.
    #[getter]
    fn merges(&self) -> Vec<(u32, u32)> {
        self.definition.merges.iter().map(|merge| (merge.left, merge.right)).collect()
    }

    /// Whether a piece that is a token is taken whole before any merge.
    #[getter]
    fn whole_first(&self) -> bool {
        self.definition.whole_first
    }

    /// Whether text is to be in the form NFC.
    #[getter]
    fn nfc(&self) -> bool {
        self.definition.nfc
    }

    /// Number of ids.
    fn __len__(&self) -> usize {
        self.inner.size()
    }

    /// Ids of a text.
    fn encode<'py>(&self, py: Python<'py>, text: PyBackedStr) -> PyResult<Bound<'py, PyList>> {
        let ids = py.detach(|| self.inner.encode(&text))?;
        let integers = self.integers(py)?;
        PyList::new(py, ids.iter().map(|&id| integers[id as usize].bind(py)))
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
        let pool = crate::pool(threads);
        let batch = py.detach(|| self.inner.encode_batch(&texts, &pool))?;
        let total: usize = batch.parts.iter().map(Vec::len).sum();
        let ids = PyByteArray::new_with(py, total * 4, |buffer| {
            let mut rest = buffer;
            let mut places = Vec::with_capacity(batch.parts.len());
            for part in &batch.parts {
                let (now, later) = rest.split_at_mut(part.len() * 4);
                places.push((now, part));
                rest = later;
            }
            py.detach(|| pool.install(|| places.into_par_iter().for_each(|(place, part)| write(place, part))));
            Ok(())
        })?;
        let offsets: Vec<u8> = batch.offsets.iter().flat_map(|offset| offset.to_le_bytes()).collect();
        Ok((ids, PyByteArray::new(py, &offsets)))
    }

    /// The bytes of ids.
    fn decode_bytes<'py>(&self, ids: &Bound<'py, PyAny>) -> PyResult<Bound<'py, PyBytes>> {
        Ok(PyBytes::new(ids.py(), &self.inner.decode(&ids_of(ids)?)?))
    }

    /// The bytes of ids given as those of a little-endian uint32 array.
    fn decode_bytes_array<'py>(&self, py: Python<'py>, ids: &[u8]) -> PyResult<Bound<'py, PyBytes>> {
        Ok(PyBytes::new(py, &self.array_bytes(py, ids)?))
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

impl Encoder {
    fn array_bytes(&self, py: Python<'_>, ids: &[u8]) -> PyResult<Vec<u8>> {
        let words = ids.chunks_exact(4).map(|word| u32::from_le_bytes([word[0], word[1], word[2], word[3]]));
        let words: Vec<u32> = words.collect();
        Ok(py.detach(|| self.inner.decode(&words))?)
    }
}

/// Writes ids as little-endian bytes.
fn write(place: &mut [u8], ids: &[u32]) {
    for (bytes, id) in place.chunks_exact_mut(4).zip(ids) {
        bytes.copy_from_slice(&id.to_le_bytes());
    }
}

#[pymodule]
fn _bpe(module: &Bound<'_, PyModule>) -> PyResult<()> {
    module.add("PATTERN_NAMES", crate::split::NAMES.to_vec())?;
    module.add_class::<Counter>()?;
    module.add_class::<Encoder>()?;
    module.add_class::<crate::decode::python::Decoder>()?;
    module.add_function(wrap_pyfunction!(crate::decode::python::draw, module)?)?;
    module.add_function(wrap_pyfunction!(crate::decode::python::instructions, module)?)
}
