//! Each hand-written scanner against its regex in fancy-regex.

use nutshell_bpe::split::{self, Splitter};
use rayon::prelude::*;

fn pieces<'t>(splitter: &Splitter, text: &'t str) -> Vec<&'t [u8]> {
    let mut pieces = Vec::new();
    splitter.for_each(text, |piece| pieces.push(piece)).unwrap();
    pieces
}

/// Patterns by name and, where files of other tools spell one differently, in that spelling.
fn patterns() -> Vec<(Splitter, Splitter)> {
    let others = [
        // tiktoken's cl100k and GPT-2, and Llama 3's, which ends texts as Qwen2's does.
        r"'(?i:[sdmt]|ll|ve|re)|[^\r\n\p{L}\p{N}]?+\p{L}++|\p{N}{1,3}+| ?[^\s\p{L}\p{N}]++[\r\n]*+|\s++$|\s*[\r\n]|\s+(?!\S)|\s",
        r"'(?:[sdmt]|ll|ve|re)| ?\p{L}++| ?\p{N}++| ?[^\s\p{L}\p{N}]++|\s++$|\s+(?!\S)|\s",
        r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+",
    ];
    split::NAMES
        .into_iter()
        .chain(others)
        .map(|name| {
            let scanner = Splitter::new(name).unwrap();
            assert!(scanner.is_scanner(), "{name}");
            let regex = Splitter::regex(scanner.pattern()).unwrap();
            assert!(!regex.is_scanner());
            (scanner, regex)
        })
        .collect()
}

fn assert_same(patterns: &[(Splitter, Splitter)], text: &str) {
    for (scanner, regex) in patterns {
        let (ours, theirs) = (pieces(scanner, text), pieces(regex, text));
        if ours != theirs {
            let first = ours.iter().zip(&theirs).position(|(a, b)| a != b).unwrap_or(0);
            let show = |pieces: &[&[u8]]| {
                let near = &pieces[first.saturating_sub(2)..pieces.len().min(first + 3)];
                near.iter().map(|piece| String::from_utf8_lossy(piece).into_owned()).collect::<Vec<_>>()
            };
            panic!("{}\nscanner {:?}\nregex   {:?}", scanner.pattern(), show(&ours), show(&theirs));
        }
        assert_eq!(ours.concat(), text.as_bytes());
    }
}

#[test]
fn every_code_point_in_context() {
    let assigned = fancy_regex::Regex::new(r"^[\p{L}\p{M}\p{N}\p{P}\p{S}\p{Z}\p{Cc}\p{Cf}]$").unwrap();
    let code_points: Vec<char> = ('\0'..=char::MAX).collect();
    code_points.par_chunks(4096).for_each_init(patterns, |patterns, block| {
        // Many short contexts in one text: one call each would cost more than the matching.
        let mut text = String::new();
        for &c in block {
            text.push_str(&format!("a{c}a {c}"));
            if assigned.is_match(c.encode_utf8(&mut [0; 4])).unwrap() {
                text.push_str(&format!(
                    "'{c} '{c}e{c}'s\n{c}\n1{c}1 !{c}! {c}{c}  {c}A{c}B {c}Ab\t{c}\u{301}a\r\n{c}b{c}\u{3000}{c}A\u{301}{c}/{c}\n "
                ));
            }
        }
        assert_same(patterns, &text);
        assert_same(patterns, &block[0].to_string());
    });
}

const ALPHABET: [char; 18] =
    ['a', 'B', 's', 'L', 'ſ', 'é', 'ǅ', '漢', '\u{301}', '1', '½', ' ', '\t', '\n', '\r', '\'', '/', '\u{a0}'];

#[test]
fn every_short_text_over_all_kinds_of_characters() {
    let count = ALPHABET.len();
    for length in 0..=4u32 {
        (0..count.pow(length)).into_par_iter().with_min_len(4096).for_each_init(
            || (patterns(), String::new()),
            |(patterns, text), mut number| {
                text.clear();
                for _ in 0..length {
                    text.push(ALPHABET[number % count]);
                    number /= count;
                }
                assert_same(patterns, text);
            },
        );
    }
}

#[test]
fn random_longer_texts() {
    (0..40u64).into_par_iter().for_each_init(patterns, |patterns, seed| {
        let mut state = seed;
        let mut next = |bound: usize| {
            state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
            (state >> 33) as usize % bound
        };
        for _ in 0..1000 {
            // A few characters a text, so that runs and repeated alternatives come up often.
            let few: Vec<char> = (0..1 + next(5)).map(|_| ALPHABET[next(ALPHABET.len())]).collect();
            let text: String = (0..next(30)).map(|_| few[next(few.len())]).collect();
            assert_same(patterns, &text);
        }
    });
}

#[test]
fn cutting_a_text_changes_no_piece() {
    let words = ["the", " a", "\n", " ", "\r\n", "12", "!?", "it's", "漢字", "/", "x.\n", "\n/b", "é\n", "  c"];
    let mut state = 3u64;
    let mut next = |bound: usize| {
        state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        (state >> 33) as usize % bound
    };
    let patterns = patterns();
    for _ in 0..3000 {
        let text: String = (0..next(20)).map(|_| words[next(words.len())]).collect();
        for (scanner, _) in &patterns {
            let whole = pieces(scanner, &text);
            for size in 1..6 {
                let parts: Vec<&[u8]> =
                    split::chunks(&text, size).into_iter().flat_map(|p| pieces(scanner, p)).collect();
                assert_eq!(parts, whole, "{text:?} cut by {size}, {}", scanner.pattern());
            }
        }
    }
}

#[test]
fn what_a_regex_leaves_out_is_a_piece() {
    let splitter = Splitter::new(r"\d+").unwrap();
    assert_eq!(pieces(&splitter, "ab12c3"), [&b"ab"[..], b"12", b"c", b"3"]);
    assert_eq!(pieces(&Splitter::new("x*").unwrap(), "axxb").concat(), b"axxb");
}

#[test]
fn patterns_that_fail_say_so() {
    let message = Splitter::new("(unclosed").unwrap_err().to_string();
    assert!(message.contains("(unclosed") && message.contains("nanochat, gpt2"), "{message}");
    let exploding = Splitter::new(r"(a+a+)+\1(?=b)").unwrap();
    let message = exploding.for_each(&"a".repeat(64), |_| ()).unwrap_err().to_string();
    assert!(message.contains("at byte 0"), "{message}");
}
