//! The files that other tokenizers come in: `tokenizer.json` of Hugging Face, and tiktoken's lists of
//! tokens with their ranks.

mod huggingface;
mod json;
mod tiktoken;

use crate::{Definition, Error};

/// The highest id that the tables of [`crate::Encoder`] hold. A file is refused for its id before a list that
/// long is made.
const MAX_ID: u32 = crate::hash::MAX_ID as u32 - 1;

/// Reads a tokenizer from the content of a file. What kind of file it is, its content says; `source`
/// names it in errors. A rank file doesn't hold its split pattern: `pattern` gives it, else a `source`
/// that is named like a known one.
pub fn parse(content: &[u8], source: &str, pattern: Option<&str>) -> Result<Definition, Error> {
    let definition = match content.trim_ascii_start() {
        [] => Err("the file is empty".to_string()),
        json @ [b'{', ..] => huggingface::parse(json, pattern),
        lines if tiktoken::looks_like(lines) => tiktoken::parse(content, source, pattern),
        [b'v', ..] if content.starts_with(b"version https://git-lfs") => {
            Err("this is what Git keeps in place of a large file; fetch the file itself with `git lfs pull`"
                .to_string())
        }
        other => Err(format!(
            "it starts with \"{}\", which is neither JSON nor a line of base64 and rank",
            other[..other.len().min(20)].escape_ascii()
        )),
    };
    definition.and_then(check_bytes).map_err(|reason| Error::Format { source: source.to_string(), reason })
}

/// Every text can be spelled only where each byte has its token.
fn check_bytes(definition: Definition) -> Result<Definition, String> {
    let mut there = [false; 256];
    for token in &definition.tokens {
        if let [byte] = token[..] {
            there[usize::from(byte)] = true;
        }
    }
    match there.iter().position(|there| !there) {
        None => Ok(definition),
        Some(byte) => {
            Err(format!("no token stands for the byte 0x{byte:02X}; byte-level BPE has one for each of the 256"))
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_no_tokenizer_is_refused_by_name() {
        for (content, expected) in [
            (&b" \n"[..], "the file is empty"),
            (b"\n\x0e\n\x05<unk>", "it starts with \"\\x0e\\n\\x05<unk>\", which is neither JSON nor"),
            (b"version https://git-lfs.github.com/spec/v1\n", "git lfs pull"),
            (b"{", "not JSON"),
            (b"#version: 0.2\n", "neither JSON nor a line of base64"),
        ] {
            let message = parse(content, "some/file", None).unwrap_err().to_string();
            assert!(message.starts_with("some/file: ") && message.contains(expected), "{message}");
            assert!(message.contains("supported are"), "{message}");
        }
    }
}
