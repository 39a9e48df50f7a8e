"""Spelling words and counting letters in them.

One format serves both skills, because a small model learns each faster when they share it:

    I spell banana: b a n a n a.
    I count a in banana: b0 a1 n1 a2 n2 a3. The letter a appears 3 times in banana.

A tokenizer sees a word as a few pieces, never as letters, so the model has to learn the letters of every piece and
where in the word each piece begins. After the colon every letter is one token with its leading space, and in the count
each is followed by the running count: letter k stands 2k - 1 tokens after the colon, the last count one token before,
and the asked letter is repeated in front of the word. Each step then needs one look-up and one comparison.

Words always follow a space (`training_word` says which), so they are cut into the same pieces in question and answer.
"""

import random
from collections import Counter

from nutshell.data.primer.book import phrases
from nutshell.data.primer.problem import Message, Problem, assistant, user
from nutshell.data.primer.words import held_out_words, invented_word, training_word

LETTERS = "abcdefghijklmnopqrstuvwxyz"
ABSENT_LETTER = 0.15
"""How often the letter to count does not occur in the word."""
REPEATED_LETTER = 0.45
"""How often it is one that occurs more than once, if the word has such a letter."""
COUNT_WEIGHTS = (1.0, 1.5, 4.0, 8.0)
"""Weights with which a problem asks for a letter that occurs 0, 1, 2, or 3 and more times."""
INVENTED_WORDS_IN_CHAT = 0.35
INVENTED_WORDS_IN_DOCUMENTS = 0.6
INVENTED_WORDS_IN_RL = 0.3
INVENTED_WORDS_IN_TESTS = 0.2
CAPITAL_LETTER = 0.05
QUOTED_WORD = 0.05
"""How often a user writes R instead of r, and puts the word in quotation marks."""


def times(count: int) -> str:
    return "1 time" if count == 1 else f"{count} times"


def spelling(word: str) -> str:
    return f"I spell {word}: {' '.join(word)}."


def counting(word: str, letter: str) -> str:
    """Example: counting("tree", "e") -> "I count e in tree: t0 r0 e1 e2. The letter e appears 2 times in tree." """
    count = 0
    steps = []
    for each in word:
        count += each == letter
        steps.append(f"{each}{count}")
    return f"I count {letter} in {word}: {' '.join(steps)}. The letter {letter} appears {times(count)} in {word}."


def measuring(word: str) -> str:
    steps = " ".join(f"{each}{index}" for index, each in enumerate(word, start=1))
    return f"I count the letters of {word}: {steps}. The word {word} has {len(word)} letters."


def draw_letter(rng: random.Random, word: str) -> str:
    """A letter to count in the word: sometimes absent, often repeated, else any of its letters."""
    chance = rng.random()
    if chance < ABSENT_LETTER:
        while (letter := rng.choice(LETTERS)) in word:
            pass
        return letter
    if chance < ABSENT_LETTER + REPEATED_LETTER:
        repeated = [letter for letter, count in Counter(word).items() if count > 1]
        if repeated:
            return rng.choice(repeated)
    return rng.choice(word)


def draw_balanced_letter(rng: random.Random, word: str) -> str:
    """A letter for a problem, so that every count comes up and none is a good guess."""
    by_count: dict[int, list[str]] = {0: [letter for letter in LETTERS if letter not in word]}
    for letter, count in sorted(Counter(word).items()):
        by_count.setdefault(count, []).append(letter)
    counts = list(by_count)
    return rng.choice(by_count[rng.choices(counts, [COUNT_WEIGHTS[min(count, 3)] for count in counts])[0]])


def _ask(rng: random.Random, kind: str, word: str, letter: str = "") -> str:
    """A question as people write it, now and then with R for r or the word in quotation marks."""
    letter = letter.upper() if rng.random() < CAPITAL_LETTER else letter
    word = f'"{word}"' if rng.random() < QUOTED_WORD else word
    return rng.choice(phrases("letters", kind)).format(l=letter, w=word)


def letters_turns(rng: random.Random, turns: int = 1) -> list[Message]:
    """Questions about the letters of a word; later turns may ask about the same word again."""
    word = training_word(rng, INVENTED_WORDS_IN_CHAT)
    if rng.random() < 0.12:
        return [user(rng.choice(phrases("letters", "length")).format(w=word)), assistant(measuring(word))]
    letter = draw_letter(rng, word)
    messages = [user(_ask(rng, "count", word, letter)), assistant(counting(word, letter))]
    for _ in range(turns - 1):
        letter = draw_letter(rng, word)
        messages += [user(rng.choice(phrases("letters", "count again")).format(l=letter)), assistant(counting(word, letter))]
    return messages


def spelling_turns(rng: random.Random, turns: int = 1) -> list[Message]:
    """Questions about the spelling of a word, or its first or last letter."""
    word = training_word(rng, INVENTED_WORDS_IN_CHAT)
    chance = rng.random()
    if chance < 0.1:
        reply = f"I spell {word}: {' '.join(word)}. The first letter is {word[0]}."
        return [user(rng.choice(phrases("letters", "first")).format(w=word)), assistant(reply)]
    if chance < 0.2:
        reply = f"I spell {word}: {' '.join(word)}. The last letter is {word[-1]}."
        return [user(rng.choice(phrases("letters", "last")).format(w=word)), assistant(reply)]
    messages = [user(_ask(rng, "spell", word)), assistant(spelling(word))]
    for _ in range(turns - 1):
        word = training_word(rng, INVENTED_WORDS_IN_CHAT)
        messages += [user(rng.choice(phrases("letters", "spell again")).format(w=word)), assistant(spelling(word))]
    return messages


def letters_document(rng: random.Random) -> str:
    """A page of spelled and counted words, or of questions and answers about them."""
    lines = []
    asked = rng.random() < 0.35
    for _ in range(rng.randint(4, 9)):
        word = training_word(rng, INVENTED_WORDS_IN_DOCUMENTS)
        chance = rng.random()
        if chance < 0.35:
            question, reply = rng.choice(phrases("letters", "spell")), spelling(word)
            letter = ""
        elif chance < 0.92:
            letter = draw_letter(rng, word)
            question, reply = rng.choice(phrases("letters", "count")), counting(word, letter)
        else:
            question, reply, letter = rng.choice(phrases("letters", "length")), measuring(word), ""
        lines.append(f"Question: {question.format(l=letter, w=word)}\nAnswer: {reply}" if asked else reply)
    return "\n".join(lines)


def letters_problem(rng: random.Random) -> Problem:
    """A training problem for RL, never with a held-out word."""
    word = training_word(rng, INVENTED_WORDS_IN_RL)
    return _problem(rng, word, rng.choice(phrases("letters", "count")))


def held_out_letters(rng: random.Random) -> Problem:
    """A test problem with a held-out word, mostly a real one."""
    made_up = rng.random() < INVENTED_WORDS_IN_TESTS
    word = invented_word(rng, held_out=True) if made_up else rng.choice(held_out_words())
    return _problem(rng, word, rng.choice(phrases("letters", "count in a test")))


def _problem(rng: random.Random, word: str, question: str) -> Problem:
    letter = draw_balanced_letter(rng, word)
    return Problem(kind="letters", messages=[user(question.format(l=letter, w=word))], answer=str(word.count(letter)))
