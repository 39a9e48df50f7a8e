//! tiktoken's rank files: a line for each token, its bytes in base64 and its rank, which is its id.

use super::MAX_ID;
use crate::table::Table;
use crate::{Definition, Merge};

/// Whether the first line is base64 and a number.
pub(super) fn looks_like(content: &[u8]) -> bool {
    content.split(|&byte| byte == b'\n').next().is_some_and(|line| entry(line.trim_ascii()).is_some())
}

/// Reads a rank file.
///
/// tiktoken merges two neighbours whenever their bytes together are a token, the lowest id first. So
/// each way to cut a token into two tokens is a merge, and all that make one token share a rank. A
/// piece that is a token is never merged at all.
pub(super) fn parse(content: &[u8], source: &str, pattern: Option<&str>) -> Result<Definition, String> {
    let pattern = pattern.or_else(|| pattern_of(source)).ok_or(
        "a rank file doesn't say its split pattern, and this one isn't named like a known one (gpt2, r50k_base, \
         p50k_base, cl100k_base, o200k_base, qwen, llama3, llama4); give the pattern that it was trained with, for example \
         pattern=\"cl100k\"",
    )?;
    let mut tokens: Vec<Vec<u8>> = Vec::with_capacity(content.len() / 14);
    let mut taken: Vec<bool> = Vec::with_capacity(content.len() / 14);
    for (index, line) in content.split(|&byte| byte == b'\n').enumerate() {
        let line = line.trim_ascii();
        if line.is_empty() {
            continue;
        }
        let number = index + 1;
        let (token, id) = entry(line)
            .ok_or_else(|| format!("line {number} is \"{}\", not base64 and a rank", line.escape_ascii()))?;
        if id > MAX_ID {
            return Err(format!("line {number} has the rank {id}; up to {MAX_ID} are supported"));
        }
        let place = id as usize;
        if place >= tokens.len() {
            tokens.resize(place + 1, Vec::new());
            taken.resize(place + 1, false);
        }
        if std::mem::replace(&mut taken[place], true) {
            return Err(format!(
                "line {number} has the rank {id}, which an earlier line has; every token needs its own"
            ));
        }
        tokens[place] = token;
    }
    let merges = merges_of(&tokens)?;
    Ok(Definition { pattern: pattern.to_string(), tokens, merges, whole_first: true, nfc: false, special: Vec::new() })
}

/// The pattern of a file that has the name of a published one.
fn pattern_of(source: &str) -> Option<&'static str> {
    let name = source.rsplit(['/', '\\']).next().unwrap_or(source);
    match name.split('.').next().unwrap_or(name).to_ascii_lowercase().as_str() {
        "gpt2" | "r50k_base" | "p50k_base" | "p50k_edit" | "multilingual" => Some("gpt2"),
        "cl100k_base" => Some("cl100k"),
        "o200k_base" | "o200k_harmony" | "llama4" => Some("o200k"),
        "qwen" | "qwen2" => Some("qwen2"),
        "llama3" => Some(crate::split::LLAMA3),
        _ => None,
    }
}

/// Token and rank of a line.
fn entry(line: &[u8]) -> Option<(Vec<u8>, u32)> {
    let space = line.iter().position(|&byte| byte == b' ')?;
    let (token, digits) = (&line[..space], &line[space + 1..]);
    if digits.is_empty() || digits.len() > 9 || !digits.iter().all(u8::is_ascii_digit) {
        return None;
    }
    let rank = digits.iter().fold(0, |rank, digit| rank * 10 + u32::from(digit - b'0'));
    Some((base64(token)?, rank))
}

const SEXTETS: [u8; 256] = {
    let alphabet = *b"ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789+/";
    let mut sextets = [u8::MAX; 256];
    let mut index = 0;
    while index < alphabet.len() {
        sextets[alphabet[index] as usize] = index as u8;
        index += 1;
    }
    sextets
};

/// Bytes of standard base64. `=` alone is no byte at all: so stands a hole in Whisper's file.
fn base64(text: &[u8]) -> Option<Vec<u8>> {
    let padding = text.iter().rev().take_while(|&&byte| byte == b'=').count();
    let digits = &text[..text.len() - padding];
    if text.is_empty() || padding > 2 || digits.len() % 4 == 1 || (!digits.is_empty() && !text.len().is_multiple_of(4))
    {
        return None;
    }
    let mut bytes = Vec::with_capacity(digits.len() * 3 / 4);
    for group in digits.chunks(4) {
        let mut word = 0u32;
        for &digit in group {
            let sextet = SEXTETS[usize::from(digit)];
            if sextet == u8::MAX {
                return None;
            }
            word = word << 6 | u32::from(sextet);
        }
        word <<= 6 * (4 - group.len());
        bytes.extend_from_slice(&word.to_be_bytes()[1..group.len()]);
    }
    Some(bytes)
}

/// A hash that gives that of a string's end from those of the whole and of its start, so that every
/// way to cut a token costs two look-ups and no second walk over its bytes.
const BASE: u64 = 0x9E37_79B9_7F4A_7C15;

#[inline(always)]
fn extend(hash: u64, byte: u8) -> u64 {
    hash.wrapping_mul(BASE).wrapping_add(u64::from(byte) + 1)
}

/// Spreads what [`extend`] leaves in the upper bits.
#[inline(always)]
fn mix(hash: u64) -> u64 {
    let hash = (hash ^ hash >> 32).wrapping_mul(0xD6E8_FEB8_6659_FD93);
    hash ^ hash >> 32
}

fn merges_of(tokens: &[Vec<u8>]) -> Result<Vec<Merge>, String> {
    let longest = tokens.iter().map(Vec::len).max().unwrap_or(0);
    let mut powers = vec![1u64; longest + 1];
    for length in 1..=longest {
        powers[length] = powers[length - 1].wrapping_mul(BASE);
    }
    let mut table = Table::with_capacity(tokens.len());
    let mut hashes = Vec::with_capacity(tokens.len());
    for (id, token) in tokens.iter().enumerate() {
        let hash = token.iter().fold(0, |hash, &byte| extend(hash, byte));
        hashes.push(hash);
        if !token.is_empty() {
            table.insert(mix(hash), id, |other| tokens[other] == *token).map_err(|other| {
                format!("the ranks {other} and {id} have the same token \"{}\"", token.escape_ascii())
            })?;
        }
    }
    let find = |part: &[u8], hash: u64| table.find(mix(hash), |id| tokens[id] == *part);
    let mut merges = Vec::with_capacity(tokens.len() * 2);
    let mut rank = 0;
    for (id, token) in tokens.iter().enumerate() {
        let before = merges.len();
        let mut start = 0;
        for cut in 1..token.len() {
            start = extend(start, token[cut - 1]);
            let (left, right) = token.split_at(cut);
            let Some(first) = find(left, start) else { continue };
            let end = hashes[id].wrapping_sub(start.wrapping_mul(powers[right.len()]));
            if let Some(second) = find(right, end) {
                merges.push(Merge { left: first as u32, right: second as u32, merged: id as u32, rank });
            }
        }
        rank += u32::from(merges.len() > before);
    }
    Ok(merges)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn encode(bytes: &[u8]) -> String {
        let alphabet = b"ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789+/";
        let mut text = String::new();
        for group in bytes.chunks(3) {
            let word = group.iter().fold(0u32, |word, &byte| word << 8 | u32::from(byte)) << (8 * (3 - group.len()));
            for place in 0..4 {
                let digit = alphabet[(word >> (18 - 6 * place) & 63) as usize] as char;
                text.push(if place <= group.len() { digit } else { '=' });
            }
        }
        text
    }

    #[test]
    fn base64_is_read_and_nothing_else() {
        let bytes: Vec<u8> = (0..=255).collect();
        for length in 1..=bytes.len() {
            assert_eq!(base64(encode(&bytes[..length]).as_bytes()).as_deref(), Some(&bytes[..length]));
        }
        assert_eq!(base64(b"="), Some(vec![]));
        for wrong in ["", "a", "ab", "abc", "ab=c", "a===", "====", "ab-_", "abcde===", "é==="] {
            assert_eq!(base64(wrong.as_bytes()), None, "{wrong}");
        }
    }

    #[test]
    fn every_cut_into_two_tokens_is_a_merge_of_the_tokens_rank() {
        let mut tokens: Vec<Vec<u8>> = (0..=255).map(|byte| vec![byte]).collect();
        tokens.extend([b"ab".to_vec(), vec![], b"bc".to_vec(), b"abc".to_vec(), b"xyz".to_vec(), b"aab".to_vec()]);
        let found: Vec<_> = merges_of(&tokens).unwrap().iter().map(|m| (m.left, m.right, m.merged, m.rank)).collect();
        let (a, b, c) = (97, 98, 99);
        let expected = [(a, b, 256, 0), (b, c, 258, 1), (a, 258, 259, 2), (256, c, 259, 2), (a, 256, 261, 3)];
        assert_eq!(found, expected);
        tokens.push(b"bc".to_vec());
        assert_eq!(merges_of(&tokens).unwrap_err(), "the ranks 258 and 262 have the same token \"bc\"");
    }
}
