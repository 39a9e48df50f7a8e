//! The scanners: each says where the piece that starts at a place ends, by the same rules as its
//! regex, alternative by alternative.

use crate::unicode::{Kinds, CASELESS, LETTER, LOWER, MARK, NEWLINE, NUMBER, SPACE, UPPER};

/// A split pattern as code.
pub trait Scan {
    /// End of the piece that starts at `at`, a character boundary before the end of `bytes`.
    fn end(kinds: &Kinds, bytes: &[u8], at: usize) -> usize;
}

/// End of the longest run from `at` of characters whose kind has a bit of `accept`.
#[inline(always)]
fn run_of(kinds: &Kinds, bytes: &[u8], mut at: usize, accept: u8) -> usize {
    loop {
        let (kind, length) = kinds.at(bytes, at);
        if kind & accept == 0 {
            return at;
        }
        at += length;
    }
}

/// End of ` ?[A-Za-z]+` and all letters that follow, or `None`. Eight bytes are looked at together:
/// without a branch for each letter, nothing is mispredicted where a word ends.
#[inline(always)]
fn word(kinds: &Kinds, bytes: &[u8], at: usize) -> Option<usize> {
    let start = at + usize::from(bytes[at] == b' ');
    let mut end = start;
    while let Some(chunk) = bytes.get(end..).and_then(|rest| rest.first_chunk()) {
        let letters = leading_letters(*chunk);
        end += letters;
        if letters < 8 {
            if !bytes[end].is_ascii() {
                break;
            }
            return (end > start).then_some(end);
        }
    }
    // Near the end of the text, or where another script begins.
    let end = run_of(kinds, bytes, end, LETTER);
    (end > start).then_some(end)
}

/// How many of eight bytes are ASCII letters, up to the first that is not.
#[inline(always)]
fn leading_letters(chunk: [u8; 8]) -> usize {
    const EACH: u64 = 0x0101_0101_0101_0101;
    const HIGH: u64 = EACH * 0x80;
    let word = u64::from_le_bytes(chunk);
    // Sums stay within their bytes, so that each high bit says how its byte compares.
    let low = (word | (EACH * 0x20)) & !HIGH;
    let from_a = low + EACH * (0x80 - b'a' as u64);
    let past_z = low + EACH * (0x7F - b'z' as u64);
    let letters = from_a & !past_z & !word & HIGH;
    ((letters ^ HIGH).trailing_zeros() / 8) as usize
}

/// End of the longest run of `[^\s\p{L}\p{N}]` from `at`.
#[inline(always)]
fn symbols(kinds: &Kinds, bytes: &[u8], mut at: usize) -> usize {
    loop {
        let (kind, length) = kinds.at(bytes, at);
        if length == 0 || kind & (SPACE | LETTER | NUMBER) != 0 {
            return at;
        }
        at += length;
    }
}

/// End of up to `most` numbers from `at`.
#[inline(always)]
fn numbers(kinds: &Kinds, bytes: &[u8], mut at: usize, most: usize) -> usize {
    for _ in 0..most {
        let (kind, length) = kinds.at(bytes, at);
        if kind & NUMBER == 0 {
            break;
        }
        at += length;
    }
    at
}

/// End of a run of the given bytes.
#[inline(always)]
fn bytes_of(bytes: &[u8], mut at: usize, accept: &[u8]) -> usize {
    while bytes.get(at).is_some_and(|byte| accept.contains(byte)) {
        at += 1;
    }
    at
}

/// End of `'s 't 're 've 'm 'll 'd` at `at`, or `at`. Without regard to case, `ſ` (long s) is an `s`.
#[inline(always)]
fn contraction(bytes: &[u8], at: usize, any_case: bool) -> usize {
    if bytes[at] != b'\'' {
        return at;
    }
    let letter = |i: usize| match bytes.get(at + i) {
        Some(byte) if any_case => byte.to_ascii_lowercase(),
        Some(byte) => *byte,
        None => 0,
    };
    match (letter(1), letter(2)) {
        (b's' | b'd' | b'm' | b't', _) => at + 2,
        (b'l', b'l') | (b'v' | b'r', b'e') => at + 3,
        (0xC5, 0xBF) if any_case => at + 3,
        _ => at,
    }
}

/// `\s*[\r\n]|\s+(?!\S)|\s+` at a space; with `TAIL` also `\s++\z` before, with `LINES` off only the
/// last two alternatives.
#[inline(always)]
fn spaces<const LINES: bool, const TAIL: bool>(kinds: &Kinds, bytes: &[u8], start: usize) -> usize {
    let (mut at, mut last, mut line_end) = (start, start, start);
    loop {
        let (kind, length) = kinds.at(bytes, at);
        if kind & SPACE == 0 {
            break;
        }
        last = at;
        at += length;
        if kind & NEWLINE != 0 {
            line_end = at;
        }
    }
    if TAIL && at == bytes.len() {
        at
    } else if LINES && line_end > start {
        line_end
    } else if at == bytes.len() || last == start {
        at
    } else {
        last // the last space goes with what follows
    }
}

/// nanochat, cl100k, Llama 3 and Qwen2: they differ in the digits of a number and in the end of a text.
pub struct Gpt4<const DIGITS: usize, const TAIL: bool>;

impl<const DIGITS: usize, const TAIL: bool> Scan for Gpt4<DIGITS, TAIL> {
    #[inline(always)]
    fn end(kinds: &Kinds, bytes: &[u8], at: usize) -> usize {
        if let Some(end) = word(kinds, bytes, at) {
            return end;
        }
        let (kind, length) = kinds.at(bytes, at);
        let next = at + length;
        if kind & LETTER != 0 {
            return run_of(kinds, bytes, next, LETTER);
        }
        if kind & NUMBER != 0 {
            return numbers(kinds, bytes, next, DIGITS - 1);
        }
        let short = contraction(bytes, at, true);
        if short > at {
            return short;
        }
        let (after, after_length) = kinds.at(bytes, next);
        if kind & NEWLINE == 0 && after & LETTER != 0 {
            return run_of(kinds, bytes, next + after_length, LETTER);
        }
        if kind & SPACE != 0 {
            let symbol = bytes[at] == b' ' && after_length > 0 && after & (SPACE | NUMBER) == 0;
            if !symbol {
                return spaces::<true, TAIL>(kinds, bytes, at);
            }
        }
        bytes_of(bytes, symbols(kinds, bytes, next), b"\r\n")
    }
}

/// GPT-2.
pub struct Gpt2;

impl Scan for Gpt2 {
    #[inline(always)]
    fn end(kinds: &Kinds, bytes: &[u8], at: usize) -> usize {
        if let Some(end) = word(kinds, bytes, at) {
            return end;
        }
        let short = contraction(bytes, at, false);
        if short > at {
            return short;
        }
        let start = at + usize::from(bytes[at] == b' ');
        let (kind, length) = kinds.at(bytes, start);
        if kind & LETTER != 0 {
            run_of(kinds, bytes, start + length, LETTER)
        } else if kind & NUMBER != 0 {
            run_of(kinds, bytes, start + length, NUMBER)
        } else if length > 0 && kind & SPACE == 0 {
            symbols(kinds, bytes, start + length)
        } else {
            spaces::<false, false>(kinds, bytes, at)
        }
    }
}

/// o200k: words end where a capital follows a small letter, marks belong to words, and a
/// contraction belongs to the word before it.
pub struct O200k;

/// `[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]`.
const HEAD: u8 = UPPER | CASELESS | MARK;
/// `[\p{Ll}\p{Lm}\p{Lo}\p{M}]`.
const TAIL: u8 = LOWER | CASELESS | MARK;

impl O200k {
    /// End of `HEAD* TAIL+` from `at`, or `None`.
    fn lower_word(kinds: &Kinds, bytes: &[u8], mut at: usize) -> Option<usize> {
        let mut caseless_end = None;
        loop {
            let (kind, length) = kinds.at(bytes, at);
            if kind & HEAD == 0 {
                break;
            }
            at += length;
            if kind & TAIL != 0 {
                caseless_end = Some(at);
            }
        }
        let end = run_of(kinds, bytes, at, TAIL);
        // Without a small letter after the head, the regex steps back to the head's last character
        // that may also stand in a tail; what follows that one is capitals only.
        if end > at {
            Some(end)
        } else {
            caseless_end
        }
    }

    /// End of `HEAD+ TAIL*` from `at`, or `None`.
    fn upper_word(kinds: &Kinds, bytes: &[u8], at: usize) -> Option<usize> {
        let end = run_of(kinds, bytes, at, HEAD);
        (end > at).then(|| run_of(kinds, bytes, end, TAIL))
    }
}

impl Scan for O200k {
    #[inline(always)]
    fn end(kinds: &Kinds, bytes: &[u8], at: usize) -> usize {
        let (kind, length) = kinds.at(bytes, at);
        let next = at + length;
        if kind & NUMBER != 0 {
            return numbers(kinds, bytes, next, 2);
        }
        let prefixed = kind & (NEWLINE | LETTER) == 0;
        let lower = || Self::lower_word(kinds, bytes, at);
        let upper = || Self::upper_word(kinds, bytes, at);
        let word = if prefixed {
            Self::lower_word(kinds, bytes, next)
                .or_else(lower)
                .or_else(|| Self::upper_word(kinds, bytes, next))
                .or_else(upper)
        } else {
            lower().or_else(upper)
        };
        if let Some(end) = word {
            return if end < bytes.len() { contraction(bytes, end, true) } else { end };
        }
        let (after, after_length) = kinds.at(bytes, next);
        let symbol = bytes[at] == b' ' && after_length > 0 && after & (SPACE | LETTER | NUMBER) == 0;
        if kind & SPACE != 0 && !symbol {
            return spaces::<true, false>(kinds, bytes, at);
        }
        bytes_of(bytes, symbols(kinds, bytes, next), b"\r\n/")
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn leading_letters_of_every_byte_at_every_place() {
        for place in 0..8 {
            for byte in 0..=255u8 {
                let mut chunk = *b"aZzAmMbY";
                chunk[place] = byte;
                assert_eq!(leading_letters(chunk), if byte.is_ascii_alphabetic() { 8 } else { place }, "{chunk:?}");
                chunk[..place].fill(b'!');
                assert_eq!(leading_letters(chunk), if place > 0 || !byte.is_ascii_alphabetic() { 0 } else { 8 });
            }
        }
    }
}
