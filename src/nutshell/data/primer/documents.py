"""The pages of the schoolbook, for pretraining."""

import random
from collections.abc import Callable, Iterator

from nutshell.data.primer.facts import facts_document
from nutshell.data.primer.identity import NUTSHELL, Identity, identity_document
from nutshell.data.primer.letters import letters_document
from nutshell.data.primer.stories import story_document
from nutshell.data.primer.sums import sums_document

DOCUMENT_SHARES: dict[str, float] = {"stories": 0.30, "facts": 0.35, "letters": 0.20, "sums": 0.12, "identity": 0.03}
"""Share of the characters by kind of page."""

WRITERS: dict[str, Callable[[random.Random], str]] = {
    "stories": story_document,
    "facts": facts_document,
    "letters": letters_document,
    "sums": sums_document,
    "identity": identity_document,
}


def documents(seed: int, characters: int, identity: Identity = NUTSHELL) -> Iterator[str]:
    """Pages of the primer until at least `characters` characters are written. ValueError for a negative number.

    The same seed gives the same pages; a larger `characters` only goes on. `identity` is who the model says it is.
    Each page is of the kind that is furthest behind its share, so that every stretch of text holds the mixture.
    """
    if characters < 0:
        raise ValueError(f"characters must be 0 or more, got {characters}")
    return _write(random.Random(f"primer documents {seed}"), characters, identity)


def _write(rng: random.Random, characters: int, identity: Identity) -> Iterator[str]:
    # Written characters over share: the kind with the least is due. A random start keeps the order from being the same
    # for every seed.
    progress = {kind: rng.random() * 2000 / share for kind, share in DOCUMENT_SHARES.items()}
    written = 0
    while written < characters:
        kind = min(progress, key=progress.__getitem__)
        text = WRITERS[kind](rng)
        if kind == "identity":
            text = identity.fill(text)
        progress[kind] += len(text) / DOCUMENT_SHARES[kind]
        written += len(text)
        yield text
