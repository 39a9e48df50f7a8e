"""A conversation that always fits the context: the oldest turns go first."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from nutshell.tokenizer.chat import parse_messages, render, render_prompt

SHARE_FOR_THE_REPLY = 4
"""History may fill all of the context but one part in this many, or less where a shorter reply is asked for."""
SHORT_REPLY = 16
"""So many tokens are kept for the reply where the last question leaves little room."""
CONTROL_TOKENS = 4  # bos and user_start before a single question, user_end and assistant_start behind it


@dataclass(frozen=True)
class FittedConversation:
    """Prompt ids, and what had to go."""

    ids: list[int]
    dropped: int
    """Oldest messages that were left out."""
    truncated: bool
    """Whether the beginning of the last message was cut too."""


def fit_conversation(messages: list[dict[str, Any]], tok: Any, context: int, max_tokens: int) -> FittedConversation:
    """Render `messages` so that a reply of `max_tokens`, or a quarter of the context, fits.

    Oldest turns (a question and its reply) are left out; the system message and the last question stay. Where these alone leave
    less than a short reply, the question loses its beginning. An assistant's message at the end is left open: the reply goes on
    with it, and it loses its beginning where the question has none left to lose. Only history that could fit is tokenized.
    ValueError where `messages` is no conversation.
    """
    messages = parse_messages(messages)
    room = context - max(1, min(max_tokens, context // SHARE_FOR_THE_REPLY))
    if room <= CONTROL_TOKENS:
        raise ValueError(f"the context is {context} tokens; accepted for a chat: at least {CONTROL_TOKENS + 4}.")
    system = messages[:1] if messages[0]["role"] == "system" else []
    turns = messages[len(system) :]
    last = start = len(turns) - (1 if turns[-1]["role"] == "user" else 2)
    used = len(_prompt(system + turns[last:], tok))
    while start >= 2:
        used += len(render(turns[start - 2 : start], tok)[0]) - 1  # bos
        if used > room:
            break
        start -= 2
    ids = _prompt(system + turns[start:], tok)
    while len(ids) > room and start < last:  # a token more at the seam of system message and question
        start += 2
        ids = _prompt(system + turns[start:], tok)
    room = context - max(1, min(max_tokens, SHORT_REPLY, context // SHARE_FOR_THE_REPLY))
    if len(ids) <= room:
        return FittedConversation(ids, start, False)
    end = ids.index(tok.special_id("<|user_end|>"))
    question, answer, room = ids[2:end], ids[end + 2 :], room - CONTROL_TOKENS
    answer = answer[max(0, len(answer) - room) :]
    room -= len(answer)
    kept = len(tok.encode(system[0]["content"] + "\n\n")) if system and system[0]["content"] else 0
    kept = min(kept, room // 2)
    tail = question[len(question) - (room - kept) :]
    return FittedConversation([*ids[:2], *question[:kept], *tail, *ids[end : end + 2], *answer], start, True)


def _prompt(messages: list[dict[str, Any]], tok: Any) -> list[int]:
    """Ids up to where the assistant's next token goes."""
    if messages[-1]["role"] == "user":
        return render_prompt(messages, tok)
    return render(messages, tok)[0][:-1]  # without the end of the message that is to be continued
