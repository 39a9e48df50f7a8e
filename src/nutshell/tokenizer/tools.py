"""What `nutshell tokenizer show` and `eval` print."""

from __future__ import annotations

from collections.abc import Mapping

from nutshell.tokenizer.tokenizer import Tokenizer

# Backgrounds that stay readable in light and dark terminals, with black text; neighbours always differ.
_COLOURS = (159, 223, 157, 218, 189)


def show(tok: Tokenizer, text: str) -> str:
    """The text with each token on a background of its own (ANSI, 256 colours), as a terminal shows it.

    A line end is drawn as ⏎ before it breaks the line, and the bytes of a character that is cut between tokens as hex.
    """
    parts: list[str] = []
    for index, id in enumerate(tok.encode(text)):
        token = tok.token_bytes(id)
        try:
            spelled = token.decode()
        except UnicodeDecodeError:
            spelled = "".join(chr(byte) if 32 <= byte < 127 else f"\\x{byte:02x}" for byte in token)
        start, end = f"\x1b[30;48;5;{_COLOURS[index % len(_COLOURS)]}m", "\x1b[0m"
        # Colours end at each line's end, else terminals paint the rest of the line.
        lines = [_visible(line) for line in spelled.split("\n")]
        parts.append(f"{start}⏎{end}\n".join(f"{start}{line}{end}" if line else "" for line in lines))
    return "".join(parts)


def _visible(line: str) -> str:
    """Control characters as hex, so that text can't steer the terminal."""
    return "".join(c if c.isprintable() else "".join(f"\\x{byte:02x}" for byte in c.encode()) for c in line)


def compression(tok: Tokenizer, texts: Mapping[str, str]) -> dict[str, float]:
    """Bytes per token of each named text (higher is better); 0.0 for an empty one."""
    _, offsets = tok.encode_batch(list(texts.values()))
    counts = offsets[1:] - offsets[:-1]
    sizes = [len(text.encode()) for text in texts.values()]
    return {name: size / max(int(count), 1) for name, size, count in zip(texts, sizes, counts, strict=True)}
