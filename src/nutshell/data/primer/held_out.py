"""Test problems that no training text gives away, and the problems that RL practises on."""

import random
from collections.abc import Callable, Iterator

from nutshell.data.primer.facts import held_out_facts
from nutshell.data.primer.letters import held_out_letters, letters_problem
from nutshell.data.primer.problem import Problem
from nutshell.data.primer.sums import held_out_sums, sums_problem
from nutshell.data.primer.vowels import held_out_vowels, vowels_problem

RL_SHARES: dict[str, float] = {"sums": 0.1, "letters": 0.4, "vowels": 0.5}
RL_HARD_SUMS = 0.5
"""Share of RL's sums that have large numbers on both sides."""

HELD_OUT: dict[str, Callable[[random.Random], Problem]] = {
    "facts": held_out_facts,
    "sums": held_out_sums,
    "letters": held_out_letters,
    "vowels": held_out_vowels,
}


def held_out(kind: str, seed: int, count: int) -> Iterator[Problem]:
    """`count` different test problems of "facts", "sums", "letters" or "vowels". ValueError for another kind or count < 0."""
    if kind not in HELD_OUT:
        raise ValueError(f"held-out problems exist for {', '.join(HELD_OUT)}, not for {kind!r}")
    _check_count(count)
    return _distinct(random.Random(f"primer held-out {kind} {seed}"), HELD_OUT[kind], count)


def _distinct(rng: random.Random, draw: Callable[[random.Random], Problem], count: int) -> Iterator[Problem]:
    seen: set[object] = set()
    while len(seen) < count:
        problem = draw(rng)
        question = problem.messages[-1]["content"]
        if question not in seen:
            seen.add(question)
            yield problem


def rl_problems(seed: int, count: int, shares: dict[str, float] | None = None) -> Iterator[Problem]:
    """`count` problems of the training side for RL, of the kinds in `shares` (sums, letters, vowels) by weight.

    The same seed gives the same problems; a larger count only goes on.
    """
    shares = RL_SHARES if shares is None else shares
    _check_count(count)
    if not shares or not set(shares) <= set(RL_SHARES) or min(shares.values()) < 0 or sum(shares.values()) <= 0:
        raise ValueError(f"shares must give weights >= 0 for kinds among {', '.join(RL_SHARES)}, got {shares}")
    rng = random.Random(f"primer rl {seed}")
    return (_practice(rng, shares) for _ in range(count))


def _practice(rng: random.Random, shares: dict[str, float]) -> Problem:
    kind = rng.choices(list(shares), list(shares.values()))[0]
    if kind == "sums":
        return sums_problem(rng, hard=rng.random() < RL_HARD_SUMS)
    return letters_problem(rng) if kind == "letters" else vowels_problem(rng)


def _check_count(count: int) -> None:
    if count < 0:
        raise ValueError(f"count must be 0 or more, got {count}")
