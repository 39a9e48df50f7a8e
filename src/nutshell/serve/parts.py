"""Pieces of a reply -> the parts of an assistant message: text, what the calculator was asked, what it answered."""

from typing import Any

PART_TYPES = {"text": "text", "tool": "python", "output": "python_output"}
"""Kind of a piece -> type of the part that it belongs to."""

Parts = list[dict[str, str]]


def add_piece(parts: Parts, piece: Any) -> None:
    """Append the piece's text to the last part, or begin another where the kind changes."""
    if not piece.text:
        return
    kind = PART_TYPES[piece.kind]
    if not parts or parts[-1]["type"] != kind:
        parts.append({"type": kind, "text": ""})
    parts[-1]["text"] += piece.text


def text_of(parts: Parts) -> str:
    """What the assistant says, without its tool calls."""
    return "".join(part["text"] for part in parts if part["type"] == "text")


def content_of(parts: Parts) -> str | Parts:
    """The content of the message: plain text where there was no tool call."""
    return text_of(parts) if all(part["type"] == "text" for part in parts) else parts
