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
from functools import lru_cache

from nutshell.data.primer.names import NAMES, listed
from nutshell.data.primer.problem import Message, Problem, assistant, user

HELD_OUT_ONE_IN = 12
OPERATORS = "++++++-----***/"
TEST_OPERATORS = "+++--*"
"""Drawn uniformly: the share of each operator is its share of this text. Divisions leave no rest."""
NEGATIVE = 0.04
"""How often a difference may fall below zero."""
WORD_PROBLEMS = 0.25

QUESTIONS = {
    "+": (
        "What is {a} + {b}?",
        "What is {a} plus {b}?",
        "What is {a}+{b}?",
        "{a} + {b}",
        "{a}+{b}",
        "{a} + {b} = ?",
        "{a} plus {b}",
        "How much is {a} + {b}?",
        "How much is {a} plus {b}?",
        "Add {a} and {b}.",
        "Please add {a} and {b}.",
        "What is the sum of {a} and {b}?",
        "Calculate {a} + {b}.",
        "Compute {a} + {b}.",
        "Work out {a} + {b}.",
        "Can you add {a} and {b}?",
        "Can you tell me what {a} plus {b} is?",
        "Tell me {a} plus {b}.",
        "What do you get when you add {a} to {b}?",
        "I need the sum of {a} and {b}.",
    ),
    "-": (
        "What is {a} - {b}?",
        "What is {a} minus {b}?",
        "What is {a}-{b}?",
        "{a} - {b}",
        "{a}-{b}",
        "{a} - {b} = ?",
        "{a} minus {b}",
        "How much is {a} - {b}?",
        "How much is {a} minus {b}?",
        "Take {b} from {a}.",
        "Subtract {b} from {a}.",
        "What is {a} take away {b}?",
        "What is left of {a} if you take away {b}?",
        "What is the difference between {a} and {b}?",
        "Calculate {a} - {b}.",
        "Compute {a} - {b}.",
        "Work out {a} - {b}.",
        "Can you tell me what {a} minus {b} is?",
        "Tell me {a} minus {b}.",
        "How much is left when you take {b} from {a}?",
    ),
    "*": (
        "What is {a} * {b}?",
        "What is {a} times {b}?",
        "What is {a} x {b}?",
        "What is {a}*{b}?",
        "{a} * {b}",
        "{a}*{b}",
        "{a} x {b}",
        "{a} * {b} = ?",
        "{a} times {b}",
        "How much is {a} * {b}?",
        "How much is {a} times {b}?",
        "Multiply {a} by {b}.",
        "Multiply {a} and {b}.",
        "What is {a} multiplied by {b}?",
        "What is the product of {a} and {b}?",
        "Calculate {a} * {b}.",
        "Compute {a} * {b}.",
        "Work out {a} times {b}.",
        "Can you multiply {a} by {b}?",
        "Tell me {a} times {b}.",
    ),
    "/": (
        "What is {a} / {b}?",
        "What is {a} divided by {b}?",
        "{a} / {b}",
        "{a}/{b}",
        "{a} divided by {b}",
        "How much is {a} divided by {b}?",
        "Divide {a} by {b}.",
        "Calculate {a} / {b}.",
    ),
}
STORIES = {
    "+": (
        "{n} has {a} {t} and gets {b} more. How many {t} does {n} have now?",
        "{n} has {a} {t} and finds {b} more. How many {t} is that?",
        "{n} has {a} {t}. {m} gives {n} {b} more. How many {t} does {n} have?",
        "{n} has {a} {t} and {m} has {b} {t}. How many {t} do they have together?",
        "There are {a} {t} in one box and {b} {t} in another box. How many {t} are there in all?",
        "{n} picks {a} {t} in the morning and {b} {t} at noon. How many {t} is that in all?",
        "I have {a} {t} and buy {b} more. How many {t} do I have?",
    ),
    "-": (
        "{n} has {a} {t} and gives {b} to {m}. How many {t} does {n} have left?",
        "{n} has {a} {t} and loses {b} of them. How many {t} are left?",
        "There are {a} {t} on the table. {n} takes {b} of them. How many {t} are left?",
        "{n} has {a} {t}. {m} takes {b}. How many {t} does {n} still have?",
        "I have {a} {t} and sell {b} of them. How many {t} do I have left?",
        "A shop has {a} {t} and sells {b}. How many {t} are left in the shop?",
    ),
    "*": (
        "There are {a} boxes with {b} {t} in each box. How many {t} are there?",
        "{n} has {a} bags with {b} {t} in each bag. How many {t} does {n} have?",
        "{a} children have {b} {t} each. How many {t} do they have in all?",
        "{n} buys {a} bags of {t}. Each bag has {b} {t}. How many {t} is that?",
        "There are {a} rows of {b} {t}. How many {t} are there in all?",
    ),
    "/": (
        "{n} shares {a} {t} with {b} children so that each child gets the same. How many {t} does each child get?",
        "There are {a} {t} in {b} boxes, the same number in each box. How many {t} are in each box?",
    ),
}
THINGS = listed(
    """apples pears plums nuts eggs books stones shells balls cards coins stars pens cakes cookies sweets buttons beads
    flowers seeds carrots berries cherries oranges lemons peaches bricks blocks marbles stamps hats cups toys"""
)
FOLLOW_UPS = ("And {x}?", "And what is {x}?", "What about {x}?", "Now {x}.", "ok, and {x}?", "And now {x}?")
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
        """What the calculator is given: no spaces, as in 473+58."""
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
    """A sum of training; `hard` asks for three digits on both sides of + and -, and two on both sides of *."""
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


@lru_cache(maxsize=1)
def held_out_numbers() -> tuple[int, ...]:
    return tuple(number for number in range(100, 1000) if is_held_out_number(number))


@lru_cache(maxsize=1)
def held_out_pairs() -> tuple[tuple[int, int], ...]:
    return tuple((a, b) for a in range(10, 100) for b in range(a, 100) if is_held_out_pair(a, b))


def draw_held_out_sum(rng: random.Random) -> Sum:
    """A sum of the tests: a held-out number with any other for + and -, a held-out pair for * and for some + and -."""
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
    """A question whose answer is the sum; with probability `story` a tiny word problem, where its numbers suit one."""
    if rng.random() < story and total.a > 1 and total.b > 1 and total.result >= 0:
        name, other = rng.sample(NAMES, 2)
        template = rng.choice(STORIES[total.operator])
        return template.format(a=total.a, b=total.b, n=name, m=other, t=rng.choice(THINGS))
    return rng.choice(QUESTIONS[total.operator]).format(a=total.a, b=total.b)


def sums_turns(rng: random.Random, turns: int = 1) -> list[Message]:
    total = draw_sum(rng)
    messages = [user(ask(rng, total)), total.reply()]
    for _ in range(turns - 1):
        total = draw_sum(rng)
        spoken = rng.choice((total.expression, f"{total.a} {total.operator} {total.b}", _spoken(total)))
        messages += [user(rng.choice(FOLLOW_UPS).format(x=spoken)), total.reply()]
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
    """The sums of one small number with 1 to 10, which are also worth knowing by heart."""
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
