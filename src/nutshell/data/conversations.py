"""The one reader of conversations, for midtraining and fine-tuning: rows of JSON or Parquet files with `messages`."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any

from nutshell.data.text import find_files, names_of, open_parquet
from nutshell.files import json_rows, kind_of, shown

CONVERSATION_KINDS = (".jsonl", ".ndjson", ".json", ".parquet")


def read_conversations(
    paths: Path | str | Iterable[Path | str], *, check: Callable[[Any], Any] | None = None
) -> list[dict[str, Any]]:
    """Conversations ``{"messages": [...]}`` from files or folders (see `find_files`); other fields are left out.

    A row may also be the bare list of messages. ``check`` gets each list of messages, raises ValueError about roles and
    their order, which is completed with file and line, and may return the messages to keep.
    """
    conversations = []
    files = find_files(paths, CONVERSATION_KINDS, _looks_like_one).train
    for file in files:
        for where, row in _parquet_rows(file) if kind_of(file) == ".parquet" else json_rows(file):
            messages = _messages(row, where)
            try:
                messages = (check and check(messages)) or messages
            except ValueError as error:
                raise ValueError(f"{where}: {error}") from error
            conversations.append({"messages": messages})
    if not conversations:
        raise ValueError(f"no conversation in {names_of(files)}: each row must hold a list 'messages'")
    return conversations


def _looks_like_one(row: Any) -> bool:
    return isinstance(row, list) or (isinstance(row, dict) and "messages" in row)


def _parquet_rows(file: Path) -> Iterator[tuple[str, Any]]:
    with open_parquet(file) as parquet:
        if "messages" not in parquet.schema_arrow.names:
            raise _no_messages(shown(file), parquet.schema_arrow.names)
        number = 0
        for batch in parquet.iter_batches(batch_size=1024, columns=["messages"]):
            for messages in batch.column("messages").to_pylist():
                yield f"{shown(file)}, row {number}", _without_nulls(messages)
                number += 1


def _without_nulls(value: Any) -> Any:
    """All rows of a Parquet column have the same fields; those that a row did not have are null."""
    if isinstance(value, list):
        return [_without_nulls(item) for item in value]
    return {key: _without_nulls(item) for key, item in value.items() if item is not None} if isinstance(value, dict) else value


def _messages(row: Any, where: str) -> list[dict[str, Any]]:
    if isinstance(row, dict):
        if "messages" not in row:
            raise _no_messages(where, list(row))
        row = row["messages"]
    if not isinstance(row, list) or not row:
        found = "an empty list" if row == [] else f"a {type(row).__name__}"
        raise ValueError(f"{where}: 'messages' must be a list of at least one message, found {found}")
    for number, message in enumerate(row):
        if not isinstance(message, dict) or not {"role", "content"} <= message.keys():
            found = f"keys {sorted(message)}" if isinstance(message, dict) else f"a {type(message).__name__}"
            raise ValueError(f"{where}: message {number} must be an object with 'role' and 'content', found {found}")
        if not isinstance(message["role"], str) or not isinstance(message["content"], (str, list)):
            raise ValueError(f"{where}: message {number}: 'role' must be a string and 'content' a string or list of parts")
    return row


def _no_messages(where: str, found: list[str]) -> ValueError:
    return ValueError(f"{where}: no column 'messages'; found {', '.join(map(str, found[:20])) or 'none'}")
