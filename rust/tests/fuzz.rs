//! Generated tokenizers and texts, against an encoder that is too simple to be wrong, and damaged
//! files, which must be refused or opened, never crash. A few seconds by default; `make fuzz` sets
//! `NUTSHELL_FUZZ_SECONDS` for a longer run and `NUTSHELL_FUZZ_SEED` repeats one that failed.

use std::collections::HashMap;
use std::time::{Duration, Instant};

use nutshell_bpe::{formats, pool, train, Counter, Definition, Encoder, Merge, Splitter};

struct Dice(u64);

impl Dice {
    fn roll(&mut self, sides: usize) -> usize {
        self.0 = self.0.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        (self.0 >> 33) as usize % sides
    }

    fn shuffle<T>(&mut self, items: &mut [T]) {
        for end in (1..items.len()).rev() {
            items.swap(end, self.roll(end + 1));
        }
    }

    /// Mostly short, sometimes long enough for each way of merging.
    fn text(&mut self) -> String {
        let words = ["a", "b", "ab", "c", " ", " a", "bc", "aa", "é", "漢", "\n", "1", "'s", "漩漢", "é漢漢", "bb"];
        let few = 1 + self.roll(words.len());
        let length = [3, 12, 60, 300, 6000][self.roll(100).saturating_sub(90).min(4)];
        (0..self.roll(length)).map(|_| words[self.roll(few)]).collect()
    }
}

/// Runs `check` with one seed after the other until the time is over.
fn fuzz(name: &str, check: impl Fn(&mut Dice)) {
    let number = |name| std::env::var(name).ok().map(|value: String| value.parse::<u64>().expect("a number"));
    let time = Duration::from_secs(number("NUTSHELL_FUZZ_SECONDS").unwrap_or(2));
    let first = number("NUTSHELL_FUZZ_SEED");
    let started = Instant::now();
    let mut seed = first.unwrap_or(0);
    loop {
        let outcome = std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| check(&mut Dice(seed))));
        assert!(outcome.is_ok(), "{name} failed: repeat it with NUTSHELL_FUZZ_SEED={seed}");
        seed += 1;
        if first.is_some() || started.elapsed() > time {
            return;
        }
    }
}

/// Any merges that fit together, in any order, with ids in any order and holes among them.
fn definition(dice: &mut Dice) -> Definition {
    let mut words: Vec<Vec<u8>> = (0..=255).map(|byte| vec![byte]).collect();
    let mut pairs: Vec<(usize, usize, usize)> = Vec::new();
    let letters = *b"abc \xC3\xA9\xE6\xBC\xA2";
    for _ in 0..dice.roll(60) {
        let mut part = || match dice.roll(2) {
            0 => usize::from(letters[dice.roll(letters.len())]),
            _ => 256 + dice.roll((words.len() - 256).max(1)),
        };
        let (left, right) = (part(), part());
        if left >= words.len() || right >= words.len() || pairs.iter().any(|pair| (pair.0, pair.1) == (left, right)) {
            continue;
        }
        let word = [&words[left][..], &words[right]].concat();
        let merged = words.iter().position(|other| *other == word).unwrap_or(words.len());
        if merged == words.len() {
            words.push(word);
        }
        pairs.push((left, right, merged));
    }
    if dice.roll(3) == 0 {
        dice.shuffle(&mut pairs);
    }
    pairs.sort_by_key(|&(_, _, merged)| pairs_rank(merged, dice.0)); // those of one token side by side
    let size = words.len() + dice.roll(5);
    let mut ids: Vec<u32> = (0..size as u32).collect();
    if dice.roll(2) == 0 {
        dice.shuffle(&mut ids);
    }
    let mut tokens = vec![Vec::new(); size];
    for (word, id) in words.into_iter().zip(&ids) {
        tokens[*id as usize] = word;
    }
    let shared_ranks = dice.roll(2) == 0;
    let mut merges: Vec<Merge> = Vec::new();
    for (left, right, merged) in pairs {
        let merged = ids[merged];
        let same = shared_ranks && merges.last().is_some_and(|last| last.merged == merged);
        let rank = merges.last().map_or(0, |last| last.rank + u32::from(!same));
        merges.push(Merge { left: ids[left], right: ids[right], merged, rank });
    }
    Definition {
        pattern: ["gpt2", "nanochat", "o200k", "[^ ]+| +"][dice.roll(4)].to_string(),
        tokens,
        merges,
        whole_first: dice.roll(2) == 0,
        nfc: false,
        special: Vec::new(),
    }
}

/// An order of tokens: as they were made, or mixed.
fn pairs_rank(merged: usize, seed: u64) -> u64 {
    if seed & 1 == 0 {
        merged as u64
    } else {
        (merged as u64).wrapping_mul(0x9E37_79B9_7F4A_7C15) ^ seed
    }
}

/// Byte pair encoding as it is explained.
fn slow(definition: &Definition, piece: &[u8]) -> Vec<u32> {
    let ids: HashMap<&[u8], u32> = (0..).zip(&definition.tokens).map(|(id, token)| (&token[..], id)).collect();
    if definition.whole_first && ids.contains_key(piece) {
        return vec![ids[piece]];
    }
    let merges: HashMap<(u32, u32), &Merge> =
        definition.merges.iter().map(|merge| ((merge.left, merge.right), merge)).collect();
    let mut found: Vec<u32> = piece.iter().map(|&byte| ids[&[byte][..]]).collect();
    loop {
        let pairs = found.windows(2).enumerate();
        let known = pairs.filter_map(|(place, pair)| merges.get(&(pair[0], pair[1])).map(|merge| (merge, place)));
        let Some((merge, place)) = known.min_by_key(|(merge, place)| (merge.rank, *place)) else { return found };
        found[place] = merge.merged;
        found.remove(place + 1);
    }
}

#[test]
fn any_tokenizer_encodes_as_the_slow_way_does() {
    fuzz("encode", |dice| {
        let definition = definition(dice);
        let encoder = Encoder::open(&definition).expect("merges that fit");
        let splitter = Splitter::new(&definition.pattern).unwrap();
        let texts: Vec<String> = (0..8).map(|_| dice.text()).collect();
        let batch = encoder.encode_batch(&texts, &pool(2)).unwrap();
        let flat = batch.parts.concat();
        for (index, text) in texts.iter().enumerate() {
            let ids = encoder.encode(text).unwrap();
            if text.len() < 1000 || text.len() < 8000 && dice.roll(20) == 0 {
                let mut expected = Vec::new();
                splitter.for_each(text, |piece| expected.extend(slow(&definition, piece))).unwrap();
                assert_eq!(ids, expected, "{text:?} {definition:?}");
            }
            assert_eq!(ids, flat[batch.offsets[index] as usize..batch.offsets[index + 1] as usize]);
            assert_eq!(encoder.decode(&ids).unwrap(), text.as_bytes());
        }
    });
}

#[test]
fn training_does_not_depend_on_threads_or_order() {
    fuzz("train", |dice| {
        let mut texts: Vec<String> = (0..dice.roll(12)).map(|_| dice.text()).collect();
        let merges = dice.roll(200);
        let learn = |texts: &[String], threads| {
            let counter = Counter::new(Splitter::new("nanochat").unwrap(), pool(threads));
            counter.add(texts).unwrap();
            train(&counter.take(), merges, |_| true).unwrap()
        };
        let learned = learn(&texts, 1);
        dice.shuffle(&mut texts);
        assert_eq!(learn(&texts, 3), learned);
        let encoder = Encoder::new(Splitter::new("nanochat").unwrap(), &learned).unwrap();
        for text in &texts {
            assert_eq!(encoder.decode(&encoder.encode(text).unwrap()).unwrap(), text.as_bytes());
        }
    });
}

/// A rank file and a `tokenizer.json` of the same few tokens.
fn files() -> [Vec<u8>; 2] {
    let alphabet: Vec<char> = {
        let visible = |byte: u32| matches!(byte, 0x21..=0x7E | 0xA1..=0xAC | 0xAE..=0xFF);
        let mut hidden = 0x100..;
        let mut of = |byte| if visible(byte) { byte } else { hidden.next().expect("without end") };
        (0..256).map(|byte| char::from_u32(of(byte)).expect("a character")).collect()
    };
    let mut names: Vec<String> = alphabet.iter().map(char::to_string).collect();
    names.extend(["ab", "abc", "Ġa"].map(String::from));
    let vocabulary: Vec<String> = names.iter().enumerate().map(|(id, name)| format!("{name:?}:{id}")).collect();
    let json = format!(
        r#"{{"added_tokens":[{{"id":259,"content":"<|end|>","special":true}}],"normalizer":null,
        "pre_tokenizer":{{"type":"ByteLevel","add_prefix_space":false,"use_regex":true}},
        "model":{{"type":"BPE","vocab":{{{}}},"merges":["a b",["ab","c"],"Ġ a"]}}}}"#,
        vocabulary.join(",")
    );
    let base64 = |bytes: &[u8]| {
        let letters = b"ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789+/";
        let word = bytes.iter().fold(0u32, |word, &byte| word << 8 | u32::from(byte)) << (24 - 8 * bytes.len());
        let letter = |place: usize| char::from(letters[(word >> (18 - 6 * place)) as usize & 63]);
        (0..4).map(|place| if place <= bytes.len() { letter(place) } else { '=' }).collect::<String>()
    };
    let mut tokens: Vec<Vec<u8>> = (0..=255).map(|byte| vec![byte]).collect();
    tokens.extend([&b"ab"[..], b"abc", b" a"].map(<[u8]>::to_vec));
    let ranks: Vec<String> =
        tokens.iter().enumerate().map(|(rank, token)| format!("{} {rank}\n", base64(token))).collect();
    [ranks.concat().into_bytes(), json.into_bytes()]
}

#[test]
fn damaged_files_are_refused_or_opened() {
    let whole = files();
    for content in &whole {
        let encoder = Encoder::open(&formats::parse(content, "gpt2.tiktoken", None).unwrap()).unwrap();
        assert_eq!(encoder.encode("abc a").unwrap().len(), 2);
    }
    let parts = [
        "\"",
        "{",
        "}",
        "[",
        "]",
        ",",
        ":",
        "a b",
        "259",
        "-1",
        "99999999999",
        "null",
        "\n",
        " ",
        "=",
        "YWI= 3\n",
        "\\u0120",
    ];
    fuzz("files", |dice| {
        let mut content = whole[dice.roll(2)].clone();
        for _ in 0..1 + dice.roll(3) {
            let at = dice.roll(content.len() + 1);
            let end = content.len().min(at + dice.roll(12));
            let part = parts[dice.roll(parts.len())].as_bytes().to_vec();
            match dice.roll(5) {
                0 => content.truncate(at),
                1 => drop(content.drain(at..end)),
                2 if at < content.len() => content[at] ^= 1 << dice.roll(8),
                3 => drop(content.splice(at..end, part)),
                _ => drop(content.splice(at..at, part)),
            }
        }
        let Ok(definition) = formats::parse(&content, "gpt2.tiktoken", None) else { return };
        let Ok(encoder) = Encoder::open(&definition) else { return };
        let text = dice.text();
        assert_eq!(encoder.decode(&encoder.encode(&text).unwrap()).unwrap(), text.as_bytes());
    });
}
