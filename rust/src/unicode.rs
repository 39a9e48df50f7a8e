//! Which kind of character a code point is, from the same Unicode tables as the regex engine's.

use std::sync::OnceLock;

/// `\p{Lu}` or `\p{Lt}`: opens a word in o200k.
pub const UPPER: u8 = 1;
/// `\p{Ll}`.
pub const LOWER: u8 = 2;
/// `\p{Lm}` or `\p{Lo}`: a letter without case.
pub const CASELESS: u8 = 4;
/// `\p{M}`.
pub const MARK: u8 = 8;
/// `\p{N}`.
pub const NUMBER: u8 = 16;
/// `\s`, line ends included.
pub const SPACE: u8 = 32;
/// `[\r\n]`, besides [`SPACE`].
pub const NEWLINE: u8 = 64;
/// `\p{L}`.
pub const LETTER: u8 = UPPER | LOWER | CASELESS;

const BLOCK: usize = 256;
const BLOCKS: usize = 0x11_0000 / BLOCK;

/// Two-stage table over all code points: block number, then kind. Most blocks are alike, so it
/// takes some 60 KB.
pub struct Kinds {
    ascii: [u8; 128],
    block_of: Vec<u16>,
    kinds: Vec<u8>,
}

fn ranges(class: &str) -> Vec<(usize, usize)> {
    let hir = regex_syntax::parse(class).expect("a fixed Unicode class parses");
    match hir.kind() {
        regex_syntax::hir::HirKind::Class(regex_syntax::hir::Class::Unicode(found)) => {
            found.ranges().iter().map(|range| (range.start() as usize, range.end() as usize)).collect()
        }
        other => unreachable!("{class} is not a class of characters: {other:?}"),
    }
}

impl Kinds {
    fn build() -> Self {
        let mut flat = vec![0u8; 0x11_0000];
        let classes = [
            (r"[\p{Lu}\p{Lt}]", UPPER),
            (r"\p{Ll}", LOWER),
            (r"[\p{Lm}\p{Lo}]", CASELESS),
            (r"\p{M}", MARK),
            (r"\p{N}", NUMBER),
            (r"\s", SPACE),
            (r"[\r\n]", NEWLINE),
        ];
        for (class, bit) in classes {
            for (first, last) in ranges(class) {
                flat[first..=last].iter_mut().for_each(|kind| *kind |= bit);
            }
        }
        let mut ascii = [0u8; 128];
        ascii.copy_from_slice(&flat[..128]);
        let mut block_of = Vec::with_capacity(BLOCKS);
        let mut kinds: Vec<u8> = Vec::new();
        for block in flat.chunks_exact(BLOCK) {
            let known = kinds.chunks_exact(BLOCK).position(|other| other == block);
            block_of.push(known.unwrap_or(kinds.len() / BLOCK) as u16);
            if known.is_none() {
                kinds.extend_from_slice(block);
            }
        }
        Kinds { ascii, block_of, kinds }
    }

    /// The table, built on first use.
    pub fn get() -> &'static Kinds {
        static KINDS: OnceLock<Kinds> = OnceLock::new();
        KINDS.get_or_init(Kinds::build)
    }

    /// Kind of a code point.
    #[inline]
    pub fn of(&self, code: u32) -> u8 {
        let block = usize::from(self.block_of[code as usize / BLOCK]);
        self.kinds[block * BLOCK + code as usize % BLOCK]
    }

    /// Kind and length in bytes of the character that starts at `at`; `(0, 0)` at the end. `bytes`
    /// are those of a `str`, and `at` is a character boundary.
    #[inline(always)]
    pub fn at(&self, bytes: &[u8], at: usize) -> (u8, usize) {
        match bytes.get(at) {
            None => (0, 0),
            Some(&byte) if byte < 128 => (self.ascii[usize::from(byte)], 1),
            Some(&byte) => self.wide(bytes, at, byte),
        }
    }

    #[inline]
    fn wide(&self, bytes: &[u8], at: usize, first: u8) -> (u8, usize) {
        let tail = |i: usize| u32::from(bytes[at + i] & 0x3F);
        let first32 = u32::from(first);
        let (code, length) = match first {
            0..=0xDF => ((first32 & 0x1F) << 6 | tail(1), 2),
            0xE0..=0xEF => ((first32 & 0x0F) << 12 | tail(1) << 6 | tail(2), 3),
            _ => ((first32 & 0x07) << 18 | tail(1) << 12 | tail(2) << 6 | tail(3), 4),
        };
        (self.of(code), length)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_character_has_the_kind_its_class_says() {
        let kinds = Kinds::get();
        let mut buffer = [0u8; 4];
        for character in '\0'..=char::MAX {
            let bytes = character.encode_utf8(&mut buffer).as_bytes();
            assert_eq!(kinds.at(bytes, 0), (kinds.of(character as u32), bytes.len()));
            assert_eq!(kinds.of(character as u32) & SPACE != 0, character.is_whitespace());
        }
        assert_eq!(kinds.of('ß' as u32), LOWER);
        assert_eq!(kinds.of('ǅ' as u32), UPPER);
        assert_eq!(kinds.of('漢' as u32), CASELESS);
        assert_eq!(kinds.of('½' as u32), NUMBER);
        assert_eq!(kinds.of('\u{301}' as u32), MARK);
        assert_eq!(kinds.of('\n' as u32), SPACE | NEWLINE);
        assert_eq!(kinds.of('!' as u32), 0);
        assert_eq!(kinds.at(b"", 0), (0, 0));
    }
}
