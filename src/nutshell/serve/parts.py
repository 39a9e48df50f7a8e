"""What the engine says, joined to the parts of an assistant message: text, calls of the calculator and their results."""

from typing import Any

PART_TYPES = {"text": "text", "tool": "python", "output": "python_output"}
"""Kind of a delta -> type of the part that it belongs to."""

Parts = list[dict[str, str]]


def add_delta(parts: Parts, delta: Any) -> None:
    """Append the delta's text to the last part, or begin another where the kind changes."""
    if not delta.text:
        return
    kind = PART_TYPES[delta.kind]
    if not parts or parts[-1]["type"] != kind:
        parts.append({"type": kind, "text": ""})
    parts[-1]["text"] += delta.text


def text_of(parts: Parts) -> str:
    """What the assistant says, without its tool calls."""
    return "".join(part["text"] for part in parts if part["type"] == "text")


def content_of(parts: Parts) -> str | Parts:
    """The content of the message: plain text where there was no tool call."""
    return text_of(parts) if all(part["type"] == "text" for part in parts) else parts
