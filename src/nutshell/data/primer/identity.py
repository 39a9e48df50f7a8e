"""Who the model is and how it was made, and small talk."""

import random
from functools import cache
from typing import NamedTuple

from nutshell.data.primer.book import names, phrases, sections
from nutshell.data.primer.problem import Message, assistant, user


class Identity(NamedTuple):
    """Who the model says it is, in place of Nutshell and of whoever ran the training; empty leaves the texts as they are."""

    name: str = ""
    maker: str = ""

    def fill(self, text: str) -> str:
        """A text about the model, with its name and maker. The small `nutshell` is the codebase's."""
        text = text.replace("Nutshell", self.name or "Nutshell")
        if self.maker:
            text = text.replace("the person who ran it", self.maker)
            text = text.replace("The person who ran the nutshell codebase", self.maker[0].upper() + self.maker[1:])
        return text


NUTSHELL = Identity()


Exchanges = tuple[tuple[tuple[str, ...], tuple[str, ...]], ...]


@cache
def _exchanges(section: str) -> Exchanges:
    """(questions, replies) of each exchange of "identity" or "small talk"."""
    blocks = (block.splitlines() for block in sections("identity")[section].split("\n\n"))
    return tuple(
        (tuple(line for line in block if line[0] != ">"), tuple(line[2:] for line in block if line[0] == ">")) for block in blocks
    )


def identity_turns(rng: random.Random) -> list[Message]:
    questions, replies = rng.choice(_exchanges("identity"))
    return [user(rng.choice(questions)), assistant(rng.choice(replies))]


def smalltalk_turns(rng: random.Random) -> list[Message]:
    questions, replies = rng.choice(_exchanges("small talk"))
    name = rng.choice(names())
    return [user(rng.choice(questions).replace("{n}", name)), assistant(rng.choice(replies).replace("{n}", name))]


def identity_document(rng: random.Random) -> str:
    """A page about the model, as prose or as questions and answers."""
    if rng.random() < 0.5:
        return " ".join(rng.sample(phrases("identity", "pages"), rng.randint(3, 8)))
    entries = rng.sample(_exchanges("identity"), rng.randint(3, 6))
    return "\n".join(f"Question: {rng.choice(questions)}\nAnswer: {rng.choice(replies)}" for questions, replies in entries)
