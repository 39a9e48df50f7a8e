"""Very short stories: a hero, a friend, a helper, a place, something that goes wrong and how it ends well."""

import random
from functools import cache

from nutshell.data.primer.book import phrases, sections
from nutshell.data.primer.problem import Message, assistant, user
from nutshell.data.primer.relation import capital, with_article

OPTIONAL_BEAT = 0.5
ANIMAL_HERO = 0.5

SHE_KINDS = ("princess", "queen", "witch", "fairy", "hen")
HE_KINDS = ("prince", "king")
CHILDREN = ("girl", "boy")


@cache
def _plots() -> tuple[tuple[tuple[bool, tuple[str, ...]], ...], ...]:
    """Every plot as beats of (optional, variants)."""
    plots = []
    for text in sections("plots").values():
        beats = []
        for block in text.split("\n\n"):
            variants = block.split("\n")
            beats.append(("?" in variants, tuple(line for line in variants if line != "?")))
        plots.append(tuple(beats))
    return tuple(plots)


def _one(rng: random.Random, heading: str) -> str:
    return rng.choice(phrases("stories", heading))


def _named(rng: random.Random, heading: str) -> tuple[str, str]:
    """A name and "he" or "she", as in "Grandma (she)"."""
    name, _, pronoun = _one(rng, heading).rpartition(" (")
    return name, pronoun.rstrip(")")


def _someone(rng: random.Random, taken: str = "") -> tuple[str, str, tuple[str, str, str]]:
    """A name, what they are, and he/him/his or she/her/her."""
    while True:
        if rng.random() < ANIMAL_HERO:
            (name, pronoun), kind = _named(rng, "animal names"), _one(rng, "animals")
            female = pronoun == "she"
            if kind in (HE_KINDS if female else SHE_KINDS):
                continue
        else:
            female = rng.random() < 0.5
            name, kind = (_one(rng, "girls"), "girl") if female else (_one(rng, "boys"), "boy")
        if name != taken:
            return name, kind, ("she", "her", "her") if female else ("he", "him", "his")


def _cast(rng: random.Random) -> dict[str, str]:
    """All placeholders of the plots, filled for one story."""
    h, k, (he, him, his) = _someone(rng)
    f, fk, (fhe, fhim, fhis) = _someone(rng, taken=h)
    e, ehe = _named(rng, "helpers")
    at = _one(rng, "places")
    time, food = _one(rng, "times"), _one(rng, "foods")
    size, colour = _one(rng, "sizes"), _one(rng, "colours")
    return {
        "h": h, "k": k, "he": he, "him": him, "his": his, "He": capital(he), "His": capital(his),
        "f": f, "fk": fk, "fhe": fhe, "fhim": fhim, "fhis": fhis, "Fhe": capital(fhe), "His_f": capital(fhis),
        "e": e, "E": capital(e), "e_cap": capital(e), "ehe": ehe, "Ehe": capital(ehe),
        "at": at, "to": f"to {at.split(' ', 1)[1]}", "time": time, "Time": capital(time), "food": food, "food_cap": capital(food),
        "t": _one(rng, "toys"), "c": colour, "skill": _one(rng, "skills"), "young": _one(rng, "young"),
        "a_c": with_article(colour), "fn": f if fk in CHILDREN else f"{f} the {fk}",
        "thing": _one(rng, "things to build"), "gift": _one(rng, "gifts"), "a_k": with_article(f"{size} {k}"),
        "home": _one(rng, "homes of children" if k in CHILDREN else "homes of animals"),
    }  # fmt: skip


def _tell(rng: random.Random, cast: dict[str, str]) -> list[str]:
    sentences = [_one(rng, "openings")]
    for optional, variants in rng.choice(_plots()):
        if not optional or rng.random() < OPTIONAL_BEAT:
            sentences.append(rng.choice(variants))
    return [sentence.format_map(cast) for sentence in sentences]


def story_document(rng: random.Random) -> str:
    """A story of about 100 to 160 words, sometimes with a title."""
    cast = _cast(rng)
    beats = _tell(rng, cast)
    if rng.random() < 0.5:
        middle = rng.randint(2, len(beats) - 2)
        text = " ".join(beats[:middle]) + "\n" + " ".join(beats[middle:])
    else:
        text = " ".join(beats)
    return f"A story about {_full_name(cast)}\n{text}" if rng.random() < 0.3 else text


def _full_name(cast: dict[str, str]) -> str:
    return cast["h"] if cast["k"] in CHILDREN else f"{cast['h']} the {cast['k']}"


def story_turns(rng: random.Random) -> list[Message]:
    """A request for a story, often about someone or something, and the story."""
    cast = _cast(rng)
    story = " ".join(_tell(rng, cast))
    if rng.random() < 0.25:
        return [user(_one(rng, "requests")), assistant(story)]
    about = rng.choice((with_article(cast["k"]), with_article(cast["k"]), _full_name(cast), cast["h"]))
    return [user(_one(rng, "requests about").format(x=about)), assistant(story)]
