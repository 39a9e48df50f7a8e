"""Sums with the calculator: the model writes the expression, the tool answers, the model repeats it in a sentence.

    user: What is 473 plus 58?
    assistant: [python 473+58] [output 531] 473 + 58 = 531.

Held out by number: about one in `HELD_OUT_ONE_IN` of the numbers 100..999 and of the pairs of two-digit numbers, by
CRC-32. A held-out number occurs in no training text at all, neither as an operand nor as a result; a held-out pair never
as the two operands of one sum. Divisions are practised but not tested.
"""

import random
import zlib
from dataclasses import dataclass
from functools import cache, lru_cache

from nutshell.data.primer.book import names, phrases
from nutshell.data.primer.problem import Message, Problem, assistant, user

HELD_OUT_ONE_IN = 12
OPERATORS = "++++++-----***/"
TEST_OPERATORS = "+++--*"
"""One is drawn at random, so each is asked as often as it stands here. Divisions leave no remainder."""
NEGATIVE = 0.04
"""How often a difference may fall below zero."""
WORD_PROBLEMS = 0.25
"""How often a question is a little story."""
SPOKEN = {"+": "plus", "-": "minus", "*": "times", "/": "divided by"}


@dataclass(frozen=True)
class Sum:
    """Two numbers and the operator between them."""

    a: int
    operator: str
    b: int

    @property
    def result(self) -> int:
        if self.operator == "+":
            return self.a + self.b
        if self.operator == "/":
            return self.a // self.b
        return self.a - self.b if self.operator == "-" else self.a * self.b

    @property
    def expression(self) -> str:
        """Input of the calculator, without spaces: 473+58."""
        return f"{self.a}{self.operator}{self.b}"

    @property
    def sentence(self) -> str:
        return f"{self.a} {self.operator} {self.b} = {self.result}."

    def reply(self) -> Message:
        """The assistant's message: the tool call, its output, the sentence."""
        return assistant(
            [
                {"type": "python", "text": self.expression},
                {"type": "python_output", "text": str(self.result)},
                {"type": "text", "text": self.sentence},
            ]
        )


@lru_cache(maxsize=4096)
def is_held_out_number(number: int) -> bool:
    """True for about one in `HELD_OUT_ONE_IN` of the numbers 100..999."""
    return 100 <= number <= 999 and zlib.crc32(str(number).encode()) % HELD_OUT_ONE_IN == 0


@lru_cache(maxsize=16384)
def is_held_out_pair(a: int, b: int) -> bool:
    """True for about one in `HELD_OUT_ONE_IN` of the pairs of two-digit numbers, in either order."""
    low, high = sorted((a, b))
    return 10 <= low and high <= 99 and zlib.crc32(f"{low},{high}".encode()) % HELD_OUT_ONE_IN == 0


def is_held_out_sum(total: Sum) -> bool:
    return is_held_out_number(total.a) or is_held_out_number(total.b) or is_held_out_pair(total.a, total.b)


def _operand(rng: random.Random, hard: bool) -> int:
    chance = rng.random()
    if hard or chance < 0.5:
        return rng.randint(100, 999)
    return rng.randint(10, 99) if chance < 0.8 else rng.randint(0, 12)


def draw_sum(rng: random.Random, hard: bool = False) -> Sum:
    """A sum for training; a `hard` one has three digits on both sides of + and -, and two on the right of *."""
    while True:
        operator = rng.choice(OPERATORS)
        if operator == "*":
            a, b = rng.randint(2, 99), rng.randint(10, 99) if hard else rng.randint(2, 25)
            if rng.random() < 0.3:
                a, b = b, a
        elif operator == "/":
            b = rng.randint(2, 12)
            a = b * rng.randint(2, 80)
        else:
            a, b = _operand(rng, hard), _operand(rng, hard)
            if operator == "-" and a < b and rng.random() >= NEGATIVE:
                a, b = b, a
        total = Sum(a, operator, b)
        if not is_held_out_sum(total) and not is_held_out_number(abs(total.result)):
            return total


@cache
def held_out_numbers() -> tuple[int, ...]:
    return tuple(number for number in range(100, 1000) if is_held_out_number(number))


@cache
def held_out_pairs() -> tuple[tuple[int, int], ...]:
    return tuple((a, b) for a in range(10, 100) for b in range(a, 100) if is_held_out_pair(a, b))


def draw_held_out_sum(rng: random.Random) -> Sum:
    """A sum for the tests: + and - of a held-out number and any other, or, as all * are, of a held-out pair."""
    operator = rng.choice(TEST_OPERATORS)
    if operator == "*" or rng.random() < 0.15:
        a, b = rng.choice(held_out_pairs())
    else:
        a, b = rng.choice(held_out_numbers()), rng.choice((rng.randint(2, 99), rng.randint(100, 999)))
    if rng.random() < 0.5:
        a, b = b, a
    if operator == "-" and a < b:
        a, b = b, a
    return Sum(a, operator, b)


def ask(rng: random.Random, total: Sum, story: float = WORD_PROBLEMS) -> str:
    """A question for the sum; with probability `story` a tiny word problem, if the numbers suit one."""
    if rng.random() < story and total.a > 1 and total.b > 1 and total.result >= 0:
        name, other = rng.sample(names(), 2)
        template = rng.choice(phrases("sums", f"{SPOKEN[total.operator]}, a story"))
        return template.format(a=total.a, b=total.b, n=name, m=other, t=rng.choice(phrases("sums", "things")))
    return rng.choice(phrases("sums", SPOKEN[total.operator])).format(a=total.a, b=total.b)


def sums_turns(rng: random.Random, turns: int = 1) -> list[Message]:
    total = draw_sum(rng)
    messages = [user(ask(rng, total)), total.reply()]
    for _ in range(turns - 1):
        total = draw_sum(rng)
        spoken = rng.choice((total.expression, f"{total.a} {total.operator} {total.b}", _spoken(total)))
        messages += [user(rng.choice(phrases("sums", "another sum")).format(x=spoken)), total.reply()]
    return messages


def _spoken(total: Sum) -> str:
    return f"{total.a} {SPOKEN[total.operator]} {total.b}"


def sums_document(rng: random.Random) -> str:
    """A page of sums: questions with the expression and the result, small tables, or plain lines."""
    chance = rng.random()
    if chance < 0.12:
        return _table(rng)
    lines = []
    for _ in range(rng.randint(4, 8)):
        total = draw_sum(rng)
        if chance < 0.75:
            lines.append(f"Question: {ask(rng, total, 0.4)}\nCalculator: {total.expression}\nAnswer: {total.sentence}")
        else:
            lines.append(rng.choice((total.sentence, f"{_spoken(total)} is {total.result}.")))
    return "\n".join(lines)


def _table(rng: random.Random) -> str:
    """The sums or products of one small number with 1 to 10, which are worth knowing by heart."""
    a, operator = rng.randint(1, 10), rng.choice("+*")
    rows = (Sum(b, operator, a) for b in range(1, 11))
    return "\n".join(row.sentence for row in rows if not is_held_out_sum(row) and not is_held_out_number(row.result))


def sums_problem(rng: random.Random, hard: bool = False) -> Problem:
    """A training problem for RL, never with a held-out number."""
    return _problem(rng, draw_sum(rng, hard))


def held_out_sums(rng: random.Random) -> Problem:
    """A test problem."""
    return _problem(rng, draw_held_out_sum(rng))


def _problem(rng: random.Random, total: Sum) -> Problem:
    return Problem(kind="sums", messages=[user(ask(rng, total))], answer=str(total.result))
