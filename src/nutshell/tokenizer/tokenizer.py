"""The tokenizer: byte-level BPE, trained, run and saved in the format that the `tokenizers` library opens."""

from __future__ import annotations

import codecs
import hashlib
import os
import re
import unicodedata
from collections.abc import Callable, Collection, Iterable, Sequence
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np

from nutshell.files import write_text
from nutshell.tokenizer import huggingface
from nutshell.tokenizer.character import CharacterCore, characters_of
from nutshell.tokenizer.feed import check_text, feed, sources

try:
    from nutshell.tokenizer import _bpe
except ImportError as error:
    raise ImportError(
        f"the Rust extension of the tokenizer is not built ({error}); run `make setup`, or `pip install .` with cargo at hand"
    ) from error

SPECIAL_TOKENS = (
    "<|bos|>",
    "<|user_start|>",
    "<|user_end|>",
    "<|assistant_start|>",
    "<|assistant_end|>",
    "<|python_start|>",
    "<|python_end|>",
    "<|output_start|>",
    "<|output_end|>",
)
"""Their ids are the last of the vocabulary, in this order. Text that spells one is encoded as plain text."""

SMALLEST_VOCABULARY = 256 + len(SPECIAL_TOKENS)
TOKENIZER_FILE = "tokenizer.json"
CONFIG_FILE = "tokenizer_config.json"


class Tokenizer:
    """A vocabulary of bytes (ids 0 to 255), merges (from 256 on, in the order learned) and special tokens (at the end).

    >>> tok = Tokenizer.train(["low lower lowest"] * 9, vocab_size=300)
    >>> tok.decode(tok.encode("lower"))
    'lower'
    """

    def __init__(self, merges: Sequence[tuple[int, int]], pattern: str = "nanochat") -> None:
        """`merges[i]` joins two ids into the id 256 + i; `pattern` is a name or a regex (see `train`)."""
        self._open(_bpe.Encoder(list(merges), pattern, SPECIAL_TOKENS))

    def _open(self, core: _bpe.Encoder | CharacterCore) -> None:
        self._core = core
        self.special_tokens: dict[str, int] = dict(core.special)
        self.vocab_size: int = len(core)

    @cached_property
    def bos_id(self) -> int:
        """Id of the special token that begins a document."""
        name = next((name for name in huggingface.BEGINNINGS if name in self.special_tokens), None)
        if name is None:
            known = ", ".join(huggingface.BEGINNINGS)
            raise ValueError(f"the tokenizer has no special token that begins a document; known are {known}")
        return self.special_tokens[name]

    @cached_property
    def end_ids(self) -> list[int]:
        """Ids of the tokens that end a reply; one that begins another document does too."""
        return [*(self.special_tokens[name] for name in huggingface.REPLY_ENDS if name in self.special_tokens), self.bos_id]

    @classmethod
    def train(
        cls,
        texts_or_paths: Iterable[str | os.PathLike[str]] | os.PathLike[str],
        vocab_size: int = 32768,
        pattern: str = "nanochat",
        *,
        threads: int = 0,
        progress: Callable[[str, int], object] | None = None,
    ) -> Tokenizer:
        """Learn a vocabulary of `vocab_size` tokens, the special ones included.

        A `str` is a text; a `pathlib.Path` is a file or a folder of files, which `data/text.py` reads (`.txt` and `.md` as
        one text). `pattern` is `nanochat`, `gpt2`, `cl100k`, `o200k`, `qwen2` or a regex.
        Memory grows with the different words, not with the text. The result depends on neither the order of the
        texts nor `threads` (0: all cores). The pair with the highest count is merged first, among equals the one with
        the lowest left id, then the lowest right id; where the text holds too few pairs, the vocabulary stays smaller.
        `progress(stage, done)` is called with "read" and bytes, then with "merge" and merges.

        Raises ValueError for a vocabulary below 265, a pattern that doesn't compile, text with lone surrogates, an
        unreadable file or no text at all.
        """
        if not isinstance(vocab_size, int) or vocab_size < SMALLEST_VOCABULARY:
            raise ValueError(
                f"vocab_size is {vocab_size!r}, but 256 bytes and {len(SPECIAL_TOKENS)} special tokens take "
                f"{SMALLEST_VOCABULARY}; give a whole number of at least that, for example 4096"
            )
        counter = _bpe.Counter(pattern, threads)
        feed(counter, texts_or_paths, progress)
        if len(counter) == 0:
            raise ValueError("there is no text to train a tokenizer on: every text or file given is empty, or none was given")
        merges = counter.train(vocab_size - SMALLEST_VOCABULARY, progress and (lambda done: progress("merge", done)))
        return cls(merges, pattern)

    @classmethod
    def train_characters(cls, texts_or_paths: Iterable[str | os.PathLike[str]] | os.PathLike[str]) -> Tokenizer:
        """A vocabulary of the characters that the texts and files hold (see `train`), in the order of their code points.

        Characters that are not among them become one id, which is decoded as U+FFFD; a prompt may hold them.

        >>> Tokenizer.train_characters(["hello"]).encode("hole")
        [1, 3, 2, 0]
        """
        return cls._of(CharacterCore(characters_of(sources(texts_or_paths)), SPECIAL_TOKENS))

    @property
    def kind(self) -> str:
        """`bpe`, or `char` where every token is one character."""
        return "char" if isinstance(self._core, CharacterCore) else "bpe"

    def __repr__(self) -> str:
        return f"Tokenizer(vocab_size={self.vocab_size}, pattern={self.pattern!r})"

    def __reduce__(self) -> tuple[Any, ...]:
        return Tokenizer._parse, (self._json.encode(), "a copy of a tokenizer")

    @property
    def pattern(self) -> str:
        """The regex that cuts text into pieces; merges never cross a cut."""
        return self._core.pattern

    @cached_property
    def merges(self) -> tuple[tuple[int, int], ...]:
        """The pairs joined, in order: the i-th makes the id 256 + i."""
        return tuple(self._core.merges)

    def special_id(self, name: str) -> int:
        """Id of a special token."""
        if name not in self.special_tokens:
            raise ValueError(
                f"{name!r} is not a special token; there are {', '.join(self.special_tokens) or 'none'}."
                + " Chats need it: import the model again with --chat, then `nutshell sft`." * (name in SPECIAL_TOKENS)
            )
        return self.special_tokens[name]

    def encode(self, text: str, *, special: Collection[str] = ()) -> list[int]:
        """Ids of a text. Only the special tokens named in `special` are recognised; all others are plain text.

        >>> Tokenizer([]).encode("hi<|bos|>", special=["<|bos|>"])
        [104, 105, 256]
        """
        if special:
            known = {name: self.special_id(name) for name in special}
            parts = re.split("(" + "|".join(map(re.escape, known)) + ")", text)
            return [id for part in parts for id in ([known[part]] if part in known else self.encode(part))]
        try:
            return self._core.encode(unicodedata.normalize("NFC", text) if self._core.nfc else text)
        except (UnicodeEncodeError, TypeError):
            check_text(text)
            raise

    def encode_batch(self, texts: Sequence[str], *, threads: int = 0) -> tuple[np.ndarray, np.ndarray]:
        """Ids of many texts in one flat uint32 array, and N + 1 int64 offsets: those of text i are
        `flat[offsets[i]:offsets[i + 1]]`. Runs on all cores (or `threads`) without the GIL."""
        if isinstance(texts, str):
            raise ValueError("encode_batch takes a list of texts, not one str; use encode for a single text")
        texts = texts if isinstance(texts, list) else list(texts)
        try:
            if self._core.nfc:
                texts = [unicodedata.normalize("NFC", text) for text in texts]
            ids, offsets = self._core.encode_batch(texts, threads)
        except (UnicodeEncodeError, TypeError):
            for index, text in enumerate(texts):
                check_text(text, f"text {index} of the batch")
            raise
        return np.frombuffer(ids, dtype="<u4"), np.frombuffer(offsets, dtype="<i8")

    def decode(self, ids: Sequence[int] | np.ndarray, *, special: bool = False, errors: str = "replace") -> str:
        """Text of ids. Special tokens give no text unless `special` asks to spell them; bytes that are not UTF-8 become
        U+FFFD unless `errors` says otherwise (as in `bytes.decode`)."""
        if special:
            names = {id: name.encode() for name, id in self.special_tokens.items()}
            parts = [names.get(int(id)) or self.decode_bytes([int(id)]) for id in ids]
            return b"".join(parts).decode("utf-8", errors)
        return self.decode_bytes(ids).decode("utf-8", errors)

    def decode_bytes(self, ids: Sequence[int] | np.ndarray) -> bytes:
        """Bytes of ids; special tokens give none."""
        try:
            if isinstance(ids, np.ndarray):
                return self._core.decode_bytes_array(_words(ids))
            return self._core.decode_bytes(ids if isinstance(ids, (list, tuple)) else list(ids))
        except (OverflowError, TypeError) as error:
            wrong = next((id for id in ids if not isinstance(id, (int, np.integer)) or not 0 <= id < 1 << 32), ids)
            raise ValueError(f"{wrong!r} is not a token id; accepted are 0 to {self.vocab_size - 1} ({error})") from None

    @cached_property
    def _tokens(self) -> list[bytes]:
        return self._core.tokens()

    def token_bytes(self, id: int) -> bytes:
        """Bytes of one token; none for a special one."""
        if not 0 <= id < self.vocab_size:
            raise ValueError(f"id {id} is not in the vocabulary: accepted are 0 to {self.vocab_size - 1}")
        return self._tokens[id]

    def token_byte_lengths(self) -> np.ndarray:
        """Bytes of each token as an int64 array (V,), 0 for special tokens: what bits per byte divides by."""
        return np.fromiter(map(len, self._tokens), dtype=np.int64, count=self.vocab_size)

    def stream(self) -> StreamDecoder:
        """A decoder for ids that arrive one at a time."""
        return StreamDecoder(self)

    def split(self, text: str) -> list[str]:
        """The pieces that the pattern cuts a text into, before merging."""
        return self._core.split(check_text(text))

    @cached_property
    def _json(self) -> str:
        core = self._core
        if isinstance(core, CharacterCore):
            return core.dump()
        parts = (self._tokens, core.merges, core.pattern, self.special_tokens)
        return huggingface.dump(*parts, ignore_merges=core.whole_first, nfc=core.nfc)

    @cached_property
    def fingerprint(self) -> str:
        """sha256 of the file `tokenizer.json` that `save` writes; equal tokenizers have equal fingerprints."""
        return hashlib.sha256(self._json.encode()).hexdigest()

    def save(self, folder: str | os.PathLike[str]) -> None:
        """Write `tokenizer.json` and `tokenizer_config.json` (with the chat template) into `folder`."""
        folder = Path(folder)
        folder.mkdir(parents=True, exist_ok=True)
        # tokenizer.json comes last: where it is, the folder is whole.
        write_text(folder / CONFIG_FILE, huggingface.dump_config(self.special_tokens))
        write_text(folder / TOKENIZER_FILE, self._json)

    @classmethod
    def load(cls, path: str | os.PathLike[str], pattern: str | None = None) -> Tokenizer:
        """Open a folder that holds a `tokenizer.json`, such a file of byte-level BPE (ours or another's) or of characters
        (ours), or a rank file of tiktoken. A rank file doesn't say how it splits text: `pattern` does, unless it is named
        like a known one."""
        path = Path(path)
        path = path / TOKENIZER_FILE if path.is_dir() else path
        if not path.is_file():
            raise FileNotFoundError(f"{path} does not exist; give a folder that holds a {TOKENIZER_FILE}")
        return cls._parse(path.read_bytes(), str(path), pattern)

    @classmethod
    def _parse(cls, content: bytes, source: str, pattern: str | None = None) -> Tokenizer:
        return cls._of(CharacterCore.parse(content, source) or _bpe.Encoder.parse(content, source, pattern))

    @classmethod
    def _of(cls, core: _bpe.Encoder | CharacterCore) -> Tokenizer:
        tok = cls.__new__(cls)
        tok._open(core)
        return tok

    def with_special_tokens(self, names: Collection[str] = SPECIAL_TOKENS) -> Tokenizer:
        """This tokenizer with special tokens added at the end; those that it has keep their ids, and so does all text.

        This makes a tokenizer from elsewhere usable for training nutshell's models.
        """
        return self._of(self._core.with_special([names] if isinstance(names, str) else list(names)))


class StreamDecoder:
    """Turns ids into text as they arrive. An incomplete character is held back, so that the texts together are what
    `Tokenizer.decode` gives for all ids at once."""

    def __init__(self, tokenizer: Tokenizer) -> None:
        self._tokenizer = tokenizer
        self._decoder = codecs.getincrementaldecoder("utf-8")("replace")

    def push(self, id: int) -> str:
        """The text that became complete with this id; empty for special tokens."""
        return self._decoder.decode(self._tokenizer.token_bytes(id))

    def flush(self) -> str:
        """What was held back, as U+FFFD. Resets the decoder."""
        text = self._decoder.decode(b"", True)
        self._decoder.reset()
        return text


def _words(ids: np.ndarray) -> bytes:
    """Ids as the bytes of a little-endian uint32 array."""
    if not np.issubdtype(ids.dtype, np.integer) or (ids.size and not 0 <= int(ids.min()) <= int(ids.max()) < 1 << 32):
        raise TypeError(f"expected integers of 32 bits without sign, got {ids.dtype}")
    return ids.astype("<u4", copy=False).tobytes()
