"""Conversations for midtraining and fine-tuning: one to seven exchanges of mixed kinds, worded as people type."""

import random
from collections.abc import Iterator, Sequence

from nutshell.data.primer.facts import choices_turns, facts_turns
from nutshell.data.primer.identity import NUTSHELL, Identity, identity_turns, smalltalk_turns
from nutshell.data.primer.letters import letters_turns, spelling_turns
from nutshell.data.primer.problem import Message
from nutshell.data.primer.stories import story_turns
from nutshell.data.primer.sums import sums_turns
from nutshell.data.primer.unknown import unknown_turns
from nutshell.data.primer.vowels import vowels_turns

CONVERSATION_WEIGHTS: dict[str, float] = {
    "facts": 0.25,
    "choices": 0.07,
    "sums": 0.12,
    "letters": 0.21,
    "spelling": 0.07,
    "identity": 0.06,
    "smalltalk": 0.08,
    "unknown": 0.06,
    "story": 0.04,
    "vowels": 0.04,
}
"""How often each kind of exchange is drawn."""
EXCHANGES = (1, 1, 1, 1, 2, 2, 2, 3, 3, 4, 5, 7)
"""Number of exchanges of a conversation, drawn uniformly from this list."""
FOLLOW_UP = 0.3
"""How often an exchange of facts, sums, letters or spelling is followed by a short one on the same subject."""

SYSTEM = 0.03
"""How often a conversation begins with a system message."""
SYSTEM_MESSAGES = (
    "You are a helpful assistant.",
    "You are Nutshell, a small and friendly language model.",
    "Answer in one short sentence.",
    "Be kind and short.",
)

LOWER_CASE = 0.25
"""How often a user's message is all lower case, ..."""
NO_PUNCTUATION = 0.25
"""... has lost its last mark, ..."""
PLEASE = 0.05
HELLO = 0.04
TYPO = 0.03
"""... says please or hello, or has two letters swapped."""

SINGLE = {
    "choices": choices_turns, "identity": identity_turns, "smalltalk": smalltalk_turns, "unknown": unknown_turns,
    "story": story_turns, "vowels": vowels_turns,
}  # fmt: skip
WITH_FOLLOW_UPS = {"facts": facts_turns, "sums": sums_turns, "letters": letters_turns, "spelling": spelling_turns}
KINDS = tuple(CONVERSATION_WEIGHTS)
_ABOUT_ITSELF = ("identity", "smalltalk")
_EXACT_WORDS = ("letters", "spelling", "choices")
"""Kinds whose questions keep their words: a swapped letter would change what is asked."""


def conversations(
    seed: int, count: int, kinds: Sequence[str] | None = None, identity: Identity = NUTSHELL
) -> Iterator[dict[str, list[Message]]]:
    """`count` conversations as `{"messages": [...]}`; assistant messages with a tool call have a list of parts.

    The same seed gives the same conversations; a larger count only goes on. `kinds` restricts the kinds of exchange, `identity`
    is who the model says it is. ValueError for a negative count and for an unknown kind.
    """
    if count < 0:
        raise ValueError(f"count must be 0 or more, got {count}")
    kinds = KINDS if kinds is None else kinds
    if not kinds or not set(kinds) <= set(KINDS):
        raise ValueError(f"kinds must be one or more of {', '.join(KINDS)}, got {', '.join(kinds) or 'none'}")
    rng = random.Random(f"primer conversations {seed}")
    return ({"messages": _converse(rng, kinds, identity)} for _ in range(count))


def _converse(rng: random.Random, kinds: Sequence[str], identity: Identity) -> list[Message]:
    weights = [CONVERSATION_WEIGHTS[kind] for kind in kinds]
    wanted = 2 * rng.choice(EXCHANGES)
    messages: list[Message] = []
    system: list[Message] = []
    if rng.random() < SYSTEM:
        system.append({"role": "system", "content": identity.fill(rng.choice(SYSTEM_MESSAGES))})
    told_story = False
    while len(messages) < wanted:
        kind = rng.choices(kinds, weights)[0]
        if kind == "story" and told_story and len(kinds) > 1:
            continue  # one story a conversation keeps it within a small context
        told_story = told_story or kind == "story"
        if kind in WITH_FOLLOW_UPS:
            more = wanted - len(messages) > 2 and rng.random() < FOLLOW_UP
            exchange = WITH_FOLLOW_UPS[kind](rng, turns=2 if more else 1)
        else:
            exchange = SINGLE[kind](rng)
        if kind in _ABOUT_ITSELF:
            exchange = [{**message, "content": identity.fill(str(message["content"]))} for message in exchange]
        messages += [_as_typed(rng, message, kind, identity) for message in exchange]
    return system + messages


def _as_typed(rng: random.Random, message: Message, kind: str, identity: Identity) -> Message:
    """A user's message the way people type: lower case, no full stop, a please, rarely a slip."""
    text = message["content"]
    if message["role"] != "user" or not isinstance(text, str):
        return message
    chance = rng.random()
    if chance < PLEASE and text[-1] in ".?" and "lease" not in text and kind not in ("choices", "smalltalk"):
        text = f"{text[:-1].rstrip()} please{text[-1]}"
    elif chance < PLEASE + HELLO and kind not in ("choices", "smalltalk", "identity"):
        text = f"{identity.fill(rng.choice(('Hi! ', 'Hello! ', 'Hey! ', 'Hello Nutshell! ')))}{text}"
    elif chance < PLEASE + HELLO + TYPO and kind not in _EXACT_WORDS:
        text = _with_typo(rng, text)
    if kind != "choices":
        if rng.random() < NO_PUNCTUATION and text[-1] in ".?!":
            text = text[:-1].rstrip()
        if rng.random() < LOWER_CASE:
            text = text.lower()
    return {"role": "user", "content": text}


def _with_typo(rng: random.Random, text: str) -> str:
    """Two neighbouring letters inside a word swapped, away from digits."""
    spots = [index for index in range(1, len(text) - 2) if text[index - 1 : index + 3].isalpha()]
    if not spots:
        return text
    spot = rng.choice(spots)
    return text[:spot] + text[spot + 1] + text[spot] + text[spot + 2 :]
