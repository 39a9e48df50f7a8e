"""The words that are spelled and whose letters are counted, and which of them are kept for the tests.

Three sources, all lower case a-z, the first two in book/words.txt:
- everyday words, which also occur in the stories and facts. They are spelled in training and never tested.
- spelling words, which occur nowhere else in the primer.
- `invented_word` glues the beginning of one real word to the end of another or builds one from syllables, so that
  every piece a tokenizer may cut a word into is seen in many surroundings.

The rule `is_held_out_word` decides by a hash of the word. Held-out words are absent from all spelling and counting
text, real and invented; those of the spelling words (`held_out_words`) are absent from all training text.
"""

import random
import zlib
from functools import cache

from nutshell.data.primer.book import sections

HELD_OUT_ONE_IN = 8
SHORTEST, LONGEST = 3, 8

VOWEL_LETTERS = frozenset("aeiouy")


def is_held_out_word(word: str) -> bool:
    """True for the words kept for the tests: about one in `HELD_OUT_ONE_IN`, by CRC-32, the same on every machine."""
    return zlib.crc32(word.encode()) % HELD_OUT_ONE_IN == 0


@cache
def _words(heading: str) -> tuple[str, ...]:
    return tuple(sections("words")[heading].split())


@cache
def training_words() -> tuple[str, ...]:
    """Real words that are spelled and counted in training text."""
    return tuple(w for w in dict.fromkeys(_words("everyday") + _words("spelling")) if not is_held_out_word(w))


@cache
def held_out_words() -> tuple[str, ...]:
    """Real words of 3 to 8 letters that occur in no training text: the words of the test items."""
    words = (word for word in _words("spelling") if is_held_out_word(word) and word not in _words("everyday"))
    return tuple(word for word in dict.fromkeys(words) if SHORTEST <= len(word) <= LONGEST)


@cache
def _halves() -> tuple[tuple[str, ...], tuple[str, ...]]:
    words = [word for word in _words("spelling") if not is_held_out_word(word)]
    heads = tuple(word[:cut] for word in words for cut in (2, 3, 4) if cut < len(word))
    tails = tuple(word[-cut:] for word in words for cut in (2, 3, 4) if cut < len(word))
    return heads, tails


@cache
def _reserved() -> frozenset[str]:
    return frozenset(_words("everyday") + _words("spelling"))


def _syllable(rng: random.Random) -> str:
    onset, vowel = rng.choice(("", *_words("onsets"))), rng.choice(_words("vowels"))
    return onset + vowel + rng.choice(("", "", "", *_words("codas")))


def invented_word(rng: random.Random, held_out: bool = False) -> str:
    """A pronounceable made-up word of 3 to 8 letters, not in the lists and, as chance makes rude ones too, without an unwanted
    part; with `held_out` one kept for the tests."""
    heads, tails = _halves()
    while True:
        if rng.random() < 0.6:
            word = rng.choice(heads) + rng.choice(tails)
        else:
            word = _syllable(rng)
            if rng.random() < 0.5:
                word += _syllable(rng)
            word += rng.choice(("", "", "", *_words("tails")))
        if not SHORTEST <= len(word) <= LONGEST or is_held_out_word(word) != held_out or word in _reserved():
            continue
        if any(each in VOWEL_LETTERS for each in word) and not any(part in word for part in _words("unwanted")):
            return word


def training_word(rng: random.Random, invented: float = 0.5) -> str:
    """A word for spelling or counting: invented with probability `invented`, else a real one."""
    return invented_word(rng) if rng.random() < invented else rng.choice(training_words())
