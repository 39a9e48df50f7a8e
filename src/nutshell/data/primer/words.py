"""The words that are spelled and whose letters are counted, and which of them are kept for the tests.

Three sources, all lower case a-z:
- `EVERYDAY_WORDS` also occur in the stories and facts. They are spelled in training and never tested.
- `SPELLING_WORDS` are real words that occur nowhere else in the primer.
- `invented_word` glues the beginning of one real word to the end of another or builds one from syllables, so that
  every piece a tokenizer may cut a word into is seen in many surroundings.

The rule `is_held_out_word` decides by a hash of the word. Held-out words are absent from all spelling and counting
text, real and invented; those of `SPELLING_WORDS` (`held_out_words()`) are absent from all training text.
"""

import random
import zlib
from functools import lru_cache

from nutshell.data.primer.names import listed

HELD_OUT_ONE_IN = 8
SHORTEST, LONGEST = 3, 8

EVERYDAY_WORDS = listed(
    """
apple baby ball banana bear bed bee bell berry bird blue boat book bread bridge brother brown bucket cake cat chair
cheese cherry child circle clock cloud coat cold cook corn cow cup dark day dog door drum duck ear egg eye family farm
father fish flower fox friend frog fruit game garden gate girl grandma grass green hand happy hat hen hill home honey
horse house hungry kind king kite kitten ladder lamp leaf leaves letter light lion little long milk monkey moon morning
mother mouse mud nest night nose nut open orange owl paper party path peach pig pillow pony pot present puppy rabbit
rain red river road robin rock room rope round school sea shell ship shoe shop silver sister sky sleep slow small snow
soft song soup spider spring squirrel star stick stone story street strong summer sun sweet table tall teacher tiger
tomato tower toy train tree turtle umbrella village wagon warm water white wind window winter wolf wood wool word yellow
eleven seven three hello nutshell strawberry blueberry elephant butterfly hedgehog
"""
)

SPELLING_WORDS = listed(
    """
able about above accept actor admit adult advice affair afford agent agree alarm album alert alley allow almond alter
amaze amber among ample angel angle ankle annual answer anthem antler appeal arctic arena argue armor arrow artist aside
aspect asset assist attach attack attend attic author autumn avenue average avoid awake award bacon badge badger bagel
ballad ballet balloon bamboo bandage banjo banner bargain barley barrel basic basin basket battle beacon beaker beauty
because become beetle beggar begin behind belief belong bench benefit beside better between beyond bishop bitter blanket
blast blazer blend bless blister blizzard blossom blouse bonus border bother bottle bottom bounce boulder branch brand
brass brave breath breeze brick brief bright brisk broccoli broken bronze brush bubble buffalo buffet bugle bundle burden
butler button cabbage cabin cable cactus camel camera canal cancel candle canoe canvas canyon captain caramel caravan
carbon career cargo carnival carpet cartoon carve casino cattle caution cedar cellar cement center central century cereal
certain chamber channel chapel chapter charcoal charity charm chart chase chatter cheap cheer chess chest chimney choice
chorus chose church cinema citizen clarity clever client climate clinic cloak closet cluster clutch cobra cocoa coconut
coffee collar collect colony column combine comet comfort comma common compass concert conduct console contact contain
content contest control convert cookie cordial correct cottage cotton council counter county couple courage cousin
cradle crater crayon credit cricket crimson crisp critic crowd crown crystal cuckoo curtain cushion custom cycle daisy
damage danger daring darling dawn debate decade decide deck degree delay demand denim dentist depart depend depth deputy
desire despair dessert detail develop device devote diagram dialog differ digest digital dignity dinner direct discuss
disease dismiss display distant doctrine dollar dolphin domain donate donkey double dragon drama drawer drift
drill drought dummy duty dwarf dynamo eager early earnest echo eclipse economy edge editor effect effort either elastic
elbow elegant element eleventh embark embassy emerald emotion empire enable endless enemy engine enjoy enough ensure
entire entry equal error escape essay estate event evident exact example except excite exhibit exist exotic expand
expect expert explain export express extend extra fabric fable factor factory fail faint fairy faith falcon famous fancy
fantasy fashion fault favor feather federal fellow fence ferry festival fever fiber fiction fiddle field fierce fifth
figure filter final finance finger finish flag flame flannel flash flavor fleet flesh flight flood floor flour fluid
flute focus follow foreign forest forget formal fortune fossil fragile frame freedom freeze freight fresh frontier frost
frozen fuel funnel furnace future galaxy gallery gallon gamble garage garlic garment gather general gentle genuine ghost
giant ginger glacier glance glimmer glitter global glory glove goblin gossip govern grain grammar granite grape gravel
gravity grocery ground group growth guard guess guide guitar gutter gypsum habit hammer hammock handle harbor harmony
harvest hazard heaven height helmet herald heritage hermit heroic hinder history hobby hollow honest horizon hornet
hostage hotel human humble humor hurry husband icicle idea ideal ignite image impact import improve inch income index
indoor infant inform inject injury insect inside insist inspect install instead intend invent invite island ivory jacket
jaguar jelly jersey jewel jockey journal journey judge juggle jungle junior justice kennel kernel kettle kidney kingdom
kitchen knight knuckle label labor lagoon language lantern laptop large lately laugh laundry lawyer layer leader league
leather legend leisure lemon lemonade lesson liberty library license limit linen liquid listen lizard lobby lobster local
locket lodge lonely loose lotion lottery loyal lumber lunar luxury machine magnet maiden major mammoth manage mango manner
manor mansion mantle marble march margin marine market marsh mascot master matter meadow measure medal media medium
melody melon member memory mental mention mentor menu mercy merit message metal meteor method middle midnight mighty
million mineral minister minor mirror mission mitten mixture modern modest moment monarch monster moral mortar mosaic
motion motor mountain muffin muscle museum mustard mystery narrow nation native nature needle nephew nerve neutral nickel
nimble noble nomad normal notice novel number nurse nylon oasis object oblige observe obtain ocean offer office oldest
olive omega onion opera opinion option orbit orchard order organ origin ornament otter outside oval oven owner oyster
package paddle palace pancake panda panel panic panther parade parcel pardon parent parlor parrot partner passage pastel
pastry patent patient patrol pattern pause pavement peanut pebble pedal pelican pencil penguin penny pepper perfect
perfume period permit person phantom phrase physics piano picnic picture pigeon pilgrim pillar pioneer pirate pistol
pitcher planet plastic plate platform platter plaza pleasant plenty plumber pocket poem poetry poison police polish polite
pollen popcorn popular portion portrait postage potato potter pottery powder power praise prayer prefer premium prepare
pretty prevent price priest primary prince printer prison private prize process produce profit program project
promise protect proud provide public pudding pumpkin punch pupil puppet purchase purple purpose puzzle pyramid quality
quarrel quarter question quick quiet quilt quiver raccoon racket radar radio railway rainbow raisin random ransom rapid
rarely rather reason rebel recall receipt recipe record recruit reduce reef reflect reform refuse regard region regret
regular reject relax relief rely remain remark remedy remote remove render rental repair repeat report request
rescue reserve resort respect result retail return reveal review reward rhythm ribbon riddle ripple ritual rival roast
rocket rooster rotate rough royal rubber rubbish runner rural saddle sailor salad salmon salute sandal satin sauce
sausage savage scale scandal scarce scarf scatter scene scissor scooter score scratch screen script season second
secret section secure seldom select senator senior sensible sentence series serpent servant session settle shadow shampoo
shelter sheriff shield shimmer shiver shoulder shovel shower shrimp signal silent silk silly simple sincere single siren
sketch skill slender slice slogan smooth snack soccer social socket soldier solid spark special speech sphere spice spinach
spiral spirit splash sponge spoon sport stable stadium staff stage statue steady steam steel stereo stomach storage storm
stove strange stream stretch strict stroll student studio stumble subject subway success sudden suffer sugar suggest
summit sunset supper supply support surface surgeon surplus surprise swallow swamp sweater swift symbol syrup system
tablet tackle talent tangle target tavern teapot temper temple tender tennis tension terrace texture theater theory thimble
thirsty thorn thread throat throne thunder ticket timber tissue  today toddler tomorrow tongue topic torch tornado
total tourist towel trade traffic trailer transfer transit trap travel treasure treaty trial tribe trigger trolley trophy
tropical trouble trumpet trust tulip tumble tunnel turnip tutor twelfth twist typical tyrant uncle under unique unite
unless update upper uproar urban urgent useful usual utensil vacuum valley vampire vanilla vapor varnish vault velvet
vendor venture verdict vessel veteran victim victory video villain vinegar violet violin virtue vision visitor vitamin
vivid vocal volcano volume voucher voyage waffle walnut walrus wander warrior wealth weapon weasel weather wedding
welcome western whistle wicked widow wilderness willow wisdom witness wizard wonder worker worship wrench wrist writer
yogurt young zebra zipper
"""
)

ONSETS = ("", *listed("b c d f g h j k l m n p r s t v w bl br ch cl cr dr fl fr gl gr pl pr sh sl sp st th tr"))
VOWELS = listed("a a e e i i o o u ai ea ee oo ou")
CODAS = ("", "", "", "b", "ck", "d", "g", "l", "ll", "m", "n", "nd", "ng", "nt", "p", "r", "rt", "s", "st", "t", "tt")
VOWEL_LETTERS = frozenset("aeiouy")
TAILS = ("", "", "", "er", "y", "le", "ing", "et", "on", "a", "o", "al", "ed")

UNWANTED = (
    "ass",
    "cock",
    "cum",
    "cunt",
    "dick",
    "fag",
    "fuc",
    "fuk",
    "kik",
    "nig",
    "pis",
    "poo",
    "por",
    "rap",
    "sex",
    "shit",
    "slut",
    "tit",
)
"""Invented words that contain one of these are thrown away: chance makes rude ones too."""


def is_held_out_word(word: str) -> bool:
    """True for the words kept for the tests: about one in `HELD_OUT_ONE_IN`, by CRC-32, the same on every machine."""
    return zlib.crc32(word.encode()) % HELD_OUT_ONE_IN == 0


@lru_cache(maxsize=1)
def training_words() -> tuple[str, ...]:
    """Real words that are spelled and counted in training text."""
    return tuple(w for w in dict.fromkeys(EVERYDAY_WORDS + SPELLING_WORDS) if not is_held_out_word(w))


@lru_cache(maxsize=1)
def held_out_words() -> tuple[str, ...]:
    """Real words of 3 to 8 letters that occur in no training text: the words of the test items."""
    everyday = set(EVERYDAY_WORDS)
    return tuple(
        word
        for word in dict.fromkeys(SPELLING_WORDS)
        if is_held_out_word(word) and word not in everyday and SHORTEST <= len(word) <= LONGEST
    )


@lru_cache(maxsize=1)
def _halves() -> tuple[tuple[str, ...], tuple[str, ...]]:
    words = [word for word in SPELLING_WORDS if not is_held_out_word(word)]
    heads = tuple(word[:cut] for word in words for cut in (2, 3, 4) if cut < len(word))
    tails = tuple(word[-cut:] for word in words for cut in (2, 3, 4) if cut < len(word))
    return heads, tails


@lru_cache(maxsize=1)
def _reserved() -> frozenset[str]:
    return frozenset(EVERYDAY_WORDS + SPELLING_WORDS)


def invented_word(rng: random.Random, held_out: bool = False) -> str:
    """A pronounceable made-up word of 3 to 8 letters, not in the lists; with `held_out` one kept for the tests."""
    heads, tails = _halves()
    while True:
        if rng.random() < 0.6:
            word = rng.choice(heads) + rng.choice(tails)
        else:
            word = rng.choice(ONSETS) + rng.choice(VOWELS) + rng.choice(CODAS)
            if rng.random() < 0.5:
                word += rng.choice(ONSETS) + rng.choice(VOWELS) + rng.choice(CODAS)
            word += rng.choice(TAILS)
        if not SHORTEST <= len(word) <= LONGEST or is_held_out_word(word) != held_out or word in _reserved():
            continue
        if any(each in VOWEL_LETTERS for each in word) and not any(part in word for part in UNWANTED):
            return word


def training_word(rng: random.Random, invented: float = 0.5) -> str:
    """A word for spelling or counting: invented with probability `invented`, else a real one."""
    return invented_word(rng) if rng.random() < invented else rng.choice(training_words())
