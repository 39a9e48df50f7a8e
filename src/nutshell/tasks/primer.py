"""The primer's own tests: facts in unseen phrasings, sums of unseen numbers, letters and vowels of unseen words."""

import re
from collections import Counter

from nutshell.data import primer
from nutshell.tasks.task import Item, Task, guessing, last_number, same_text, subsample

POOL = 500
"""Test items of each task; `limit` takes some of them."""
TEST_SEED = 0
_VOWELS = re.compile(r"(?<![\w.])(\d+) vowels?\b")
_COUNT = re.compile(r"(?<![\w.])(\d+) times?\b")


def load(kind: str, limit: int | None, seed: int) -> Task:
    """The task primer-facts, primer-sums, primer-letters or primer-vowels; `kind` is the part after the dash."""
    problems = list(primer.held_out(kind, TEST_SEED, POOL))
    items = [to_item(problem) for problem in subsample(problems, limit, seed)]
    if kind == "facts":
        return Task(name="primer-facts", kind="choice", items=items, baseline=guessing(items), grade=same_text)
    if kind == "sums":
        return Task(name="primer-sums", kind="generate", items=items, baseline=0.0, grade=grade_sums)
    # Always saying the commonest count is the best that a model blind to the letters can do.
    commonest = max(Counter(item.answer for item in items).values()) / len(items)
    grade = grade_letters if kind == "letters" else grade_vowels
    return Task(name=f"primer-{kind}", kind="generate", items=items, baseline=commonest, grade=grade)


def to_item(problem: primer.Problem) -> Item:
    return Item(messages=problem.messages, answer=problem.answer, options=problem.options)


def grade_sums(item: Item, text: str) -> bool:
    """The last number of the reply is the result."""
    return last_number(text) == item.answer


def grade_letters(item: Item, text: str) -> bool:
    """The last "n times" of the reply, or its last number where it has none, is the count.

    The running counts of the reply are glued to letters ("b0 a1") and are no answer.
    """
    counts = _COUNT.findall(text)
    return (counts[-1] if counts else last_number(text)) == item.answer


def grade_vowels(item: Item, text: str) -> bool:
    """The last "n vowels" of the reply is the count; the running counts before it are no answer."""
    counts = _VOWELS.findall(text)
    return bool(counts) and counts[-1] == item.answer


GRADERS = {"sums": grade_sums, "letters": grade_letters, "vowels": grade_vowels}


def rl_items(seed: int, count: int) -> list[tuple[str, Item]]:
    """(kind, item) of training problems for RL; the reward of a reply is `GRADERS[kind](item, text)`."""
    return [(problem.kind, to_item(problem)) for problem in primer.rl_problems(seed, count)]
