"""Tokens for people: in colours, with their ids, one spelled out."""

from __future__ import annotations

import os
import sys
from collections.abc import Sequence
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from nutshell.tokenizer import Tokenizer

# Backgrounds that stay readable in light and dark terminals, with black text; neighbours always differ.
_COLOURS = (159, 223, 157, 218, 189)
_SPECIAL = "\x1b[1;97;48;5;60m"  # white on slate, which ordinary tokens never have
_DIM, _END = "\x1b[2m", "\x1b[0m"
SEPARATOR = "│"
"""Stands between tokens where there are no colours. Not "|", which code and special tokens hold."""


def in_colour(when: str = "auto") -> bool:
    """Whether to colour what goes to standard output (https://no-color.org)."""
    if when != "auto":
        return when == "always"
    return sys.stdout.isatty() and not os.environ.get("NO_COLOR") and os.environ.get("TERM") != "dumb"


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
