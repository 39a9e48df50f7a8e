"""Questions about the world outside the primer, and the honest answer that the model does not know."""

import random

from nutshell.data.primer.book import phrases
from nutshell.data.primer.problem import Message, assistant, user
from nutshell.data.primer.relation import with_article

PATTERN_SHARE = 0.55
"""How often a pattern is asked: filled with every verb, thing and topic, it teaches the manner of such questions, not a list."""


def unknown_turns(rng: random.Random) -> list[Message]:
    """A question about the world outside the primer and an honest "I do not know"."""
    if rng.random() < PATTERN_SHARE:
        question = _one(rng, "patterns").format(
            v=_one(rng, "verbs"), o=_one(rng, "objects"), t=_one(rng, "topics"), w=_one(rng, "writings")
        )
    else:
        question = _one(rng, "questions")
        if "{" in question:
            thing = _one(rng, "things")
            question = question.format(x=_one(rng, "places"), y=thing, an_y=with_article(thing), z=_one(rng, "people"))
    return [user(question), assistant(_one(rng, "replies"))]


def _one(rng: random.Random, heading: str) -> str:
    return rng.choice(phrases("unknown", heading))
