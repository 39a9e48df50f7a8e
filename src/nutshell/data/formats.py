"""The formats of fine-tuning data, each turned into this project's one kind of conversation.

The columns of the first rows tell the format. Its reader takes one row and returns a list of messages, or the text of a document;
it raises ValueError for a broken row.
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Callable, Iterable
from typing import Any, NamedTuple

from nutshell.files import json_kind

Messages = list[dict[str, Any]]

_CONTENTS = {"content", "tool_calls", "function_call"}
FIRST_ROWS = 20  # by which a format is told
PAIRS = (
    ("prompt", "response"), ("prompt", "completion"), ("question", "answer"), ("instruction", "output"),
    ("instruction", "response"),
)  # fmt: skip
"""Columns of one question and one answer. Alpaca's instruction may have an `input` beside it, Dolly's a `context`."""
SPEAKERS = {"human": "user", **dict.fromkeys(("gpt", "chatgpt", "bing", "bard", "model"), "assistant")}
"""ShareGPT's names for the roles."""


class Format(NamedTuple):
    """One way of writing conversations down."""

    name: str
    fits: Callable[[Any], bool]
    read: Callable[[Any], Messages | str]


def tell_format(rows: Iterable[Any]) -> Format | None:
    """The format of most of the first rows, so that one broken row does not decide; None if they have none of the formats."""
    names = Counter(next((form.name for form in FORMATS if form.fits(row)), "") for row in rows)
    name = names.most_common(1)[0][0] if names else ""
    return next((form for form in FORMATS if form.name == name), None)


def accepted_columns() -> str:
    pairs = ", ".join(f"{asked} and {answer}" for asked, answer in PAIRS)
    return f"messages; conversations (ShareGPT); {pairs}; text"


def _has(*names: str) -> Callable[[Any], bool]:
    return lambda row: isinstance(row, dict) and all(name in row for name in names)


def _is_messages(row: Any) -> bool:
    return isinstance(row, list) or _has("messages")(row)


def _messages(row: Any) -> Messages:
    """OpenAI's format: a list of messages, bare or under `messages`. tokenizer/chat.py checks what is in them."""
    messages = row["messages"] if isinstance(row, dict) else row
    if isinstance(messages, str) and messages.lstrip().startswith("["):  # as a cell of a table has it
        messages = json.loads(messages)
    if not isinstance(messages, list) or not messages:
        found = "an empty list" if messages == [] else json_kind(messages)
        raise ValueError(f"'messages' must be a list of at least one message, found {found}")
    for number, message in enumerate(messages):
        if not isinstance(message, dict) or "role" not in message or not _CONTENTS & message.keys():
            found = f"keys {sorted(message)}" if isinstance(message, dict) else json_kind(message)
            raise ValueError(f"message {number} must be an object with 'role' and 'content', found {found}")
    return messages


def _sharegpt(row: Any) -> Messages:
    """Turns with `from` and `value` under `conversations`; some files have OpenAI's `role` and `content` there."""
    turns = row["conversations"]
    if not isinstance(turns, list) or not turns:
        raise ValueError(f"'conversations' must be a list of at least one turn, found {turns!r:.60}")
    messages = []
    for number, turn in enumerate(turns):
        if not isinstance(turn, dict) or not ({"from", "value"} <= turn.keys() or {"role", "content"} <= turn.keys()):
            raise ValueError(f"turn {number} must be an object with 'from' and 'value', found {turn!r:.60}")
        if "value" in turn and "from" in turn:
            speaker = str(turn["from"]).lower()
            turn = {"role": SPEAKERS.get(speaker, speaker), "content": turn["value"]}
        messages.append(turn)
    return _with_system(row, messages)


def _pair(asked: str, answer: str) -> Callable[[Any], Messages]:
    def read(row: Any) -> Messages:
        question, reply = row[asked], row[answer]
        if isinstance(question, list) and isinstance(reply, list):  # TRL's conversational prompt and completion
            return _messages([*question, *reply])
        for name in (asked, answer):
            if not isinstance(row[name], str) or not row[name].strip():
                raise ValueError(f"column {name!r} must be text, found {row[name]!r:.60}")
        more = row.get("input") or row.get("context") if asked == "instruction" else ""
        question = f"{question}\n\n{more}" if isinstance(more, str) and more.strip() else question
        return _with_system(row, [{"role": "user", "content": question}, {"role": "assistant", "content": reply}])

    return read


def _with_system(row: Any, messages: Messages) -> Messages:
    system = row.get("system")
    return [{"role": "system", "content": system}, *messages] if isinstance(system, str) and system.strip() else messages


def _text(row: Any) -> str:
    """A document. All of its tokens are learned, as in pretraining."""
    if not isinstance(row["text"], str) or not row["text"].strip():
        raise ValueError(f"column 'text' must be text, found {row['text']!r:.60}")
    return row["text"]


FORMATS = (
    Format("messages", _is_messages, _messages),
    Format("ShareGPT", _has("conversations"), _sharegpt),
    *(Format(f"{asked}/{answer}", _has(asked, answer), _pair(asked, answer)) for asked, answer in PAIRS),
    Format("text", _has("text"), _text),
)
"""In this order: the first that fits a row is its format."""
