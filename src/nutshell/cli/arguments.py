"""Flags of the small verbs, and the texts and tokenizers they name. Verbs that train take the fields of a recipe (recipe.py)."""

from __future__ import annotations

import argparse
import codecs
import inspect
import os
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from nutshell.tokenizer import Tokenizer


FOLDER = {"metavar": "FOLDER", "help": "run folder, tokenizer folder, tokenizer.json, or a .tiktoken rank file"}
PATTERN = {
    "metavar": "P",
    "help": "split pattern of a rank file whose name does not tell it: gpt2, cl100k, o200k, qwen2, nanochat or a regex",
}


def parse_arguments(verb: str, arguments: list[str], description: str | None, **options: Any) -> argparse.Namespace:
    """Parse the flags of a verb: a name with underscores is a flag, `_name` a positional argument."""
    parser = argparse.ArgumentParser(
        f"nutshell {verb}",
        description=inspect.cleandoc(description or ""),
        epilog="--json prints the result as JSON on standard output.",
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    for name, settings in options.items():
        settings = dict(settings)
        flags = [name[1:]] if name.startswith("_") else [f"--{name.replace('_', '-')}", *settings.pop("short", [])]
        if default := settings.get("default"):
            settings["help"] += f" (default: {' '.join(default) if isinstance(default, list) else default})"
        parser.add_argument(*flags, **settings)
    return parser.parse_intermixed_args(arguments)


def typed(text: str) -> str:
    """The text of a flag. UTF-8 that the locale does not know (LC_ALL=C) comes as half surrogates."""
    try:
        text.encode()
    except UnicodeEncodeError:
        return text.encode(errors="surrogateescape").decode(errors="surrogateescape")
    return text


def check_output(flag: str, path: Path, *, folder: bool = False) -> None:
    """OSError where `path` can't be written, as a file or a folder: to be seen before anything is computed."""
    if path.exists() and path.is_dir() != folder:
        is_a, give = ("a file", "a folder") if folder else ("a folder", "a file")
        raise FileExistsError(f"{flag} {path} is {is_a}; give {give}")
    parent = next(place for place in (*([path] if folder else []), *path.absolute().parents) if place.exists())
    if not parent.is_dir() or not os.access(parent, os.W_OK):
        raise PermissionError(f"{flag} {path} can't be written: {parent} is no folder that this user may write to")


def read_text(file: str) -> str:
    """The text of a file, or of standard input for -, to the byte: no line end is translated."""
    if file == "-":
        return utf8(sys.stdin.buffer.read(), "standard input")
    return utf8(existing(file).read_bytes(), file)


def existing(file: str) -> Path:
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


def open_tokenizer(folder: str, pattern: str | None = None) -> Tokenizer:
    """The tokenizer of a run, or what `Tokenizer.load` opens."""
    from nutshell.tokenizer import Tokenizer

    path = Path(folder)
    return Tokenizer.load(path / "tokenizer" if (path / "tokenizer").is_dir() else path, pattern)
