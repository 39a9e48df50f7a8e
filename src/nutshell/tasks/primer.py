"""The primer's own tests: facts in unseen phrasings, sums of unseen numbers, letters, vowels and spelling of unseen words."""

from __future__ import annotations

import random
import re
from collections import Counter
from functools import cache

from nutshell.data import primer
from nutshell.data.primer.book import phrases
from nutshell.data.primer.letters import spelling
from nutshell.data.primer.words import held_out_words
from nutshell.tasks.task import Item, Task, guessing, last_number, same_text, subsample

POOL = 500
"""Test items of each task; `limit` takes some of them."""
TEST_SEED = 0
_VOWELS = re.compile(r"(?<![\w.])(\d+) vowels?\b")
_COUNT = re.compile(r"(?<![\w.])(\d+) times?\b")
_SPELLED = re.compile(r"\b[a-z](?:[ ,.-]+[a-z]\b)+", re.IGNORECASE)


def load(kind: str, limit: int | None, seed: int) -> Task:
    """The task primer-facts, primer-sums, primer-letters, primer-vowels or spelling; `kind` is the part after the dash."""
    if kind == "spelling":
        return Task(name="spelling", items=subsample(spelling_items(), limit, seed), grade=grade_spelling)
    items = [to_item(problem, index) for index, problem in subsample(_problems(kind), limit, seed)]
    if kind == "facts":
        return Task(name="primer-facts", items=items, baseline=guessing(items), grade=same_text)
    if kind == "sums":
        return Task(name="primer-sums", items=items, grade=grade_sums)
    # Always saying the commonest count is the best that a model blind to the letters can do.
    commonest = max(Counter(item.answer for item in items).values()) / len(items)
    grade = grade_letters if kind == "letters" else grade_vowels
    return Task(name=f"primer-{kind}", items=items, baseline=commonest, grade=grade)


@cache
def _problems(kind: str) -> list[tuple[int, primer.Problem]]:
    """All of a kind, numbered; a run looks its tasks up after each stage."""
    return list(enumerate(primer.held_out(kind, TEST_SEED, POOL)))


def to_item(problem: primer.Problem, index: int = 0) -> Item:
    return Item(messages=problem.messages, answer=problem.answer, options=problem.options, index=index)


def spelling_items() -> list[Item]:
    """Every word that is kept for tests, asked for in a trained way."""
    rng = random.Random(f"spelling {TEST_SEED}")
    return [
        Item(
            messages=[{"role": "user", "content": rng.choice(phrases("letters", "spell")).format(w=word)}],
            answer=word, solution=spelling(word), index=index,
        )
        for index, word in enumerate(sorted(held_out_words()))
    ]  # fmt: skip


def grade_spelling(item: Item, text: str) -> float:
    """The longest run of single letters, as "c a t", "c-a-t" or "C, A, T", spells the word."""
    runs = [re.sub(r"[^a-z]", "", run.lower()) for run in _SPELLED.findall(text)]
    return float(max(runs, key=len, default="") == item.answer)


def grade_sums(item: Item, text: str) -> float:
    """The last number of the reply is the result."""
    return float(last_number(text) == item.answer)


def grade_letters(item: Item, text: str) -> float:
    """The last "n times" of the reply, or its last number where it has none, is the count.

    The running counts of the reply are glued to letters ("b0 a1") and are no answer.
    """
    counts = _COUNT.findall(text)
    return float((counts[-1] if counts else last_number(text)) == item.answer)


def grade_vowels(item: Item, text: str) -> float:
    """The last "n vowels" of the reply is the count; the running counts before it are no answer."""
    counts = _VOWELS.findall(text)
    return float(bool(counts) and counts[-1] == item.answer)


GRADERS = {"sums": grade_sums, "letters": grade_letters, "vowels": grade_vowels}
