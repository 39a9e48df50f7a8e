//! Cutting text into pieces before BPE: hand-written scanners for the patterns in use, a regex
//! engine for every other. The tests prove the scanners equal to their regexes.

use crate::scan::{Gpt2, Gpt4, O200k, Scan};
use crate::unicode::Kinds;
use crate::Error;

/// The pattern of nanochat: GPT-4's, with numbers in runs of at most two digits.
pub const NANOCHAT: &str =
    r"'(?i:[sdmt]|ll|ve|re)|[^\r\n\p{L}\p{N}]?+\p{L}+|\p{N}{1,2}| ?[^\s\p{L}\p{N}]++[\r\n]*|\s*[\r\n]|\s+(?!\S)|\s+";
/// GPT-2's pattern.
pub const GPT2: &str = r"'s|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+";
/// GPT-4's pattern (cl100k_base), written so that every engine reads it alike: `\z` where tiktoken
/// has `$`, which Oniguruma takes for the end of a line.
pub const CL100K: &str = r"'(?i:[sdmt]|ll|ve|re)|[^\r\n\p{L}\p{N}]?+\p{L}++|\p{N}{1,3}| ?[^\s\p{L}\p{N}]++[\r\n]*+|\s++\z|\s*[\r\n]|\s+(?!\S)|\s";
/// GPT-4o's pattern (o200k_base).
pub const O200K: &str = r"[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]*[\p{Ll}\p{Lm}\p{Lo}\p{M}]+(?i:'s|'t|'re|'ve|'m|'ll|'d)?|[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]+[\p{Ll}\p{Lm}\p{Lo}\p{M}]*(?i:'s|'t|'re|'ve|'m|'ll|'d)?|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n/]*|\s*[\r\n]+|\s+(?!\S)|\s+";
/// Qwen2's pattern: single digits.
pub const QWEN2: &str =
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+";

/// GPT-2's pattern on texts that were cut at every digit before (SmolLM's, StarCoder's): spaces before a digit stay together,
/// since the text ended there.
pub(crate) const GPT2_SINGLE_DIGITS: &str =
    r"'s|'t|'re|'ve|'m|'ll|'d| ?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+|\s+(?![^\s\p{N}])|\s+";

/// Names that stand for a pattern.
pub const NAMES: [&str; 5] = ["nanochat", "gpt2", "cl100k", "o200k", "qwen2"];

// Other spellings of the same patterns, as they stand in tiktoken's source and in published files.
const TIKTOKEN_GPT2: &str = r"'(?:[sdmt]|ll|ve|re)| ?\p{L}++| ?\p{N}++| ?[^\s\p{L}\p{N}]++|\s++$|\s+(?!\S)|\s";
const TIKTOKEN_CL100K: &str = r"'(?i:[sdmt]|ll|ve|re)|[^\r\n\p{L}\p{N}]?+\p{L}++|\p{N}{1,3}+| ?[^\s\p{L}\p{N}]++[\r\n]*+|\s++$|\s*[\r\n]|\s+(?!\S)|\s";
/// Llama 3's pattern.
pub(crate) const LLAMA3: &str = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+";

#[derive(Debug)]
enum Kind {
    Nanochat,
    Gpt2,
    Cl100k,
    Llama3,
    Qwen2,
    O200k,
    Regex(Box<fancy_regex::Regex>),
}

/// What is done with each piece. A closure will do; a type of its own can ask to be inlined.
pub(crate) trait Visit<'t> {
    /// Takes the piece in the first `length` bytes of `rest`.
    fn piece(&mut self, rest: &'t [u8], length: usize);
}

impl<'t, F: FnMut(&'t [u8], usize)> Visit<'t> for F {
    #[inline(always)]
    fn piece(&mut self, rest: &'t [u8], length: usize) {
        self(rest, length);
    }
}

/// A compiled split pattern.
#[derive(Debug)]
pub struct Splitter {
    pattern: String,
    kind: Kind,
}

impl Splitter {
    /// Compiles one of [`NAMES`] or a regex. Patterns with a scanner are recognised by their text.
    pub fn new(pattern: &str) -> Result<Self, Error> {
        let pattern = match pattern {
            "nanochat" => NANOCHAT,
            // tiktoken's spellings say the same, but Oniguruma would read them in another way (see CL100K).
            "gpt2" | TIKTOKEN_GPT2 => GPT2,
            "cl100k" | TIKTOKEN_CL100K => CL100K,
            "o200k" => O200K,
            "qwen2" => QWEN2,
            other => other,
        };
        let kind = match pattern {
            NANOCHAT => Kind::Nanochat,
            GPT2 => Kind::Gpt2,
            CL100K => Kind::Cl100k,
            LLAMA3 => Kind::Llama3,
            QWEN2 => Kind::Qwen2,
            O200K => Kind::O200k,
            _ => return Self::regex(pattern),
        };
        Ok(Splitter { pattern: pattern.to_string(), kind })
    }

    /// Compiles a regex, also where a scanner exists (the tests compare the two).
    pub fn regex(pattern: &str) -> Result<Self, Error> {
        let compiled = fancy_regex::Regex::new(pattern)
            .map_err(|error| Error::Pattern { pattern: pattern.to_string(), reason: error.to_string() })?;
        Ok(Splitter { pattern: pattern.to_string(), kind: Kind::Regex(Box::new(compiled)) })
    }

    /// The same pattern for another thread: threads that share a regex wait for each other at every match.
    pub fn another(&self) -> Self {
        Self::new(&self.pattern).expect("it compiled before")
    }

    /// The pattern as a regex.
    pub fn pattern(&self) -> &str {
        &self.pattern
    }

    /// Whether a hand-written scanner runs, so that [`chunks`] may cut texts.
    pub fn is_scanner(&self) -> bool {
        !matches!(self.kind, Kind::Regex(_))
    }

    /// Calls `piece` with each piece of `text`, in order. The pieces cover the text: what a regex
    /// leaves out between two matches is a piece by itself (as in Hugging Face's `Split`).
    #[inline]
    pub fn for_each<'t>(&self, text: &'t str, mut piece: impl FnMut(&'t [u8])) -> Result<(), Error> {
        self.for_each_in_place(text, |rest: &'t [u8], length: usize| piece(&rest[..length]))
    }

    /// As [`Splitter::for_each`], with each piece given as its length and the text from its start on.
    #[inline]
    pub(crate) fn for_each_in_place<'t>(&self, text: &'t str, mut visitor: impl Visit<'t>) -> Result<(), Error> {
        let bytes = text.as_bytes();
        match &self.kind {
            Kind::Nanochat => scan::<Gpt4<2, false>>(bytes, visitor),
            Kind::Gpt2 => scan::<Gpt2>(bytes, visitor),
            Kind::Cl100k => scan::<Gpt4<3, true>>(bytes, visitor),
            Kind::Llama3 => scan::<Gpt4<3, false>>(bytes, visitor),
            Kind::Qwen2 => scan::<Gpt4<1, false>>(bytes, visitor),
            Kind::O200k => scan::<O200k>(bytes, visitor),
            Kind::Regex(regex) => {
                let mut done = 0;
                for found in regex.find_iter(text) {
                    let found = found.map_err(|error| Error::Split {
                        pattern: self.pattern.clone(),
                        offset: done,
                        reason: error.to_string(),
                    })?;
                    for (start, end) in [(done, found.start()), (found.start(), found.end())] {
                        if start < end {
                            visitor.piece(&bytes[start..], end - start);
                        }
                    }
                    done = found.end();
                }
                if done < text.len() {
                    visitor.piece(&bytes[done..], bytes.len() - done);
                }
            }
        }
        Ok(())
    }
}

#[inline(always)]
fn scan<'t, S: Scan>(bytes: &'t [u8], mut visitor: impl Visit<'t>) {
    let kinds = Kinds::get();
    let mut at = 0;
    while at < bytes.len() {
        let end = S::end(kinds, bytes, at);
        visitor.piece(&bytes[at..], end - at);
        at = end;
    }
}

/// Whether `bytes` (of a `str`) may be cut at `at` so that both sides split on their own as they do
/// together, for every scanner: before a space or line end that follows a letter or digit (no piece
/// goes on over it, and none looks back), or after a single `\n` between a visible character and a
/// letter or digit.
fn is_safe_cut(bytes: &[u8], at: usize) -> bool {
    let word = |at: usize| bytes[at].is_ascii_alphanumeric();
    (matches!(bytes[at], b' ' | b'\n' | b'\r') && word(at - 1))
        || (bytes[at - 1] == b'\n' && word(at) && bytes[at - 2].is_ascii_graphic())
}

/// The first place from `from` on where `text` may be cut for every scanner.
pub fn safe_cut(text: &str, from: usize) -> Option<usize> {
    (from.max(2)..text.len()).find(|&at| is_safe_cut(text.as_bytes(), at))
}

/// The last place where `text` may be cut for every scanner.
pub fn last_safe_cut(text: &str) -> Option<usize> {
    (2..text.len()).rev().find(|&at| is_safe_cut(text.as_bytes(), at))
}

/// Cuts `text` into parts of about `size` bytes at safe places, so that threads can share it.
pub fn chunks(text: &str, size: usize) -> Vec<&str> {
    let mut parts = Vec::with_capacity(text.len() / size + 1);
    let mut rest = text;
    while rest.len() > size {
        let Some(cut) = safe_cut(rest, size) else { break };
        let (part, tail) = rest.split_at(cut);
        parts.push(part);
        rest = tail;
    }
    parts.push(rest);
    parts
}

/// Texts, long ones cut where the pattern allows it, in groups of about `size` bytes for threads to
/// take. Each part comes with the index of its text.
pub(crate) fn jobs<'t, T: AsRef<str>>(texts: &'t [T], splitter: &Splitter, size: usize) -> Vec<Vec<(usize, &'t str)>> {
    let mut jobs = vec![Vec::new()];
    let mut filled = 0;
    for (index, text) in texts.iter().enumerate() {
        let text = text.as_ref();
        for part in if splitter.is_scanner() { chunks(text, size) } else { vec![text] } {
            if filled >= size {
                jobs.push(Vec::new());
                filled = 0;
            }
            filled += part.len();
            jobs.last_mut().expect("never empty").push((index, part));
        }
    }
    jobs
}
