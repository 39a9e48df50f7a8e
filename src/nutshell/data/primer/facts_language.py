"""Facts about words, letters, numbers, days, months and people's work. See `Relation` for the fields and placeholders."""

from nutshell.data.primer.names import listed
from nutshell.data.primer.relation import Relation, lines

DAYS = listed("Monday Tuesday Wednesday Thursday Friday Saturday Sunday")
MONTHS = listed("January February March April May June July August September October November December")
ORDINALS = listed("first second third fourth fifth sixth seventh eighth ninth tenth eleventh twelfth")
NUMBER_WORDS = listed(
    "zero one two three four five six seven eight nine ten eleven twelve thirteen fourteen fifteen sixteen seventeen "
    "eighteen nineteen twenty"
)
Pairs = tuple[tuple[str, str], ...]
ALPHABET = "ABCDEFGHIJKLMNOPQRSTUVWXYZ"


def _after(name: str, kind: str, pairs: Pairs) -> Relation:
    """The relation "what comes next" of days or months."""
    return Relation(
        name=name,
        pairs=pairs,
        np=f"the {kind} after {{s}}",
        reply=f"The {kind} after {{s}} is {{a}}.",
        statements=(
            "After {s} comes {a}.",
            "{a} comes after {s}.",
            "{s} comes first and then {a}.",
            f"{{a}} is the {kind} after {{s}}.",
        ),
        questions=(
            "What comes after {s}?",
            f"Which {kind} comes after {{s}}?",
            f"What {kind} is after {{s}}?",
            "What comes right after {s}?",
            f"Which {kind} is next after {{s}}?",
            "{s} and then?",
        ),
        held_out=(
            f"When {{s}} is over, which {kind} begins?",
            f"After the {kind} {{s}} we have what {kind}?",
        ),
        follow_ups=("And after {s}?", "And what comes after {s}?"),
    )


def _before(name: str, kind: str, pairs: Pairs) -> Relation:
    """The relation "what comes just before" of days or months."""
    return Relation(
        name=name,
        pairs=pairs,
        np=f"the {kind} before {{s}}",
        reply=f"The {kind} before {{s}} is {{a}}.",
        statements=(
            "Before {s} comes {a}.",
            "{a} comes before {s}.",
            f"{{a}} is the {kind} before {{s}}.",
            "{a} comes first and {s} is next.",
        ),
        questions=(
            "What comes before {s}?",
            f"Which {kind} comes before {{s}}?",
            f"What {kind} is before {{s}}?",
            "What comes right before {s}?",
            f"Which {kind} was it before {{s}}?",
        ),
        held_out=(
            f"Which {kind} ends when {{s}} begins?",
            f"Before the {kind} {{s}} we had what {kind}?",
        ),
        follow_ups=("And before {s}?", "And what comes before {s}?"),
    )


def _cycle(names: tuple[str, ...], step: int) -> Pairs:
    return tuple((name, names[(index + step) % len(names)]) for index, name in enumerate(names))


LANGUAGE = (
    _after("day after", "day", _cycle(DAYS, 1)),
    _before("day before", "day", _cycle(DAYS, -1)),
    _after("month after", "month", _cycle(MONTHS, 1)),
    _before("month before", "month", _cycle(MONTHS, -1)),
    Relation(
        name="month number",
        pairs=tuple(zip(ORDINALS, MONTHS, strict=True)),
        np="the {s} month of the year",
        reply="The {s} month of the year is {a}.",
        statements=("{a} is the {s} month of the year.", "The {s} month is {a}.", "In a year, {a} is the {s} month."),
        questions=(
            "Which month is the {s} of the year?",
            "What month is the {s} month?",
            "Which is the {s} month of the year?",
            "What is the name of the {s} month?",
            "What is the {s} month?",
            "{s} month of the year",
        ),
        held_out=("Of the twelve months, which one is the {s}?", "Counting from January, which month is {s}?"),
        follow_ups=("And the {s} month?", "And the {s}?"),
    ),
    Relation(
        name="letter after",
        pairs=tuple(zip(ALPHABET, ALPHABET[1:], strict=False)),
        np="the letter after {s}",
        reply="The letter after {s} is {a}.",
        statements=(
            "In the alphabet, {a} comes after {s}.",
            "After the letter {s} comes {a}.",
            "{s} is the letter before {a}.",
            "The next letter after {s} is {a}.",
        ),
        questions=(
            "Which letter comes after {s}?",
            "What letter comes after {s}?",
            "What comes after {s} in the alphabet?",
            "Which letter is after {s} in the alphabet?",
            "What is the next letter after {s}?",
            "Which letter is next after {s}?",
        ),
        held_out=("When I say the alphabet, what do I say after {s}?", "In the alphabet, {s} stands before which letter?"),
        follow_ups=("And after {s}?", "And the letter after {s}?"),
    ),
    Relation(
        name="number word",
        pairs=tuple((word, str(number)) for number, word in enumerate(NUMBER_WORDS)),
        np="the number {s} in digits",
        reply="The number {s} is written {a}.",
        statements=("{S} is written {a}.", "We write {a} and say {s}.", "{a} is the number {s}.", "In digits, {s} is {a}."),
        questions=(
            "How do you write {s} in digits?",
            "How is the number {s} written?",
            "How do I write {s} as a number?",
            "Write the number {s} in digits.",
            "Write {s} as a number.",
            "Which number is {s}?",
        ),
        held_out=("With which digits do we write {s}?", "I say {s}. Which number should you put on paper?"),
        follow_ups=("And {s}?", "And the number {s}?"),
    ),
    Relation(
        name="opposite",
        pairs=lines(
            """
big: small
hot: cold
day: night
up: down
left: right
black: white
good: bad
happy: sad
fast: slow
tall: short
old: new
open: closed
full: empty
wet: dry
hard: soft
loud: quiet
light: dark
rich: poor
strong: weak
early: late
first: last
clean: dirty
thick: thin
high: low
near: far
inside: outside
push: pull
win: lose
begin: end
come: go
give: take
buy: sell
laugh: cry
love: hate
always: never
heavy: light
deep: shallow
sweet: sour
wide: narrow
true: false
north: south
east: west
summer: winter
friend: enemy
question: answer
war: peace
life: death
start: stop
float: sink
sharp: blunt
"""
        ),
        np="the opposite of {s}",
        reply="The opposite of {s} is {a}.",
        statements=(
            "{A} is the opposite of {s}.",
            "Say {s} and then its opposite: {a}.",
            "{S} and {a} are opposites.",
            "The opposite of the word {s} is {a}.",
        ),
        questions=(
            "What is the opposite word of {s}?",
            "Which word is the opposite of {s}?",
            "What word means the opposite of {s}?",
            "Which word means the opposite of {s}?",
            "opposite of {s}",
            "What's the opposite of {s}?",
            "Say the opposite of {s}.",
        ),
        held_out=("{S} has which word as its opposite?", "Which word do you get if you turn {s} into its opposite?"),
        follow_ups=("And of {s}?", "And the opposite of {s}?", "What about {s}?"),
        also_true={
            "big": ("thin", "short"),
            "give": ("sell",),
            "loud": ("soft",),
            "light": ("heavy", "thick"),
            "heavy": ("thin",),
            "strong": ("soft",),
            "deep": ("high",),
            "thick": ("narrow",),
            "wide": ("thin",),
            "tall": ("small", "low"),
            "first": ("end", "late"),
            "begin": ("stop",),
            "start": ("end",),
            "happy": ("cry",),
            "laugh": ("sad",),
            "white": ("dark",),
            "sharp": ("soft",),
            "love": ("war", "enemy"),
            "high": ("small", "short", "shallow"),
            "black": ("light",),
            "up": ("low",),
            "friend": ("hate",),
        },
    ),
    Relation(
        name="past",
        pairs=lines(
            """
go: went
see: saw
eat: ate
run: ran
come: came
give: gave
take: took
make: made
say: said
find: found
sing: sang
swim: swam
drink: drank
write: wrote
fly: flew
buy: bought
think: thought
bring: brought
sleep: slept
fall: fell
know: knew
sit: sat
"""
        ),
        np="the past form of {s}",
        reply="Today I {s}, yesterday I {a}.",
        statements=(
            "The past form of {s} is {a}.",
            "{A} is the past of {s}.",
            "We say I {s} today and I {a} yesterday.",
            "Today they {s}. Yesterday they {a}.",
        ),
        questions=(
            "What is the past of {s}?",
            "What is the past tense of {s}?",
            "How do you say {s} in the past?",
            "Today I {s}. And yesterday?",
            "Which word is the past of {s}?",
            "past tense of {s}",
        ),
        held_out=("If I {s} today, what do I say about yesterday?", "Put the word {s} into the past."),
        follow_ups=("And {s}?", "And the past of {s}?"),
    ),
    Relation(
        name="plural",
        pairs=lines(
            """
mouse: mice
child: children
foot: feet
tooth: teeth
man: men
woman: women
goose: geese
leaf: leaves
knife: knives
wolf: wolves
sheep: sheep
fish: fish
baby: babies
ox: oxen
box: boxes
city: cities
half: halves
"""
        ),
        np="the plural of {s}",
        reply="One {s}, two {a}.",
        statements=(
            "The plural of {s} is {a}.",
            "One is called {an_s}, many are called {a}.",
            "We say one {s} and many {a}.",
            "{A} is the plural of {s}.",
        ),
        questions=(
            "What is the plural form of {s}?",
            "What is more than one {s} called?",
            "One {s}, two what?",
            "How do you say two of {an_s}?",
            "Which word is the plural of {s}?",
            "plural of {s}",
        ),
        held_out=("If there are many of {an_s}, what do we call them?", "I see {an_s}, and then another. I see two what?"),
        follow_ups=("And of {s}?", "And the plural of {s}?"),
    ),
    Relation(
        name="work",
        pairs=lines(
            """
bakes bread: baker
teaches children: teacher
helps sick people: doctor
grows corn: farmer
cooks food: cook
flies a plane: pilot
puts out fires: firefighter
cuts hair: barber
catches fish: fisherman
drives a bus: bus driver
brings letters: mail carrier
repairs cars: mechanic
paints pictures: painter
builds houses: builder
looks after teeth: dentist
sells meat: butcher
flies into space: astronaut
keeps bees: beekeeper
makes clothes: tailor
"""
        ),
        np="the job of someone who {s}",
        reply="{An_a} {s}.",
        statements=(
            "The {a} {s}.",
            "A person who {s} is {an_a}.",
            "The work of {an_a}: {an_a} {s}.",
            "When I grow up I want to be {an_a}, a person who {s}.",
        ),
        questions=(
            "Who {s}?",
            "Which person {s}?",
            "What do you call a person who {s}?",
            "What is a person who {s} called?",
            "Who is the one who {s}?",
            "Someone {s}. What is that person called?",
        ),
        held_out=("A woman {s}. What is she?", "Whose work is it when someone {s}?"),
        follow_ups=("And who {s}?", "And someone who {s}?"),
    ),
)
