"""What `nutshell tokenizer show` and `eval` print: tokens in colours, and bytes per token side by side."""

from __future__ import annotations

import os
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from nutshell.tokenizer.tokenizer import Tokenizer

# Backgrounds that stay readable in light and dark terminals, with black text; neighbours always differ.
_COLOURS = (159, 223, 157, 218, 189)
_SPECIAL = "\x1b[1;97;48;5;60m"  # white on slate: none of the text's own
_DIM, _GREEN, _RED, _END = "\x1b[2m", "\x1b[32m", "\x1b[31m", "\x1b[0m"
SEPARATOR = "│"
"""Stands between tokens where there are no colours. Not "|", which code and special tokens hold."""

SAMPLES = ("news", "code", "korean", "chinese", "maths", "science")


def show(tok: Tokenizer, text: str, *, special: Collection[str] = (), colour: bool = True) -> str:
    """The text with each token on a background of its own (ANSI, 256 colours), as a terminal shows it.

    A line end is drawn as ⏎ before it breaks the line, and the bytes of a character that is cut between tokens as hex.
    Special tokens come from the text only where `special` names them (ValueError for one that does not exist). Without
    `colour`, "│" stands between tokens.
    """
    parts: list[str] = []
    for index, (_, spelled, is_special) in enumerate(_spelled(tok, text, special)):
        # Colours end at each line's end, else terminals paint the rest of the line.
        start, end = (_start(index, is_special), _END) if colour else ("", "")
        if not colour and index and not parts[-1].endswith("\n"):
            parts.append(SEPARATOR)
        lines = spelled.split("\n")
        parts.append(f"{start}⏎{end}\n".join(f"{start}{line}{end}" if line else "" for line in lines))
    return "".join(parts)


def show_ids(tok: Tokenizer, text: str, *, special: Collection[str] = (), colour: bool = True, width: int = 80) -> str:
    """As `show`, but in rows of at most `width` columns with each token's id below it.

    Without `colour` a space in a token is drawn as "·", so that it can't be taken for the gap between two columns.
    """
    from rich.cells import cell_len

    rows: list[tuple[str, str]] = []
    tokens, ids, used = "", "", 0
    for index, (id, spelled, is_special) in enumerate(_spelled(tok, text, special)):
        cell = spelled.replace("\n", "⏎")
        if not colour:
            cell = cell.replace(" ", "·")
        columns = max(cell_len(cell), len(str(id)))
        if used and used + columns > width:
            rows.append((tokens, ids))
            tokens, ids, used = "", "", 0
        start, end = (_start(index, is_special), _END) if colour else ("", "")
        tokens += f"{start}{cell}{end}{' ' * (columns - cell_len(cell) + 1)}"
        ids += f"{id:<{columns + 1}}"
        used += columns + 1
        if spelled.endswith("\n"):
            rows.append((tokens, ids))
            tokens, ids, used = "", "", 0
    rows += [(tokens, ids)] if used else []
    dim, end = (_DIM, _END) if colour else ("", "")
    return "\n".join(f"{tokens.rstrip()}\n{dim}{ids.rstrip()}{end}" for tokens, ids in rows)


def spell(tok: Tokenizer, id: int) -> str:
    """One token for people: its text, a special token's name, the bytes of a cut character as hex."""
    token = tok.token_bytes(id)
    if not token:
        return next((name for name, special in tok.special_tokens.items() if special == id), "")
    try:
        spelled = token.decode()
    except UnicodeDecodeError:
        return "".join(chr(byte) if 32 <= byte < 127 else f"\\x{byte:02x}" for byte in token)
    return "\n".join(_visible(line) for line in spelled.split("\n"))


def _spelled(tok: Tokenizer, text: str, special: Collection[str]) -> list[tuple[int, str, bool]]:
    return [(id, spell(tok, id), not tok.token_bytes(id)) for id in tok.encode(text, special=special)]


def _start(index: int, is_special: bool) -> str:
    return _SPECIAL if is_special else f"\x1b[30;48;5;{_COLOURS[index % len(_COLOURS)]}m"


def _visible(line: str) -> str:
    """Control characters as hex, so that text can't steer the terminal."""
    return "".join(c if c.isprintable() else "".join(f"\\x{byte:02x}" for byte in c.encode()) for c in line)


# ---- compression ---------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Measured:
    """One text cut by several tokenizers; the first of them is the one the others are compared with."""

    name: str
    bytes: int
    """Size of the text in UTF-8."""
    tokens: dict[str, int]
    """Tokens each tokenizer makes of it."""

    def bytes_per_token(self, name: str) -> float:
        """Higher is better; 0.0 for an empty text."""
        return self.bytes / self.tokens[name] if self.tokens[name] else 0.0

    def saved_percent(self, other: str) -> float:
        """How many percent fewer tokens the first tokenizer makes than `other`; below 0 it makes more."""
        first = next(iter(self.tokens.values()))
        return 100 * (self.tokens[other] - first) / self.tokens[other] if self.tokens[other] else 0.0


def samples() -> dict[str, list[str]]:
    """The texts that every tokenizer is measured on: a page each of news, Python and C, Korean, Chinese, LaTeX, science."""
    folder = Path(__file__).parent / "samples"
    return {name: [(folder / f"{name}.txt").read_bytes().decode("utf-8")] for name in SAMPLES}


def compression(tokenizers: Mapping[str, Tokenizer], texts: Mapping[str, Sequence[str]]) -> list[Measured]:
    """Count the tokens that each tokenizer makes of each named text, which is given as a list of documents."""
    return [
        Measured(
            name,
            sum(len(document.encode()) for document in documents),
            {label: len(tok.encode_batch(documents)[0]) for label, tok in tokenizers.items()},
        )
        for name, documents in texts.items()
    ]


def table(measured: Sequence[Measured], vocab_sizes: Mapping[str, int], *, colour: bool = False) -> str:
    """Bytes per token as aligned text, a column for each tokenizer and what the first one saves against the others."""
    from rich.cells import cell_len

    first, *others = vocab_sizes
    rows = [["", "bytes", first], ["vocabulary", "", f"{vocab_sizes[first]:,}"]]
    for other in others:
        rows[0] += [other, "saved"]
        rows[1] += [f"{vocab_sizes[other]:,}", ""]
    for text in measured:
        row = [text.name, f"{text.bytes:,}", f"{text.bytes_per_token(first):.3f}"]
        for other in others:
            row += [f"{text.bytes_per_token(other):.3f}", _percent(text.saved_percent(other))]
        rows.append(row)
    widths = [max(cell_len(row[column]) for row in rows) for column in range(len(rows[0]))]

    def cell(column: int, value: str) -> str:
        gap = " " * (widths[column] - cell_len(value))
        if colour and column >= 4 and value[:1] in ("+", "-"):
            value = f"{_RED if value.startswith('-') else _GREEN}{value}{_END}"
        return value + gap if column == 0 else gap + value

    lines = ["  ".join(cell(*pair) for pair in enumerate(row)).rstrip() for row in rows]
    meaning = ["Bytes of UTF-8 per token: higher is better."]
    if others:
        meaning.append(
            f"saved: how many percent fewer tokens {first} makes than the tokenizer left of it; below 0 it makes more."
        )
    return "\n".join([*meaning, "", *lines])


def _percent(value: float) -> str:
    return f"{value:+.1f}%" if round(value, 1) else "0.0%"


# ---- rank files of known tokenizers --------------------------------------------------------------------------------


@dataclass(frozen=True)
class Known:
    """A tokenizer that many know, measured where its rank file is at hand."""

    label: str
    pattern: str
    files: tuple[str, ...]
    """Names of its rank file."""
    cached: str
    """Its name in tiktoken's cache: the sha1 of the address that tiktoken fetches it from."""
    encoding: str
    """What tiktoken calls it."""


KNOWN = (
    Known("GPT-2", "gpt2", ("gpt2.tiktoken", "r50k_base.tiktoken"), "0ea1e91bbb3a60f729a8dc8f777fd2fc07cd8df4", "r50k_base"),
    Known("GPT-4", "cl100k", ("cl100k_base.tiktoken",), "9b5ad71b2ce5302211f9c61530b329a4922fc6a4", "cl100k_base"),
)


def find_ranks(known: Known, folders: Sequence[Path]) -> Path | None:
    """The rank file of a known tokenizer in the first folder that has it, else in tiktoken's cache; None if nowhere."""
    candidates = [folder / name for folder in folders for name in (*known.files, known.cached)]
    cache = tiktoken_cache()
    candidates += [cache / known.cached] if cache else []
    return next((path for path in candidates if path.is_file()), None)


def tiktoken_cache(environ: Mapping[str, str] | None = None) -> Path | None:
    """The folder where tiktoken keeps what it has fetched; None where its user has switched that off."""
    import tempfile

    environ = os.environ if environ is None else environ
    for name in ("TIKTOKEN_CACHE_DIR", "DATA_GYM_CACHE_DIR"):
        if name in environ:
            return Path(environ[name]) if environ[name] else None
    return Path(tempfile.gettempdir()) / "data-gym-cache"
