"""The one reader of preferences: rows with a `chosen` and a `rejected` answer to the same prompt, in one of three forms:

{"prompt": "...", "chosen": "...", "rejected": "..."}                      texts; or `question`, also with `system`
{"prompt": [messages], "chosen": "..." or [messages], "rejected": ...}     the conversation so far, and how it goes on
{"chosen": [messages], "rejected": [messages]}                             whole conversations that differ in their last answer

If the answers are whole conversations, a prompt beside them repeats their beginning and is ignored.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

from nutshell.data.find import find_files
from nutshell.data.rows import ROW_KINDS, file_rows
from nutshell.files import json_kind, shown

NEEDS = "prompt, chosen and rejected, each a text or a list of messages; or chosen and rejected as whole conversations"
Messages = list[dict[str, Any]]


class Pair(NamedTuple):
    """Two conversations that differ in their last message, which is the assistant's."""

    chosen: Messages
    rejected: Messages


def read_pairs(path: str | Path, check: Callable[[Any], Messages]) -> list[Pair]:
    """All pairs of a file or folder. `check` gets a conversation, raises ValueError if its roles are wrong and returns it tidied.

    FileNotFoundError if the path does not exist; ValueError with file and line for a row that is not a pair.
    """
    pairs = []
    for file in find_files(path, ROW_KINDS, lambda row: isinstance(row, dict) and "chosen" in row).train:
        for place, row in file_rows(file):
            try:
                pairs.append(_pair(row, check))
            except ValueError as error:
                raise ValueError(f"{place}: {error}") from error
    if not pairs:
        raise ValueError(f"{shown(Path(path))} holds no pair; accepted: rows with {NEEDS}.")
    if all(pair.chosen == pair.rejected for pair in pairs):
        raise ValueError(f"{shown(Path(path))}: chosen and rejected are equal in every row; accepted: answers that differ.")
    return pairs


def _pair(row: Any, check: Callable[[Any], Messages]) -> Pair:
    if not isinstance(row, dict):
        raise ValueError(f"{json_kind(row)}; accepted: an object with {NEEDS}.")
    if missing := [name for name in ("chosen", "rejected") if not row.get(name)]:
        raise ValueError(f"has {', '.join(map(str, row)) or 'nothing'}, but no {' and no '.join(missing)}; accepted: {NEEDS}.")
    start = _turns(row.get("prompt", row.get("question")) or [], "prompt", "user")
    if row.get("system"):
        start = [{"role": "system", "content": row["system"]}, *start]
    chosen, rejected = (check(_whole(start, _turns(row[name], name, "assistant"))) for name in ("chosen", "rejected"))
    for name, messages in (("chosen", chosen), ("rejected", rejected)):
        if messages[-1]["role"] != "assistant":
            raise ValueError(f"{name} ends with the message of a {messages[-1]['role']}; accepted: an answer of the assistant.")
    if chosen[:-1] != rejected[:-1]:
        raise ValueError("chosen and rejected differ before their last message; accepted: two answers to the same prompt.")
    return Pair(chosen, rejected)


def _turns(value: Any, name: str, role: str) -> Messages:
    """A list of messages; a plain text becomes one message of `role`."""
    if isinstance(value, str):
        return [{"role": role, "content": value}]
    if not isinstance(value, list) or not all(isinstance(message, dict) for message in value):
        raise ValueError(f"{name} is {value!r:.80}; accepted: a text or a list of messages.")
    return value


def _whole(start: Messages, answer: Messages) -> Messages:
    if answer and answer[0].get("role") != "assistant":
        return answer  # a whole conversation
    if not start:
        raise ValueError(f"there is no prompt before the answer; accepted: {NEEDS}.")
    return [*start, *answer]
