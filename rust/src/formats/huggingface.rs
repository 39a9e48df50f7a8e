//! `tokenizer.json` of Hugging Face's `tokenizers` library, where it describes byte-level BPE.

use serde_json::Value;

use super::json::{Added, File, Model, Names, Pair};
use super::MAX_ID;
use crate::hash::hash_bytes;
use crate::split::GPT2_SINGLE_DIGITS;
use crate::table::Table;
use crate::{Definition, Merge, Splitter};

/// Reads a `tokenizer.json`. What doesn't bear on the ids of plain text is passed over: the post-processor, the
/// decoder, truncation, padding, and what is to be done around special tokens.
pub(super) fn parse(content: &[u8], pattern: Option<&str>) -> Result<Definition, String> {
    if pattern.is_some() {
        return Err("a tokenizer.json says its split pattern itself; leave out `pattern`".to_string());
    }
    let text =
        std::str::from_utf8(content).map_err(|error| format!("it is not UTF-8 at byte {}", error.valid_up_to()))?;
    let file: File = serde_json::from_str(text).map_err(|error| {
        let what = if error.is_data() { "not a tokenizer.json" } else { "not JSON" };
        format!("it is {what}: {error}")
    })?;
    let model = file.model.ok_or("it is JSON without a \"model\", so not a tokenizer.json")?;
    check_model(&model)?;
    let added = file.added_tokens.unwrap_or_default();
    let nfc = is_nfc(&file.normalizer)?;
    let pattern = pattern_of(&file.pre_tokenizer)?;
    let vocabulary = Vocabulary::new(&model.vocab)?;
    let special = vocabulary.special(&added)?;
    let size = special.last().map_or(0, |(_, id)| *id as usize + 1).max(vocabulary.by_id.len());
    let mut is_added = vec![false; size];
    special.iter().for_each(|(_, id)| is_added[*id as usize] = true);
    let tokens = vocabulary.tokens(&is_added)?;
    let merges = vocabulary.merges(&model.merges.0, &is_added)?;
    Ok(Definition { pattern, tokens, merges, whole_first: model.ignore_merges, nfc, special })
}

fn check_model(model: &Model) -> Result<(), String> {
    let kind = model.kind.as_deref();
    // Files from before 2020 name no type.
    if !matches!(kind, None | Some("BPE")) || model.vocab.is_list {
        return Err(format!("its model is {}, not BPE", kind.unwrap_or("of another kind")));
    }
    for (key, affix) in [
        ("continuing_subword_prefix", &model.continuing_subword_prefix),
        ("end_of_word_suffix", &model.end_of_word_suffix),
    ] {
        if let Some(affix) = affix.as_deref().filter(|affix| !affix.is_empty()) {
            return Err(format!("its model has the {key} {affix:?}; byte-level BPE has none"));
        }
    }
    match model.dropout {
        Some(dropout) if dropout != 0.0 => {
            Err(format!("its model leaves out merges at random (dropout {dropout}); set dropout to null to use it"))
        }
        _ => Ok(()),
    }
}

fn kind_of(part: &Value) -> &str {
    part["type"].as_str().unwrap_or("unknown")
}

/// The parts of a `Sequence`, of the sequences in it, and so on.
fn flatten<'v>(part: &'v Value, list: &str) -> Vec<&'v Value> {
    match part {
        Value::Null => vec![],
        _ if kind_of(part) == "Sequence" => {
            part[list].as_array().into_iter().flatten().flat_map(|inner| flatten(inner, list)).collect()
        }
        _ => vec![part],
    }
}

fn is_nfc(normalizer: &Value) -> Result<bool, String> {
    let parts = flatten(normalizer, "normalizers");
    match parts.iter().map(|part| kind_of(part)).find(|kind| *kind != "NFC") {
        Some(other) => Err(format!("its normalizer is {other}; supported are none and NFC")),
        None => Ok(!parts.is_empty()),
    }
}

fn pattern_of(pre_tokenizer: &Value) -> Result<String, String> {
    let parts = flatten(pre_tokenizer, "pretokenizers");
    let supported =
        "supported are ByteLevel alone, ByteLevel behind single Digits, and one Split followed by ByteLevel \
                     without a regex of its own";
    let (split, byte_level) = match parts[..] {
        [byte_level] if kind_of(byte_level) == "ByteLevel" => (None, byte_level),
        [split, byte_level] if matches!(kind_of(split), "Split" | "Digits") && kind_of(byte_level) == "ByteLevel" => {
            (Some(split), byte_level)
        }
        [] => return Err(format!("it has no pre-tokenizer; {supported}")),
        _ => {
            let kinds: Vec<&str> = parts.iter().map(|part| kind_of(part)).collect();
            return Err(format!("its pre-tokenizer is {}; {supported}", kinds.join(", ")));
        }
    };
    if byte_level["add_prefix_space"].as_bool() != Some(false) {
        return Err("its pre-tokenizer puts a space before the text (add_prefix_space); ids of the text alone are \
                    supported, so add_prefix_space must be false"
            .to_string());
    }
    let own_regex = byte_level["use_regex"].as_bool().unwrap_or(true);
    match split {
        None if own_regex => Ok("gpt2".to_string()),
        None => Err(format!("its pre-tokenizer doesn't split text at all (use_regex is false); {supported}")),
        Some(digits) if own_regex && digits["individual_digits"].as_bool() == Some(true) => {
            Ok(GPT2_SINGLE_DIGITS.to_string())
        }
        Some(split) if kind_of(split) == "Digits" => {
            Err(format!("its pre-tokenizer cuts digits in another way (individual_digits, use_regex); {supported}"))
        }
        Some(_) if own_regex => {
            Err(format!("its pre-tokenizer splits by two patterns (use_regex is true); {supported}"))
        }
        Some(split) => regex_of(split),
    }
}

fn regex_of(split: &Value) -> Result<String, String> {
    let regex = split["pattern"]["Regex"].as_str().ok_or_else(|| {
        format!("its pre-tokenizer splits at the text {}; supported is a regex", split["pattern"]["String"])
    })?;
    if let Some(what) = ambiguity(regex) {
        return Err(format!("its split pattern {regex:?} has {what}, which regex engines read in different ways"));
    }
    let behavior = split["behavior"].as_str().unwrap_or("unknown");
    let invert = split["invert"].as_bool().unwrap_or(false);
    // Keeping matches only is the same where the matches cover every text: all scanners are of such patterns.
    let covers = || Splitter::new(regex).is_ok_and(|splitter| splitter.is_scanner());
    if (behavior, invert) == ("Isolated", false) || (behavior, invert) == ("Removed", true) && covers() {
        return Ok(regex.to_string());
    }
    Err(format!(
        "its pre-tokenizer splits with behavior {behavior:?} and invert {invert}; supported is \"Isolated\" without"
    ))
}

/// What Oniguruma, which reads such files, takes in another way than other engines: `^` and `$` stand at line
/// ends, and `{1,3}+` is a repeated repetition, not a possessive one.
fn ambiguity(regex: &str) -> Option<&'static str> {
    let bytes = regex.as_bytes();
    let (mut at, mut depth) = (0, 0usize);
    while at < bytes.len() {
        match bytes[at] {
            b'\\' => {
                at += 1;
                if matches!(bytes.get(at), Some(b'p' | b'P' | b'x')) && bytes.get(at + 1) == Some(&b'{') {
                    at += bytes[at..].iter().position(|&byte| byte == b'}').unwrap_or(0);
                }
            }
            b'[' => depth += 1,
            b']' => depth = depth.saturating_sub(1),
            b'^' | b'$' if depth == 0 => return Some("the anchor ^ or $ (write \\A or \\z)"),
            b'}' if depth == 0 && bytes.get(at + 1) == Some(&b'+') => return Some("}+ (leave out the +)"),
            _ => {}
        }
        at += 1;
    }
    None
}

/// Tokens by name and by id.
struct Vocabulary<'n, 'f> {
    names: &'n Names<'f>,
    table: Table,
    /// Index of the name of each id, or [`HOLE`].
    by_id: Vec<u32>,
}

const HOLE: u32 = u32::MAX;

impl<'n, 'f> Vocabulary<'n, 'f> {
    fn new(names: &'n Names<'f>) -> Result<Self, String> {
        let mut table = Table::with_capacity(names.entries.len());
        let mut by_id = vec![HOLE; names.entries.len()];
        for (index, (name, id)) in names.entries.iter().enumerate() {
            if *id > MAX_ID {
                return Err(format!("the token {name:?} has the id {id}; up to {MAX_ID} are supported"));
            }
            let place = *id as usize;
            if place >= by_id.len() {
                by_id.resize(place + 1, HOLE);
            }
            if by_id[place] != HOLE {
                let other = &names.entries[by_id[place] as usize].0;
                return Err(format!("the tokens {other:?} and {name:?} have the same id {id}"));
            }
            by_id[place] = index as u32;
            table
                .insert(hash_bytes(name.as_bytes()), index, |other| names.entries[other].0 == *name)
                .map_err(|_| format!("the token {name:?} is there twice"))?;
        }
        Ok(Vocabulary { names, table, by_id })
    }

    #[inline(always)]
    fn id_of(&self, name: &str) -> Option<u32> {
        let entries = &self.names.entries;
        let index = self.table.find(hash_bytes(name.as_bytes()), |index| entries[index].0 == name)?;
        Some(entries[index].1)
    }

    /// The added tokens by id. They stand for themselves, never for text.
    fn special(&self, added: &[Added]) -> Result<Vec<(String, u32)>, String> {
        let mut special: Vec<(String, u32)> = Vec::with_capacity(added.len());
        for token in added.iter().filter(|token| !token.content.is_empty()) {
            let (name, id) = (token.content.as_str(), token.id);
            if id > MAX_ID {
                return Err(format!("the added token {name:?} has the id {id}; up to {MAX_ID} are supported"));
            }
            if !token.special && !looks_like_markup(name) {
                return Err(format!(
                    "the added token {name:?} (id {id}) is not special, so plain text would become it before BPE; \
                     supported are added tokens marked special or spelled like <name> or [name]"
                ));
            }
            let holder = self.by_id.get(id as usize).filter(|index| **index != HOLE);
            let holder = holder.map(|index| &*self.names.entries[*index as usize].0);
            if holder.is_some_and(|holder| holder != name) || holder.is_none() && self.id_of(name).is_some() {
                let there = holder.map_or("no token".to_string(), |holder| format!("{holder:?}"));
                return Err(format!("the added token {name:?} has the id {id}, but in the vocabulary that is {there}"));
            }
            special.push((name.to_string(), id));
        }
        special.sort();
        special.dedup();
        if let Some(twice) = special.windows(2).find(|two| two[0].0 == two[1].0) {
            return Err(format!("the added token {:?} has the ids {} and {}", twice[0].0, twice[0].1, twice[1].1));
        }
        special.sort_by_key(|(_, id)| *id);
        match special.windows(2).find(|two| two[0].1 == two[1].1) {
            Some(two) => {
                Err(format!("the added tokens {:?} and {:?} have the same id {}", two[0].0, two[1].0, two[0].1))
            }
            None => Ok(special),
        }
    }

    /// Bytes by id; none for added tokens and holes.
    fn tokens(&self, is_added: &[bool]) -> Result<Vec<Vec<u8>>, String> {
        let mut tokens = vec![Vec::new(); is_added.len()];
        for (name, id) in self.names.entries.iter().filter(|(_, id)| !is_added[*id as usize]) {
            tokens[*id as usize] = bytes_of(name).ok_or_else(|| {
                format!("the token {name:?} (id {id}) is not spelled in GPT-2's alphabet of bytes: not byte-level BPE")
            })?;
        }
        Ok(tokens)
    }

    /// The merges; each has a rank of its own, its place in the list.
    fn merges(&self, pairs: &[Pair<'f>], is_added: &[bool]) -> Result<Vec<Merge>, String> {
        let mut merges = Vec::with_capacity(pairs.len());
        let mut whole = String::new();
        for (index, Pair(left, right)) in pairs.iter().enumerate() {
            whole.clear();
            whole.push_str(left);
            whole.push_str(right);
            let id = |name: &str| match self.id_of(name) {
                Some(id) if !is_added[id as usize] => Ok(id),
                found => Err(format!(
                    "merge {index} joins {left:?} and {right:?}, but {name:?} is {}",
                    found.map_or("no token", |_| "an added token; supported are added tokens that no merge knows")
                )),
            };
            merges.push(Merge { left: id(left)?, right: id(right)?, merged: id(&whole)?, rank: index as u32 });
        }
        Ok(merges)
    }
}

/// Whether a name is of the kind that stands for no text: `<name>` or `[name]`.
fn looks_like_markup(name: &str) -> bool {
    let framed = |open, close| name.len() > 2 && name.starts_with(open) && name.ends_with(close);
    (framed('<', '>') || framed('[', ']')) && !name.contains(char::is_whitespace)
}

/// One more than the byte that a character stands for in GPT-2's alphabet, or 0: visible Latin-1 stands for
/// itself, and U+0100 onwards for the other bytes.
const ALPHABET: [u16; 324] = {
    let mut alphabet = [0; 324];
    let (mut byte, mut hidden) = (0, 256);
    while byte < 256 {
        if matches!(byte, 0x21..=0x7E | 0xA1..=0xAC | 0xAE..=0xFF) {
            alphabet[byte] = byte as u16 + 1;
        } else {
            alphabet[hidden] = byte as u16 + 1;
            hidden += 1;
        }
        byte += 1;
    }
    alphabet
};

fn bytes_of(name: &str) -> Option<Vec<u8>> {
    let mut bytes = Vec::with_capacity(name.len());
    for character in name.chars() {
        match ALPHABET.get(character as usize) {
            None | Some(0) => return None,
            Some(byte) => bytes.push((byte - 1) as u8),
        }
    }
    Some(bytes)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_alphabet_has_each_byte_once() {
        let bytes: Vec<u8> =
            (0..324).filter_map(char::from_u32).filter_map(|c| bytes_of(&c.to_string())).flatten().collect();
        let mut sorted = bytes.clone();
        sorted.sort_unstable();
        assert_eq!(sorted, (0..=255).collect::<Vec<u8>>());
        assert_eq!(bytes_of("Ġhé"), Some(b" h\xe9".to_vec()));
        assert_eq!((bytes_of("▁the"), bytes_of("a b"), bytes_of("ń")), (None, None, None));
    }

    #[test]
    fn anchors_and_repeated_repetitions_are_seen_outside_of_classes() {
        use crate::split::{CL100K, GPT2, LLAMA3, NANOCHAT, O200K, QWEN2};
        for fine in [CL100K, GPT2, LLAMA3, NANOCHAT, O200K, QWEN2, r"[$^]\$\p{N}+\^", r"[a[$]$]", r"[\]$]", r"\x{41}++"]
        {
            assert_eq!(ambiguity(fine), None, "{fine}");
        }
        assert!(ambiguity(r"\s++$|\s").is_some());
        assert!(ambiguity(r"^a").is_some());
        assert!(ambiguity(r"\p{N}{1,3}+").is_some());
    }
}
