"""What `nutshell tokenizer show` and `eval` print: tokens in colours, and bytes per token side by side."""

from __future__ import annotations

import os
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

if TYPE_CHECKING:
    from nutshell.tokenizer import Tokenizer

# Backgrounds that stay readable in light and dark terminals, with black text; neighbours always differ.
_COLOURS = (159, 223, 157, 218, 189)
_SPECIAL = "\x1b[1;97;48;5;60m"  # white on slate, which ordinary tokens never have
_DIM, _GREEN, _RED, _END = "\x1b[2m", "\x1b[32m", "\x1b[31m", "\x1b[0m"
SEPARATOR = "│"
"""Stands between tokens where there are no colours. Not "|", which code and special tokens hold."""

SAMPLES = ("news", "code", "korean", "chinese", "maths", "science")


def show(tok: Tokenizer, ids: Sequence[int], *, colour: bool = True) -> str:
    """The text of `ids` with each token on a background of its own (ANSI, 256 colours).

    A line end is drawn as ⏎ before it breaks the line. Without `colour`, "│" stands between tokens.
    """
    parts: list[str] = []
    for index, id in enumerate(ids):
        if not colour and parts and not parts[-1].endswith("\n"):
            parts.append(SEPARATOR)
        # Colours end with each line, else terminals paint the rest of it.
        start, end = _colours(tok, index, id, colour)
        lines = spell(tok, id).split("\n")
        parts.append(f"{start}⏎{end}\n".join(f"{start}{line}{end}" if line else "" for line in lines))
    return "".join(parts)


def show_ids(tok: Tokenizer, ids: Sequence[int], *, colour: bool = True, width: int = 80) -> str:
    """As `show`, but in rows of at most `width` columns with each token's id below it.

    Without `colour` a space in a token is drawn as "·", so that it can't be taken for the gap between two columns.
    """
    from rich.cells import cell_len

    rows = [("", "")]
    used = 0
    for index, id in enumerate(ids):
        spelled = spell(tok, id)
        cell = spelled.replace("\n", "⏎") if colour else spelled.replace("\n", "⏎").replace(" ", "·")
        columns = max(cell_len(cell), len(str(id)))
        if used and used + columns > width:
            rows.append(("", ""))
            used = 0
        start, end = _colours(tok, index, id, colour)
        above, below = rows[-1]
        rows[-1] = (f"{above}{start}{cell}{end}{' ' * (columns - cell_len(cell) + 1)}", f"{below}{id:<{columns + 1}}")
        used += columns + 1
        if spelled.endswith("\n"):
            rows.append(("", ""))
            used = 0
    dim, end = (_DIM, _END) if colour else ("", "")
    return "\n".join(f"{above.rstrip()}\n{dim}{below.rstrip()}{end}" for above, below in rows if below)


def spell(tok: Tokenizer, id: int) -> str:
    """One token for people: its text, a special token's name, the bytes of a cut character as hex."""
    token = tok.token_bytes(id)
    if not token:
        return next((name for name, special in tok.special_tokens.items() if special == id), "")
    try:
        spelled = token.decode()
    except UnicodeDecodeError:
        return "".join(chr(byte) if 32 <= byte < 127 else f"\\x{byte:02x}" for byte in token)
    return "".join(c if c.isprintable() or c == "\n" else _hex(c) for c in spelled)


def _hex(character: str) -> str:
    """A control character as hex, so that text can't steer the terminal."""
    return "".join(f"\\x{byte:02x}" for byte in character.encode())


def _colours(tok: Tokenizer, index: int, id: int, colour: bool) -> tuple[str, str]:
    """The codes that begin and end the background of the token at `index`."""
    if not colour:
        return "", ""
    return (f"\x1b[30;48;5;{_COLOURS[index % len(_COLOURS)]}m" if tok.token_bytes(id) else _SPECIAL), _END


# ---- compression ---------------------------------------------------------------------------------------------------


def samples() -> dict[str, list[str]]:
    """The texts that every tokenizer is measured on: a page each of news, Python and C, Korean, Chinese, LaTeX, science."""
    folder = Path(__file__).parent / "samples"
    return {name: [(folder / f"{name}.txt").read_bytes().decode("utf-8")] for name in SAMPLES}


def measure(tokenizers: Mapping[str, Tokenizer], texts: Mapping[str, Sequence[str]]) -> dict[str, dict[str, Any]]:
    """For each text, given as documents: its `bytes`, and by tokenizer the `tokens` and `bytes_per_token`.

    `saved_percent` says how many percent fewer tokens the first tokenizer makes than each other one; below 0 it makes more.
    """
    measured = {}
    for name, documents in texts.items():
        size = sum(len(document.encode()) for document in documents)
        tokens = {label: len(tok.encode_batch(documents)[0]) for label, tok in tokenizers.items()}
        first, *others = tokens
        measured[name] = {
            "bytes": size,
            "tokens": tokens,
            "bytes_per_token": {label: size / count if count else 0.0 for label, count in tokens.items()},
            "saved_percent": {label: 100 * (1 - tokens[first] / tokens[label]) if tokens[label] else 0.0 for label in others},
        }
    return measured


def table(measured: Mapping[str, dict[str, Any]], vocab_sizes: Mapping[str, int], *, colour: bool = False) -> str:
    """What `measure` found as aligned text, a column for each tokenizer and what the first one saves against the others."""
    from rich.cells import cell_len

    first, *others = vocab_sizes
    rows = [["", "bytes", first], ["vocabulary", "", f"{vocab_sizes[first]:,}"]]
    for other in others:
        rows[0] += [other, "saved"]
        rows[1] += [f"{vocab_sizes[other]:,}", ""]
    for name, text in measured.items():
        row = [name, f"{text['bytes']:,}", f"{text['bytes_per_token'][first]:.3f}"]
        for other in others:
            saved = text["saved_percent"][other]
            row += [f"{text['bytes_per_token'][other]:.3f}", f"{saved:+.1f}%" if round(saved, 1) else "0.0%"]
        rows.append(row)
    widths = [max(cell_len(row[column]) for row in rows) for column in range(len(rows[0]))]

    def cell(column: int, value: str) -> str:
        gap = " " * (widths[column] - cell_len(value))
        if colour and column >= 4 and value[:1] in ("+", "-"):
            value = f"{_RED if value.startswith('-') else _GREEN}{value}{_END}"
        return value + gap if column == 0 else gap + value

    lines = ["Bytes of UTF-8 per token: higher is better."]
    if others:
        lines.append(f"saved: how many percent fewer tokens {first} makes than the tokenizer left of it; below 0 it makes more.")
    return "\n".join([*lines, "", *("  ".join(cell(*pair) for pair in enumerate(row)).rstrip() for row in rows)])


# ---- rank files of known tokenizers --------------------------------------------------------------------------------


class Known(NamedTuple):
    """A tokenizer that many know, measured where its rank file is at hand."""

    label: str
    pattern: str
    files: tuple[str, ...]
    """Names of its rank file."""
    cached: str
    """Its name in tiktoken's cache: the sha1 of the address that tiktoken fetches it from."""


KNOWN = (
    Known("GPT-2", "gpt2", ("gpt2.tiktoken", "r50k_base.tiktoken"), "0ea1e91bbb3a60f729a8dc8f777fd2fc07cd8df4"),
    Known("GPT-4", "cl100k", ("cl100k_base.tiktoken",), "9b5ad71b2ce5302211f9c61530b329a4922fc6a4"),
)


def find_ranks(known: Known, folders: Sequence[Path]) -> Path | None:
    """The rank file of a known tokenizer in the first folder that has it, else in tiktoken's cache; None if nowhere."""
    set_caches = [os.environ[name] for name in ("TIKTOKEN_CACHE_DIR", "DATA_GYM_CACHE_DIR") if name in os.environ]
    cache = [*set_caches, os.path.join(tempfile.gettempdir(), "data-gym-cache")][0]
    candidates = [folder / name for folder in folders for name in (*known.files, known.cached)]
    candidates += [Path(cache, known.cached)] if cache else []  # an empty variable switches the cache off
    return next((path for path in candidates if path.is_file()), None)
