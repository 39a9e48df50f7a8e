//! What can go wrong, each with the offending input.

use std::fmt;

/// Any failure of this crate. The fields are what its message says.
#[derive(Debug, Clone, PartialEq, Eq)]
#[allow(missing_docs)]
pub enum Error {
    /// A split pattern that is neither a known name nor a regex that compiles.
    Pattern { pattern: String, reason: String },
    /// A split pattern that gave up on a text, most often by backtracking too much.
    Split { pattern: String, offset: usize, reason: String },
    /// A byte that no token stands for.
    Byte { byte: u8 },
    /// A merge that doesn't fit the tokens, or that repeats an earlier one.
    Merge { index: usize, left: u32, right: u32 },
    /// Tokens of more bytes than any real vocabulary has.
    Tokens { bytes: usize },
    /// More tokens than the tables hold.
    Size { size: usize },
    /// Two tokens of the same bytes.
    Token { id: u32, other: u32 },
    /// An id that the vocabulary doesn't hold.
    Id { id: u32, size: usize },
    /// More text in one piece, or more unique text, than 32-bit positions reach.
    TooLong { what: &'static str, bytes: usize },
    /// A file that is not a tokenizer of a supported kind.
    Format { source: String, reason: String },
    /// A file that can't be read.
    File { path: String, reason: String },
    /// A file that isn't UTF-8 from this byte on.
    Encoding { path: String, offset: usize },
    /// The caller asked for the work to stop.
    Stopped,
}

impl fmt::Display for Error {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Error::Pattern { pattern, reason } => write!(
                f,
                "{pattern:?} is not a split pattern: it is none of the names {}, and as a regex: {reason}",
                crate::split::NAMES.join(", ")
            ),
            Error::Split { pattern, offset, reason } => {
                write!(f, "the split pattern {pattern:?} failed at byte {offset} of a text: {reason}")
            }
            Error::Merge { index, left, right } => write!(
                f,
                "merge {index} joins the ids {left} and {right}: both must be tokens, together they must be the bytes of \
                 the token that they make, and no pair or token may come twice"
            ),
            Error::Byte { byte } => write!(f, "no token stands for the byte {byte:#04x}: all 256 are needed"),
            Error::Tokens { bytes } => {
                let most = crate::definition::MAX_TOKEN_BYTES;
                write!(f, "all tokens together have {bytes} bytes; up to {most} are supported")
            }
            Error::Size { size } => {
                write!(f, "the vocabulary has {size} tokens; up to {} are supported", crate::hash::MAX_ID)
            }
            Error::Token { id, other } => {
                write!(f, "the tokens {other} and {id} have the same bytes; each token must be there once")
            }
            Error::Id { id, size } => write!(f, "id {id} is not in the vocabulary: accepted are 0 to {}", size - 1),
            Error::TooLong { what, bytes } => {
                write!(f, "{what} has {bytes} bytes; up to {} are supported", crate::MAX_BYTES)
            }
            Error::Format { source, reason } => write!(
                f,
                "{source}: {reason} (supported are tokenizer.json files of byte-level BPE and tiktoken's rank files)"
            ),
            Error::File { path, reason } => write!(f, "{path}: {reason}"),
            Error::Encoding { path, offset } => {
                write!(f, "{path} is not UTF-8: byte {offset} can't be decoded; convert the file to UTF-8")
            }
            Error::Stopped => write!(f, "stopped"),
        }
    }
}

impl std::error::Error for Error {}
