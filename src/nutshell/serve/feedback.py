"""What users say of answers (`nutshell serve --feedback FILE.db`), kept in SQLite and exported as training data.

`GET /feedback` answers `{"enabled": true, "count": 12}`, or `{"enabled": false, "count": 0}` without the flag.

`POST /feedback` takes one JSON object:

    conversation   id of the conversation, chosen by the client: 1 to 100 characters
    messages       the conversation up to the answer that is meant, which is its last message, an assistant's; as for
                   /v1/chat/completions, tool parts included
    rating         "up", "down" or null
    better         a better answer in the user's own words, or null: up to 100,000 characters
    model          optional: which model answered

What is said of the same messages in the same conversation replaces what was said before; with neither a rating nor a better
answer it is forgotten. The answer is `{"stored": true}`, or false where it was forgotten. Errors have the shape of all others:
400 names the field, 404 `feedback_off`, 507 `feedback_full`, 503 where another process keeps the file locked.
"""

from __future__ import annotations

import hashlib
import json
import logging
import sqlite3
import time
from collections.abc import Iterator
from contextlib import closing, contextmanager, suppress
from pathlib import Path
from typing import Annotated, Any, Literal

from fastapi import FastAPI, Request
from pydantic import BaseModel, FailFast, Field, model_validator

from nutshell.files import write_text
from nutshell.serve.api import MAX_MESSAGES, Message
from nutshell.serve.errors import APIError
from nutshell.serve.service import Service
from nutshell.tokenizer.chat import parse_messages, tidy_messages

log = logging.getLogger("nutshell.serve")

MOST_BYTES = 64 * 2**20
"""Of the database: some 50,000 short conversations."""
APPLICATION_ID = 0x6E757473  # "nuts", by which a file says that it is ours
TABLE = """CREATE TABLE IF NOT EXISTS feedback (
  conversation TEXT, digest TEXT, time REAL, model TEXT, messages TEXT, rating TEXT, better TEXT,
  PRIMARY KEY (conversation, digest)
)"""

Messages = list[dict[str, Any]]


class Feedback(BaseModel):
    """Body of `POST /feedback`."""

    conversation: str = Field(min_length=1, max_length=100)
    messages: Annotated[list[Message], FailFast(), Field(min_length=1, max_length=MAX_MESSAGES)]
    rating: Literal["up", "down"] | None = None
    better: str | None = Field(default=None, max_length=100_000)
    model: str = Field(default="", max_length=200)

    @model_validator(mode="after")
    def _of_an_answer(self) -> Feedback:
        if self.messages[-1].role != "assistant" or not self.messages[-1].content:
            raise ValueError("messages must end with the answer that is meant: an assistant's message that is not empty")
        self.tidied()
        self.better = (self.better or "").strip() or None
        return self

    def tidied(self) -> Messages:
        """As the trainer takes them; ValueError where it would not."""
        return parse_messages(tidy_messages([message.model_dump() for message in self.messages]))


class FeedbackStore:
    """One SQLite file. Each call opens it anew, so threads and processes may share it; it never grows beyond `most_bytes`.

    Raises ValueError for a file that is something else.
    """

    def __init__(self, path: Path | str, most_bytes: int = MOST_BYTES):
        self.path, self.most_bytes = Path(path), most_bytes
        self.path.parent.mkdir(parents=True, exist_ok=True)
        try:
            with self._open():
                pass
        except sqlite3.DatabaseError as error:
            raise ValueError(f"{self.path} is no feedback database ({error}). Accepted: a new file, or one of ours.") from None

    @contextmanager
    def _open(self) -> Iterator[sqlite3.Connection]:
        """The database; a new one where the file is missing, be it moved away since the last time."""
        if not self.path.exists():
            self.path.touch(mode=0o600)  # what people said is for the owner's eyes
        with closing(sqlite3.connect(self.path, timeout=5)) as database:
            if not self.path.stat().st_size:
                with database:  # whole or not at all: other processes may open it now, too
                    database.execute("BEGIN IMMEDIATE")
                    database.execute(f"PRAGMA application_id = {APPLICATION_ID}")
                    database.execute(TABLE)
                with suppress(sqlite3.OperationalError):  # another process reads it at this moment
                    database.execute("PRAGMA journal_mode = WAL")  # readers and a writer at once
            if database.execute("PRAGMA application_id").fetchone()[0] != APPLICATION_ID:
                raise ValueError(f"{self.path} is a database of another program. Accepted: a new file, or one of ours.")
            page_bytes = database.execute("PRAGMA page_size").fetchone()[0]
            database.execute(f"PRAGMA max_page_count = {self.most_bytes // page_bytes}")
            with database:
                yield database

    @contextmanager
    def _serving(self) -> Iterator[sqlite3.Connection]:
        """`_open` for a request: APIError where the file is full, locked, or was replaced by something else."""
        try:
            with self._open() as database:
                yield database
        except (sqlite3.DatabaseError, OSError, ValueError) as error:
            if "full" in str(error):
                full = f"the feedback file has reached its {self.most_bytes >> 20} MiB, or the disk is full"
                raise APIError(507, f"{full}; export it and begin another", type="server_error", code="feedback_full") from None
            log.error("feedback: %s", error)
            busy = "the feedback file cannot be used now; the server's log says why"
            raise APIError(503, busy, type="server_error", code="feedback_busy", retry_after_seconds=1) from None

    def put(self, said: Feedback) -> bool:
        """Keep it, or forget what was said where nothing is; whether it was kept."""
        messages = json.dumps(said.tidied(), ensure_ascii=False)
        key = (said.conversation, hashlib.sha256(messages.encode()).hexdigest())
        kept = bool(said.rating or said.better)
        with self._serving() as database:
            database.execute("DELETE FROM feedback WHERE conversation = ? AND digest = ?", key)
            if kept:
                row = (*key, time.time(), said.model, messages, said.rating, said.better)
                database.execute("INSERT INTO feedback VALUES (?, ?, ?, ?, ?, ?, ?)", row)
        return kept

    def rows(self) -> list[dict[str, Any]]:
        """Everything that was said, oldest first."""
        with self._open() as database:
            database.row_factory = sqlite3.Row
            found = [dict(row) for row in database.execute("SELECT * FROM feedback ORDER BY time, conversation, digest")]
        return [{**row, "messages": json.loads(row["messages"])} for row in found]

    def count(self) -> int:
        with self._serving() as database:
            return int(database.execute("SELECT count(*) FROM feedback").fetchone()[0])


def add_routes(app: FastAPI, store: FeedbackStore | None, service: Service) -> None:
    """`GET` and `POST /feedback`; SQLite runs in threads, off the event loop."""

    @app.get("/feedback")
    async def state() -> dict[str, Any]:
        return {"enabled": store is not None, "count": await service.off_loop(store.count) if store else 0}

    @app.post("/feedback")
    async def say(request: Request) -> dict[str, bool]:
        """Keep a thumb or a better answer. The body is a `Feedback`."""
        if store is None:
            raise APIError(404, "this server keeps no feedback; start it with --feedback FILE.db", code="feedback_off")
        return {"stored": await service.off_loop(store.put, await service.read(request, Feedback))}


def export(store: FeedbackStore, folder: Path) -> dict[str, int]:
    """Writes what was said as training data into a folder, and tells how much of each.

    sft.jsonl has the conversations whose last answer was liked or is the user's own; earlier answers have a weight of 0: they are
    read, not learned. pairs.jsonl has preferences `{"prompt": messages, "chosen": [message], "rejected": [message]}`: a better
    answer before the one that it mends, and a liked answer before a disliked one to the same prompt.
    """
    rows = store.rows()
    conversations, pairs = [], []
    by_prompt: dict[str, dict[str, list[Any]]] = {}
    for row in rows:
        *prompt, answer = row["messages"]
        key = json.dumps(prompt, ensure_ascii=False)
        answers = by_prompt.setdefault(key, {"up": [], "down": []})
        if row["better"]:
            better = {"role": "assistant", "content": row["better"]}
            conversations.append([*prompt, better])
            pairs.append({"prompt": prompt, "chosen": [better], "rejected": [answer]})
        elif row["rating"] == "up":
            conversations.append([*prompt, answer])
        if row["rating"] and not (row["better"] and row["rating"] == "up"):
            answers[row["rating"]].append(answer)
    for key, answers in by_prompt.items():
        prompt = json.loads(key)
        pairs += [
            {"prompt": prompt, "chosen": [up], "rejected": [down]}
            for up in answers["up"]
            for down in answers["down"]
            if up != down
        ]
    folder.mkdir(parents=True, exist_ok=True)
    _write_lines(folder / "sft.jsonl", [{"messages": learn_the_last(messages)} for messages in conversations])
    _write_lines(folder / "pairs.jsonl", pairs)
    return {"said": len(rows), "sft": len(conversations), "pairs": len(pairs)}


def learn_the_last(messages: Messages) -> Messages:
    """The conversation with a weight of 0 at every answer but the last."""
    earlier = [{**message, "weight": 0} if message["role"] == "assistant" else message for message in messages[:-1]]
    return [*earlier, messages[-1]]


def _write_lines(path: Path, rows: list[dict[str, Any]]) -> None:
    write_text(path, "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows))
