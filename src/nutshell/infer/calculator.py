"""The calculator a model may call: a small arithmetic expression evaluator.

`calculate("3 * (4 + 5)")` is "27". It reads integers, decimals, thousands commas, parentheses, unary minus and plus,
and `+ - * / // % **` with Python's precedence. Values are exact fractions, so that 0.1 + 0.2 is 0.3. There is no eval,
no signal and no shared state: it may be called from any thread, and every expression ends within milliseconds because
its length, its nesting and the size of every intermediate number are bounded.
"""

from __future__ import annotations

import re
from fractions import Fraction

MAX_CHARACTERS = 256
MAX_DEPTH = 40
MAX_BITS = 1 << 14  # of any numerator or denominator: enough for 365 days of compound interest, exactly
MAX_RESULT_DIGITS = 64  # before the point; the result is forced into the model's context, so it must stay short
MIN_RESULT = Fraction(1, 10**20)
DECIMALS = 10  # significant decimals of a result that is no integer

_TOKEN = re.compile(
    r"\s*(?:(?P<number>(?:[0-9]{1,3}(?:,[0-9]{3})+(?![0-9,])|[0-9]+)(?:\.[0-9]*)?|\.[0-9]+)"
    r"|(?P<operator>\*\*|//|[-+*/%()]))"
)


class _Invalid(ValueError):
    """The expression has no value: not well formed, out of bounds, or undefined."""


def calculate(expression: str) -> str | None:
    """The value of `expression` as text, or None where it is not a valid expression or has no bounded value.

    >>> calculate("12,345 + 5"), calculate("7 / 2"), calculate("1 / 0"), calculate("2 ** -2")
    ('12350', '3.5', None, '0.25')
    """
    try:
        return _format(_Parser(_tokenize(expression)).parse())
    except (_Invalid, ZeroDivisionError, OverflowError):
        return None


def _tokenize(expression: str) -> list[str | Fraction]:
    text = expression.rstrip()
    if not text or len(text) > MAX_CHARACTERS:
        raise _Invalid("empty or too long")
    tokens: list[str | Fraction] = []
    position = 0
    while position < len(text):
        match = _TOKEN.match(text, position)
        if match is None:
            raise _Invalid("unknown character")
        position = match.end()
        number = match["number"]
        tokens.append(match["operator"] if number is None else _number(number))
    return tokens


def _number(text: str) -> Fraction:
    whole, _, decimals = text.replace(",", "").partition(".")
    return Fraction(int(whole + decimals or "0"), 10 ** len(decimals))


class _Parser:
    """Recursive descent, one method a level of precedence, loosest first.

    sum = product (+- product)*, product = unary (*/ unary)*, unary = - unary | power, power = atom (** unary)?
    """

    def __init__(self, tokens: list[str | Fraction]) -> None:
        self.tokens = tokens
        self.position = 0

    def parse(self) -> Fraction:
        value = self.sum(0)
        if self.peek() is not None:
            raise _Invalid("something follows the expression")
        return value

    def peek(self) -> str | Fraction | None:
        return self.tokens[self.position] if self.position < len(self.tokens) else None

    def take(self) -> str | Fraction | None:
        token = self.peek()
        self.position += 1
        return token

    def sum(self, depth: int) -> Fraction:
        value = self.product(depth)
        while self.peek() in ("+", "-"):
            sign = self.take()
            right = self.product(depth)
            value = _bounded(value + right if sign == "+" else value - right)
        return value

    def product(self, depth: int) -> Fraction:
        value = self.unary(depth)
        while self.peek() in ("*", "/", "//", "%"):
            operator = self.take()
            right = self.unary(depth)
            if operator == "*":
                value = value * right
            elif operator == "/":
                value = value / right
            elif operator == "//":
                value = Fraction(value // right)
            else:
                value = value % right
            _bounded(value)
        return value

    def unary(self, depth: int) -> Fraction:
        if depth > MAX_DEPTH:
            raise _Invalid("nested too deeply")
        if self.peek() == "-":
            self.take()
            return -self.unary(depth + 1)
        if self.peek() == "+":
            self.take()
            return self.unary(depth + 1)
        return self.power(depth)

    def power(self, depth: int) -> Fraction:
        base = self.atom(depth)
        if self.peek() != "**":
            return base
        self.take()
        return _power(base, self.unary(depth + 1))

    def atom(self, depth: int) -> Fraction:
        token = self.take()
        if isinstance(token, Fraction):
            return token
        if token != "(":
            raise _Invalid("a number was expected")
        value = self.sum(depth + 1)
        if self.take() != ")":
            raise _Invalid("a parenthesis is not closed")
        return value


def _power(base: Fraction, exponent: Fraction) -> Fraction:
    if exponent.denominator != 1:  # a root has no exact fraction; a double is closer than DECIMALS shows
        if base < 0:
            raise _Invalid("root of a negative number")
        return _bounded(Fraction(float(base) ** float(exponent)))
    bits = max(base.numerator.bit_length(), base.denominator.bit_length())
    if base not in (0, 1, -1) and (bits - 1) * abs(exponent.numerator) > MAX_BITS:  # before it is computed
        raise _Invalid("too large")
    return _bounded(Fraction(base**exponent.numerator))


def _bounded(value: Fraction) -> Fraction:
    if max(value.numerator.bit_length(), value.denominator.bit_length()) > MAX_BITS:
        raise _Invalid("too large")
    return value


def _format(value: Fraction) -> str:
    """An integer as it is; else DECIMALS decimals (significant ones below 1), without trailing zeros."""
    size = abs(value)
    if size >= 10**MAX_RESULT_DIGITS:
        raise _Invalid("too large")
    if value.denominator == 1:
        return str(value.numerator)
    if size < MIN_RESULT:
        raise _Invalid("too small")
    decimals = DECIMALS
    while size * 10 ** (decimals - DECIMALS + 1) < 1:
        decimals += 1
    whole, fraction = divmod(round(size * 10**decimals), 10**decimals)
    digits = f"{fraction:0{decimals}d}".rstrip("0")
    sign = "-" if value < 0 else ""
    return f"{sign}{whole}.{digits}" if digits else f"{sign}{whole}"
