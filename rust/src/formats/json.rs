//! The parts of a `tokenizer.json` that count, as serde reads them. The vocabulary and the merges are
//! most of the file, so they keep pointing into its text.

use std::borrow::Cow;
use std::fmt;

use serde::de::{Error, IgnoredAny, MapAccess, SeqAccess, Visitor};
use serde::{Deserialize, Deserializer};
use serde_json::Value;

#[derive(Deserialize)]
pub(super) struct File<'f> {
    pub added_tokens: Option<Vec<Added>>,
    #[serde(default)]
    pub normalizer: Value,
    #[serde(default)]
    pub pre_tokenizer: Value,
    #[serde(borrow)]
    pub model: Option<Model<'f>>,
}

#[derive(Deserialize)]
pub(super) struct Added {
    pub id: u32,
    pub content: String,
    #[serde(default)]
    pub special: bool,
}

#[derive(Deserialize)]
pub(super) struct Model<'f> {
    #[serde(rename = "type")]
    pub kind: Option<String>,
    #[serde(borrow, default)]
    pub vocab: Names<'f>,
    #[serde(borrow, default)]
    pub merges: Pairs<'f>,
    pub dropout: Option<f64>,
    pub continuing_subword_prefix: Option<String>,
    pub end_of_word_suffix: Option<String>,
    #[serde(default)]
    pub ignore_merges: bool,
}

/// Names with their ids, in the order of the file.
#[derive(Default)]
pub(super) struct Names<'f> {
    pub entries: Vec<(Cow<'f, str>, u32)>,
    /// Whether it is a list: so the vocabulary of other models is written.
    pub is_list: bool,
}

/// What a merge joins.
pub(super) struct Pair<'f>(pub Cow<'f, str>, pub Cow<'f, str>);

#[derive(Default)]
pub(super) struct Pairs<'f>(pub Vec<Pair<'f>>);

/// A string that lies in the file as it is, or with escapes undone.
#[derive(Deserialize)]
struct Text<'f>(#[serde(borrow)] Cow<'f, str>);

impl<'de: 'f, 'f> Deserialize<'de> for Names<'f> {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct Reader;
        impl<'f> Visitor<'f> for Reader {
            type Value = Names<'f>;

            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("tokens with their ids")
            }

            fn visit_map<A: MapAccess<'f>>(self, mut map: A) -> Result<Names<'f>, A::Error> {
                let mut entries = Vec::with_capacity(1 << 16);
                while let Some((Text(name), id)) = map.next_entry()? {
                    entries.push((name, id));
                }
                Ok(Names { entries, is_list: false })
            }

            fn visit_seq<A: SeqAccess<'f>>(self, mut list: A) -> Result<Names<'f>, A::Error> {
                while list.next_element::<IgnoredAny>()?.is_some() {}
                Ok(Names { entries: vec![], is_list: true })
            }
        }
        deserializer.deserialize_any(Reader)
    }
}

impl<'de: 'f, 'f> Deserialize<'de> for Pairs<'f> {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct Reader;
        impl<'f> Visitor<'f> for Reader {
            type Value = Pairs<'f>;

            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("a list of merges")
            }

            fn visit_seq<A: SeqAccess<'f>>(self, mut list: A) -> Result<Pairs<'f>, A::Error> {
                let mut pairs = Vec::with_capacity(1 << 16);
                while let Some(pair) = list.next_element()? {
                    pairs.push(pair);
                }
                Ok(Pairs(pairs))
            }
        }
        deserializer.deserialize_seq(Reader)
    }
}

impl<'de: 'f, 'f> Deserialize<'de> for Pair<'f> {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct Reader;

        /// The two sides of `left right`.
        fn sides<E: Error>(line: &str) -> Result<(&str, &str), E> {
            match line.split_once(' ') {
                Some((left, right)) if !right.contains(' ') => Ok((left, right)),
                _ => Err(E::custom(format!("the merge {line:?} is not two tokens with a space between them"))),
            }
        }

        impl<'f> Visitor<'f> for Reader {
            type Value = Pair<'f>;

            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("a merge: two tokens in a list, or in one string with a space between them")
            }

            fn visit_borrowed_str<E: Error>(self, line: &'f str) -> Result<Pair<'f>, E> {
                let (left, right) = sides(line)?;
                Ok(Pair(left.into(), right.into()))
            }

            fn visit_str<E: Error>(self, line: &str) -> Result<Pair<'f>, E> {
                let (left, right) = sides(line)?;
                Ok(Pair(left.to_string().into(), right.to_string().into()))
            }

            fn visit_seq<A: SeqAccess<'f>>(self, mut list: A) -> Result<Pair<'f>, A::Error> {
                let sides = (list.next_element()?, list.next_element()?, list.next_element::<IgnoredAny>()?);
                match sides {
                    (Some(Text(left)), Some(Text(right)), None) => Ok(Pair(left, right)),
                    _ => Err(A::Error::custom("a merge is not a list of two tokens")),
                }
            }
        }
        deserializer.deserialize_any(Reader)
    }
}
