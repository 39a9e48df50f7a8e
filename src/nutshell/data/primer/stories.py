"""Very short stories: a hero, a friend, a helper, a place, something that goes wrong and how it ends well."""

import random
from functools import lru_cache

from nutshell.data.primer.names import BOYS, GIRLS, listed
from nutshell.data.primer.problem import Message, assistant, user
from nutshell.data.primer.relation import capital, with_article
from nutshell.data.primer.story_plots import FIRST_PLOTS
from nutshell.data.primer.story_plots_more import MORE_PLOTS

OPTIONAL_BEAT = 0.5
ANIMAL_HERO = 0.5

ANIMAL_NAMES = (
    "Pip",
    "Rusty",
    "Bella",
    "Coco",
    "Milo",
    "Daisy",
    "Teddy",
    "Poppy",
    "Bruno",
    "Luna",
    "Oscar",
    "Molly",
    "Toby",
    "Nelly",
)
SHE_ANIMALS = ("Bella", "Coco", "Daisy", "Poppy", "Luna", "Molly", "Nelly")
ANIMALS = listed(
    """rabbit fox bear cat dog mouse squirrel hedgehog frog duck pig sheep turtle badger pony kitten puppy rabbit fox bear
    cat dog mouse lion tiger monkey elephant horse goat hen owl snail bee crab seal whale parrot dragon dinosaur robot
    prince princess king queen pirate witch fairy giant star cloud"""
)
"""What a hero may be, the commoner ones twice."""
SHE_KINDS = ("princess", "queen", "witch", "fairy", "hen")
HE_KINDS = ("prince", "king")
CHILDREN = ("girl", "boy")
SIZES = ("little", "small", "young", "kind", "brave", "shy", "funny", "quiet", "clever", "happy")
CHILD_HOMES = (
    "in a small house by the sea",
    "in a red house on a hill",
    "in a little village",
    "on a farm",
    "at the end of a long street",
    "in a big town",
    "near the river",
    "over a bread shop",
)
ANIMAL_HOMES = (
    "in the wood",
    "under an old oak tree",
    "near a blue lake",
    "at the foot of a hill",
    "in a warm hole by the river",
    "on a farm",
    "behind the old mill",
    "in a green valley",
)
OPENINGS = (
    "Once there was {a_k} named {h}.",
    "Once upon a time there was {a_k} called {h}. {He} lived {home}.",
    "{h} was {a_k}. {He} lived {home}.",
    "There was once {a_k} who lived {home}. {His} name was {h}.",
    "{h}, {a_k}, lived {home}.",
    "Do you know {h}? {He} is {a_k} who lives {home}.",
    "This is the story of {h}, {a_k}.",
    "A long time ago, {a_k} lived {home}. {His} name was {h}.",
)
HELPERS = (
    ("Grandma", "she"),
    ("Grandpa", "he"),
    ("Mother", "she"),
    ("Father", "he"),
    ("the old owl", "she"),
    ("the old turtle", "he"),
    ("Aunt Rose", "she"),
    ("Uncle Fred", "he"),
    ("the teacher", "she"),
    ("the baker", "he"),
    ("the old man next door", "he"),
)
TIMES = (
    "one day",
    "one morning",
    "one sunny day",
    "one cold morning",
    "one afternoon",
    "on a warm day in spring",
    "on the first day of summer",
    "one windy day",
    "one Sunday",
    "on a Monday",
    "after lunch",
    "last week",
    "early in the morning",
)
PLACES = tuple(
    (f"{preposition} the {place}", f"to the {place}")
    for preposition, place in (
        ("in", "garden"),
        ("in", "park"),
        ("in", "wood"),
        ("on", "beach"),
        ("on", "hill"),
        ("by", "river"),
        ("at", "lake"),
        ("on", "meadow"),
        ("near", "school"),
        ("at", "farm"),
        ("behind", "barn"),
        ("near", "bridge"),
        ("at", "market"),
        ("by", "pond"),
    )
)
TOYS = listed("ball kite doll boat drum hat train top bear car ring cup bag scarf bell book")
COLOURS = listed("red blue green yellow white black brown pink orange silver golden purple")
FOODS = (
    "apple cake",
    "bread and honey",
    "tomato soup",
    "pancakes",
    "cherry pie",
    "warm bread",
    "noodle soup",
    "plum cake",
    "berry jam",
    "carrot cake",
    "potato soup",
    "sweet corn",
    "cookies",
)
SKILLS = (
    "swim",
    "ride a bicycle",
    "whistle",
    "jump over the rope",
    "read",
    "climb",
    "dance",
    "skate on the ice",
    "row the boat",
    "walk on stilts",
)
YOUNG = listed("lamb duckling kitten puppy foal calf cub bear mouse chick")
THINGS = ("boat", "tree house", "bridge over the pond", "bird house", "wagon", "tent", "tower", "raft")
GIFTS = ("scarf", "picture", "cup", "box for letters", "hat", "chain of shells", "bag", "little book", "pair of socks")
STORY_REQUESTS = (
    "Tell me a story.",
    "Tell me a short story.",
    "Please tell me a story.",
    "Can you tell me a story?",
    "I want to hear a story.",
    "Write a short story.",
    "Tell me a bedtime story.",
)
ABOUT_REQUESTS = (
    "Tell me a story about {x}.",
    "Tell me a short story about {x}.",
    "Can you tell me a story about {x}?",
    "Please tell me a story about {x}.",
    "Write a story about {x}.",
    "I want a story about {x}.",
    "Do you know a story about {x}?",
)


@lru_cache(maxsize=1)
def _plots() -> tuple[tuple[tuple[bool, tuple[str, ...]], ...], ...]:
    """Every plot as beats of (optional, variants)."""
    plots = []
    for text in FIRST_PLOTS + MORE_PLOTS:
        beats = []
        for block in text.strip().split("\n\n"):
            variants = block.split("\n")
            beats.append(("?" in variants, tuple(line for line in variants if line != "?")))
        plots.append(tuple(beats))
    return tuple(plots)


def _someone(rng: random.Random, taken: str = "") -> tuple[str, str, tuple[str, str, str]]:
    """A name, what they are, and he/him/his or she/her/her."""
    while True:
        if rng.random() < ANIMAL_HERO:
            name, kind = rng.choice(ANIMAL_NAMES), rng.choice(ANIMALS)
            female = name in SHE_ANIMALS
            if kind in (HE_KINDS if female else SHE_KINDS):
                continue
        else:
            female = rng.random() < 0.5
            name, kind = (rng.choice(GIRLS), "girl") if female else (rng.choice(BOYS), "boy")
        if name != taken:
            return name, kind, ("she", "her", "her") if female else ("he", "him", "his")


def _cast(rng: random.Random) -> dict[str, str]:
    """All placeholders of the plots, filled for one story."""
    h, k, (he, him, his) = _someone(rng)
    f, fk, (fhe, fhim, fhis) = _someone(rng, taken=h)
    e, ehe = rng.choice(HELPERS)
    at, to = rng.choice(PLACES)
    time, food = rng.choice(TIMES), rng.choice(FOODS)
    size, colour = rng.choice(SIZES), rng.choice(COLOURS)
    return {
        "h": h, "k": k, "he": he, "him": him, "his": his, "He": capital(he), "His": capital(his),
        "f": f, "fk": fk, "fhe": fhe, "fhim": fhim, "fhis": fhis, "Fhe": capital(fhe), "His_f": capital(fhis),
        "e": e, "E": capital(e), "e_cap": capital(e), "ehe": ehe, "Ehe": capital(ehe),
        "at": at, "to": to, "time": time, "Time": capital(time), "food": food, "food_cap": capital(food),
        "t": rng.choice(TOYS), "c": colour, "skill": rng.choice(SKILLS), "young": rng.choice(YOUNG),
        "a_c": with_article(colour), "fn": f if fk in CHILDREN else f"{f} the {fk}",
        "thing": rng.choice(THINGS), "gift": rng.choice(GIFTS), "a_k": with_article(f"{size} {k}"),
        "home": rng.choice(CHILD_HOMES if k in CHILDREN else ANIMAL_HOMES),
    }  # fmt: skip


def _tell(rng: random.Random, cast: dict[str, str]) -> list[str]:
    sentences = [rng.choice(OPENINGS)]
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
        return [user(rng.choice(STORY_REQUESTS)), assistant(story)]
    about = rng.choice((with_article(cast["k"]), with_article(cast["k"]), _full_name(cast), cast["h"]))
    return [user(rng.choice(ABOUT_REQUESTS).format(x=about)), assistant(story)]
