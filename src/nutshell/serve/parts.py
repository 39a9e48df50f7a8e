"""What the engine says, joined to the parts of an assistant message: text, calls of the calculator and their results."""

import json
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


def tool_calls_of(parts: Parts, tool: str, id: str) -> list[dict[str, Any]]:
    """The calls that have ended, in OpenAI's form; `id` begins the id of each."""
    argument = "code" if tool == "python" else "expression"
    calls = [part["text"] for part in parts[:-1] if part["type"] == "python"]
    return [
        {
            "id": f"{id}_{number}", "type": "function",
            "function": {"name": tool, "arguments": json.dumps({argument: text}, ensure_ascii=False)},
        }
        for number, text in enumerate(calls)
    ]  # fmt: skip
