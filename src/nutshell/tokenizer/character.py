"""The character-level vocabulary, as nanoGPT's Shakespeare has it: one id for each character that the text holds.

It stands where `Tokenizer` has its core in Rust, which can't do without the 256 bytes; all that reads a tokenizer takes both.
"""

from __future__ import annotations

import json
import os
import re
from collections.abc import Iterable, Sequence
from pathlib import Path

import numpy as np

from nutshell.tokenizer.huggingface import added_token

UNKNOWN = "\ufffd"
"""Stands for every character that is not in the vocabulary, and is decoded as what it is: the replacement character."""


class CharacterCore:
    """Ids of characters (Unicode code points) in their order, then of special tokens."""

    pattern = r"[\s\S]"
    merges: tuple[tuple[int, int], ...] = ()
    nfc = whole_first = False

    def __init__(self, characters: Iterable[str], special: Sequence[str]) -> None:
        self.characters = sorted({*characters, UNKNOWN})
        self.special = [(name, len(self.characters) + index) for index, name in enumerate(special)]
        points = np.array([ord(character) for character in self.characters])
        # The id of every code point up to one above the largest, which stands for all that are larger.
        self._ids = np.full(points[-1] + 2, self.characters.index(UNKNOWN), dtype="<u4")
        self._ids[points] = np.arange(len(points))
        self._tokens = [*(character.encode() for character in self.characters), *(b"" for _ in self.special)]

    def __len__(self) -> int:
        return len(self.characters) + len(self.special)

    def _encoded(self, text: str) -> np.ndarray:
        points = np.frombuffer(str.encode(text, "utf-32-le"), dtype="<u4")
        return self._ids[np.minimum(points, len(self._ids) - 1)]

    def encode(self, text: str) -> list[int]:
        return self._encoded(text).tolist()

    def encode_batch(self, texts: Sequence[str], threads: int = 0) -> tuple[bytes, bytes]:
        """Ids as uint32 and N + 1 offsets as int64, little-endian. One look-up a character leaves `threads` nothing to do."""
        offsets = np.cumsum([0, *map(len, texts)], dtype="<i8")
        return self._encoded("".join(texts)).tobytes(), offsets.tobytes()

    def decode_bytes(self, ids: Sequence[int]) -> bytes:
        tokens = self._tokens
        wrong = next((id for id in ids if not 0 <= id < len(tokens)), None)
        if wrong is not None:
            raise ValueError(f"id {wrong} is not in the vocabulary: accepted are 0 to {len(tokens) - 1}")
        return b"".join([tokens[id] for id in ids])

    def decode_bytes_array(self, ids: bytes) -> bytes:
        return self.decode_bytes(np.frombuffer(ids, dtype="<u4").tolist())

    def tokens(self) -> list[bytes]:
        return self._tokens

    def split(self, text: str) -> list[str]:
        return list(text)

    def with_special(self, names: Sequence[str]) -> CharacterCore:
        known = [name for name, _ in self.special]
        return CharacterCore(self.characters, [*known, *(name for name in names if name not in known)])

    def dump(self) -> str:
        """Content of a `tokenizer.json` that the `tokenizers` library opens with the same ids."""
        split = {"type": "Split", "pattern": {"Regex": self.pattern}, "behavior": "Isolated", "invert": False}
        content = {
            "version": "1.0",
            "truncation": None,
            "padding": None,
            "added_tokens": [{"id": id, **added_token(name)} for name, id in self.special],
            "normalizer": None,
            "pre_tokenizer": split,
            "post_processor": None,
            "decoder": {"type": "Fuse"},
            "model": {
                "type": "WordLevel",
                "vocab": {character: id for id, character in enumerate(self.characters)},
                "unk_token": UNKNOWN,
            },
        }
        return json.dumps(content, ensure_ascii=False, indent=0) + "\n"

    @classmethod
    def parse(cls, content: bytes, source: str) -> CharacterCore | None:
        """The vocabulary of a file that `dump` wrote; None for a file of another kind of tokenizer.

        ValueError where a file of whole words is no vocabulary of characters.
        """
        if not re.search(rb'"type"\s*:\s*"WordLevel"', content):
            return None
        try:
            found = json.loads(content)
            if found["model"].get("type") != "WordLevel":
                return None
            vocabulary, added = found["model"]["vocab"], found["added_tokens"]
            core = cls(vocabulary, [token["content"] for token in added])
        except (ValueError, KeyError, TypeError, AttributeError):
            core = None
        if core is None or json.loads(core.dump()) != found:
            raise ValueError(
                f"{source} holds a vocabulary of whole words. Accepted: byte-level BPE, or characters as "
                "`nutshell tokenizer train --kind char` writes them."
            )
        return core


def characters_of(source: Iterable[str | os.PathLike[str]]) -> set[str]:
    """The characters of texts (`str`) and of files and folders (`pathlib.Path`). ValueError where there are none."""
    from nutshell.data.text import find_text, read_file
    from nutshell.tokenizer.feed import check_text

    found: set[str] = set()
    for item in source:
        for text in [item] if isinstance(item, str) else (t for file in find_text(Path(item)).train for t in read_file(file)):
            found.update(check_text(text, "a text to train on"))
    if not found:
        raise ValueError("there is no text to take characters from: every text or file given is empty, or none was given")
    return found
