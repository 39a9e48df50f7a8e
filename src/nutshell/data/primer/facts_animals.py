"""Facts about animals. See `Relation` for the fields and the placeholders."""

from nutshell.data.primer.relation import Relation, lines, same_for

_SOUNDS = Relation(
    name="sound",
    pairs=lines(
        """
cow: moo
dog: woof
cat: meow
sheep: baa
duck: quack
pig: oink
lion: roar
horse: neigh
owl: hoot
bee: buzz
snake: hiss
mouse: squeak
frog: croak
crow: caw
wolf: howl
hen: cluck
chick: cheep
turkey: gobble
"""
    ),
    np="the sound of {an_s}",
    reply="{An_s} says {a}.",
    statements=(
        "The sound of {an_s} is {a}.",
        "When you hear {a}, it may be {an_s}.",
        "Listen to the {s}: {a}, {a}!",
        "The {s} says {a}.",
    ),
    questions=(
        "What sound does {an_s} make?",
        "What does {an_s} say?",
        "What does the {s} say?",
        "Which sound does {an_s} make?",
        "What noise does {an_s} make?",
        "How does {an_s} sound?",
        "what sound do you hear from {an_s}",
    ),
    held_out=("Which noise comes from {an_s}?", "If {an_s} wants to say something, what will it say?"),
    follow_ups=("And {an_s}?", "What about {an_s}?", "And what does {an_s} say?"),
)

_SPEAKERS = Relation(
    name="speaker",
    pairs=tuple((sound, animal) for animal, sound in _SOUNDS.pairs),
    np="the animal that says {s}",
    reply="{An_a} says {s}.",
    statements=("If you hear {s}, think of {an_a}.", "The animal that says {s} is the {a}."),
    questions=(
        "Which animal says {s}?",
        "What animal says {s}?",
        "Who says {s}?",
        "What says {s}?",
        "Which animal makes the sound {s}?",
        "What animal goes {s}?",
    ),
    held_out=("I hear {s}. Which animal is near?", "{S}! Which animal was that?"),
    follow_ups=("And {s}?", "And who says {s}?"),
)

_YOUNG = Relation(
    name="young",
    pairs=lines(
        """
cow: calf
dog: puppy
cat: kitten
sheep: lamb
horse: foal
pig: piglet
duck: duckling
hen: chick
goat: kid
lion: cub
bear: cub
frog: tadpole
deer: fawn
goose: gosling
swan: cygnet
owl: owlet
elephant: calf
kangaroo: joey
hare: leveret
butterfly: caterpillar
"""
    ),
    np="the name of a young {s}",
    reply="A young {s} is called {an_a}.",
    statements=(
        "{An_a} is a young {s}.",
        "The baby of {an_s} is {an_a}.",
        "{An_a} grows up and becomes {an_s}.",
        "The mother is {an_s} and her baby is {an_a}.",
    ),
    questions=(
        "What is a young {s} called?",
        "What is a baby {s} called?",
        "What do you call a baby {s}?",
        "What do we call a young {s}?",
        "What is the baby of {an_s} called?",
        "How do you call the young of {an_s}?",
        "name of a baby {s}",
    ),
    held_out=("Which word do we use for a baby {s}?", "When {an_s} is still a baby, what is it called?"),
    follow_ups=("And a young {s}?", "And a baby {s}?", "And {an_s}?"),
    also_true={"hen": ("cub",), "hare": ("kid",), "elephant": ("cub",)},
)

_HOMES = Relation(
    name="home",
    pairs=lines(
        """
bee: hive
bird: nest
horse: stable
dog: kennel
spider: web
lion: den
ant: anthill
pig: sty
hen: coop
wolf: den
fox: den
eagle: nest
beaver: lodge
rabbit: burrow
squirrel: tree
"""
    ),
    np="the home of {an_s}",
    reply="The home of {an_s} is {an_a}.",
    statements=(
        "{An_s} lives in {an_a}.",
        "In {an_a} lives {an_s}.",
        "{An_a} is the home of {an_s}.",
        "The {s} sleeps in its {a}.",
    ),
    questions=(
        "Where does {an_s} live?",
        "Where does the {s} live?",
        "What is the home of {an_s} called?",
        "What does {an_s} live in?",
        "Which home does {an_s} have?",
        "In what does {an_s} live?",
        "Where is the home of {an_s}?",
    ),
    held_out=("Where would you look for {an_s} at home?", "What do we call the place where {an_s} lives?"),
    follow_ups=("And {an_s}?", "And where does {an_s} live?", "What about {an_s}?"),
    also_true={
        "bird": ("tree",),
        "eagle": ("tree",),
        "ant": ("tree", "burrow", "nest"),
        "spider": ("tree", "nest", "burrow"),
        "bee": ("tree", "nest"),
        "squirrel": ("nest", "den"),
        "rabbit": ("den", "nest"),
        "fox": ("burrow",),
        "dog": ("den",),
        "pig": ("stable",),
        "beaver": ("den", "burrow"),
    },
)

_LEGS = Relation(
    name="legs",
    pairs=same_for("no", "snake fish worm snail whale dolphin")
    + same_for("two", "duck hen owl swan crow robin ostrich")
    + same_for("four", "dog cat cow horse pig lion frog mouse sheep rabbit elephant turtle")
    + same_for("six", "ant bee fly butterfly beetle wasp")
    + same_for("eight", "spider scorpion"),
    np="how many legs {an_s} has",
    clause=True,
    reply="{An_s} has {a} legs.",
    statements=(
        "The {s} has {a} legs.",
        "{An_s} stands on {a} legs.",
        "Count the legs of {an_s}: it has {a} legs.",
        "Like all of its kind, {an_s} has {a} legs.",
    ),
    questions=(
        "How many legs does {an_s} have?",
        "How many legs has {an_s}?",
        "How many legs does the {s} have?",
        "What is the number of legs of {an_s}?",
        "{An_s} has how many legs?",
        "On how many legs does {an_s} walk?",
        "how many legs are on {an_s}",
    ),
    held_out=("If you count the legs of {an_s}, how many do you get?", "Say how many legs we find on {an_s}."),
    follow_ups=("And {an_s}?", "What about {an_s}?", "And how many legs does {an_s} have?"),
)

_GROUPS = Relation(
    name="animal group",
    pairs=same_for("mammal", "dog cat cow horse lion mouse whale bat elephant monkey bear dolphin fox")
    + same_for("bird", "owl duck hen robin eagle swan crow ostrich parrot")
    + same_for("fish", "shark tuna trout herring cod goldfish")
    + same_for("insect", "ant bee fly butterfly wasp moth")
    + same_for("reptile", "snake turtle crocodile gecko")
    + same_for("amphibian", "frog toad newt"),
    np="what kind of animal {an_s} is",
    clause=True,
    reply="{An_s} is {an_a}.",
    statements=(
        "{An_s} is an animal, and it is {an_a}.",
        "The {s} is {an_a}.",
        "One kind of {a} is the {s}.",
        "{An_s} is a kind of {a}.",
    ),
    questions=(
        "What is {an_s}?",
        "What kind of animal is {an_s}?",
        "Which kind of animal is {an_s}?",
        "What type of animal is {an_s}?",
        "Is {an_s} a mammal, a bird or something else?",
        "Which group of animals does {an_s} belong to?",
        "What sort of animal is the {s}?",
        "{An_s} is what kind of animal?",
    ),
    held_out=("In which animal group do we find {an_s}?", "How would you class {an_s} as an animal?"),
    follow_ups=("And {an_s}?", "What about {an_s}?", "And what kind of animal is {an_s}?"),
)

ANIMALS = (_SOUNDS, _SPEAKERS, _YOUNG, _HOMES, _LEGS, _GROUPS)
