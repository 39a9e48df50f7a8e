"""What the verbs of `nutshell tokenizer` share: their parser, what they read and open, whether they colour."""

from __future__ import annotations

import argparse
import codecs
import os
import sys
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from nutshell.tokenizer import Tokenizer

ACTIONS = {
    "train": "Train a tokenizer on text files, or a run's tokenizer from a recipe.",
    "encode": "Print the token ids of a text.",
    "decode": "Print the text of token ids.",
    "show": "Print a text with its tokens in colours.",
    "eval": "Print bytes per token on many kinds of text, side by side with other tokenizers.",
}
FOLDER = "run folder, tokenizer folder, tokenizer.json, or a .tiktoken rank file"
PATTERN = "split pattern of a rank file whose name does not tell it: gpt2, cl100k, o200k, qwen2, nanochat or a regex"
_JSON = "--json prints the result as JSON on standard output."


def parser_of(action: str, usage: str, epilog: str = "") -> argparse.ArgumentParser:
    """A parser for one of `ACTIONS`, without its arguments."""
    return argparse.ArgumentParser(
        f"nutshell tokenizer {action}",
        usage=f"nutshell tokenizer {action} {usage}",
        description=ACTIONS[action],
        epilog=f"{epilog}\n{_JSON}" if epilog else _JSON,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )


def open_tokenizer(folder: str, pattern: str | None = None) -> Tokenizer:
    """The tokenizer of a run, or what `Tokenizer.load` opens."""
    from nutshell.tokenizer import Tokenizer

    path = Path(folder)
    path = path / "tokenizer" if (path / "tokenizer").is_dir() else path
    return Tokenizer.load(path, pattern)


def read(given: str | None, file: str | None, name: str) -> str:
    """The text given as an argument, or that of a file or of standard input, to the byte: no line end is translated."""
    if (given is None) == (file is None):
        raise ValueError(f"give one of: {name} as an argument, - for standard input, or --file PATH")
    if given is not None and given != "-":
        return given
    if file is None or file == "-":
        what, content = "standard input", sys.stdin.buffer.read()
    else:
        what, content = file, existing(file).read_bytes()
    return utf8(content, what)


def existing(file: str) -> Path:
    """The path of a file that is there."""
    path = Path(file)
    if not path.exists():
        raise FileNotFoundError(f"{path} does not exist")
    if path.is_dir():
        raise IsADirectoryError(f"{path} is a folder; give a file")
    return path


def utf8(content: bytes, what: str, *, final: bool = True) -> str:
    """Text of bytes; without `final` a character that is cut at the end is left out."""
    try:
        return codecs.getincrementaldecoder("utf-8")().decode(content, final)
    except UnicodeDecodeError as error:
        raise ValueError(f"{what} is not UTF-8 text (byte {error.start} is 0x{content[error.start]:02x}); convert it") from None


def in_colour(when: str = "auto") -> bool:
    """Whether to colour what goes to standard output (https://no-color.org)."""
    if when != "auto":
        return when == "always"
    return sys.stdout.isatty() and not os.environ.get("NO_COLOR") and os.environ.get("TERM") != "dumb"
