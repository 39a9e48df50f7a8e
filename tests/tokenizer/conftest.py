"""A small trained tokenizer, and where the real text lies."""

import os
from pathlib import Path

import pytest

from nutshell.tokenizer import Tokenizer

CORPUS = [
    "The quick brown fox jumps over the lazy dog. It's what they'll say, isn't it?\n\n",
    "def add(left, right):\n    return left + right  # 12345 + 678\n",
    "Zwölf Boxkämpfer jagen Viktor quer über den großen Sylter Deich. 漢字かな交じり文、한국어 🙂👩‍👩‍👧\r\n",
    "the cat sat on the mat and the other cat sat there, then both ran to the theatre. aaaaaaa ababab",
] * 5


@pytest.fixture(scope="session")
def tok() -> Tokenizer:
    return Tokenizer.train(CORPUS, vocab_size=420)


@pytest.fixture(scope="session")
def real_text() -> Path:
    root = Path(__file__).parents[2]
    folder = Path(os.environ.get("NUTSHELL_DATA", root / ".." / "shared" / "data"))
    if not (folder / "tok").is_dir():
        pytest.skip(f"needs the real text in {folder} (set NUTSHELL_DATA)")
    return folder
