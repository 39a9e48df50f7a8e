"""The one record that every part of the primer hands out for tests and for RL."""

from dataclasses import dataclass, field

Message = dict[str, object]
"""`{"role": "user" | "assistant", "content": str | list of parts}`."""


@dataclass(frozen=True, kw_only=True)
class Problem:
    """A question with a checkable answer."""

    kind: str
    """facts, sums, letters or vowels."""
    messages: list[Message] = field(default_factory=list)
    """The conversation so far; the last message is the user's."""
    answer: str
    """The right option of a multiple-choice problem, else the final number."""
    options: tuple[str, ...] = ()
    """Replies to choose from; empty where the model writes its own."""


def user(text: str) -> Message:
    return {"role": "user", "content": text}


def assistant(content: str | list[dict[str, str]]) -> Message:
    return {"role": "assistant", "content": content}
