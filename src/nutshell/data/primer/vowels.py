"""Counting vowels, at once or letter by letter: what reinforcement learning is shown on.

    user: How many vowels are in banana?
    assistant: The word banana has 3 vowels.
    assistant: I count the vowels of banana: b0 a1 n1 a2 n2 a3. The word banana has 3 vowels.

Most of the conversations answer at once, as most people would, and some work it out. Both are right in the text, but a small
model gets the second way right far more often. Fine-tuning imitates the usual way. Rewarded for right answers alone, the model
learns to work all of them out, though nobody told it to. Words are held out as in letters.py.
"""

import random
from functools import cache

from nutshell.data.primer.letters import INVENTED_WORDS_IN_CHAT, INVENTED_WORDS_IN_RL
from nutshell.data.primer.problem import Message, Problem, assistant, user
from nutshell.data.primer.words import held_out_words, training_word

VOWELS = "aeiou"
WORKED_OUT = 0.3
"""How often an answer in the conversations works it out."""
QUESTIONS = (
    "How many vowels are in {w}?",
    "How many vowels are in the word {w}?",
    "How many vowels does {w} have?",
    "How many vowels does the word {w} have?",
    "Count the vowels in {w}.",
    "Count the vowels of the word {w}.",
    "What is the number of vowels in {w}?",
)


def count_vowels(word: str) -> int:
    return sum(letter in VOWELS for letter in word)


def at_once(word: str) -> str:
    count = count_vowels(word)
    return f"The word {word} has {count} vowel{'s' * (count != 1)}."


def worked_out(word: str) -> str:
    steps = " ".join(f"{letter}{count_vowels(word[: index + 1])}" for index, letter in enumerate(word))
    return f"I count the vowels of {word}: {steps}. {at_once(word)}"


def vowels_turns(rng: random.Random) -> list[Message]:
    word = training_word(rng, INVENTED_WORDS_IN_CHAT)
    reply = worked_out(word) if rng.random() < WORKED_OUT else at_once(word)
    return [user(rng.choice(QUESTIONS).format(w=word)), assistant(reply)]


def vowels_problem(rng: random.Random) -> Problem:
    """A training problem for RL."""
    return _problem(rng, training_word(rng, INVENTED_WORDS_IN_RL))


def held_out_vowels(rng: random.Random) -> Problem:
    """A test problem, with a word that no training text contains. One, two and three vowels are equally frequent, so that no
    count is a good guess."""
    return _problem(rng, rng.choice(_held_out_words(rng.randint(1, 3))))


@cache
def _held_out_words(vowels: int) -> list[str]:
    return [word for word in held_out_words() if count_vowels(word) == vowels]


def _problem(rng: random.Random, word: str) -> Problem:
    return Problem(kind="vowels", messages=[user(rng.choice(QUESTIONS).format(w=word))], answer=str(count_vowels(word)))
