"""The calculator against fractions.Fraction and Python's own arithmetic."""

import threading
import time
from fractions import Fraction

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from nutshell.infer.calculator import DECIMALS, MAX_CHARACTERS, calculate

integers = st.integers(0, 10**6)
operators = st.sampled_from(["+", "-", "*", "/", "//", "%"])


def trees(leaves):
    return st.recursive(
        leaves,
        lambda inner: st.one_of(
            st.tuples(st.just("-"), inner),
            st.tuples(operators, inner, inner),
        ),
        max_leaves=8,
    )


def as_text(tree) -> str:
    if not isinstance(tree, tuple):
        return str(tree)
    if len(tree) == 2:
        return f"-({as_text(tree[1])})"
    return f"({as_text(tree[1])}) {tree[0]} ({as_text(tree[2])})"


def as_value(tree) -> Fraction:
    if not isinstance(tree, tuple):
        return Fraction(str(tree))
    if len(tree) == 2:
        return -as_value(tree[1])
    left, right = as_value(tree[1]), as_value(tree[2])
    match tree[0]:
        case "+":
            return left + right
        case "-":
            return left - right
        case "*":
            return left * right
        case "/":
            return left / right
        case "//":
            return Fraction(left // right)
        case _:
            return left % right


@settings(max_examples=200, deadline=None)
@given(trees(integers | st.decimals("0", "1000", places=2)))
def test_equals_exact_fractions(tree):
    text = as_text(tree)
    try:
        expected = as_value(tree)
    except ZeroDivisionError:
        assert calculate(text) is None
        return
    result = calculate(text)
    if len(text) > MAX_CHARACTERS or (result is None and (abs(expected) >= 10**64 or 0 < abs(expected) < 10**-20)):
        assert result is None
        return
    assert result is not None
    if expected.denominator == 1:
        assert result == str(expected.numerator)
    else:
        assert abs(Fraction(result) - expected) <= Fraction(1, 2 * 10**DECIMALS)
        assert len(result) <= 100


@settings(max_examples=200, deadline=None)
@given(st.lists(st.tuples(st.sampled_from(["+", "-", "*", "//", "%"]), st.sampled_from(["", "-"]), integers), max_size=12))
def test_precedence_is_pythons(parts):
    text = "7" + "".join(f" {operator} {sign}{number}" for operator, sign, number in parts)
    values, stack = [Fraction(7)], []
    for operator, sign, number in parts:  # two passes by hand, without eval: products first, then sums
        right = Fraction(-number if sign else number)
        try:
            if operator == "*":
                values[-1] *= right
            elif operator == "//":
                values[-1] = Fraction(values[-1] // right)
            elif operator == "%":
                values[-1] %= right
            else:
                stack.append(operator)
                values.append(right)
        except ZeroDivisionError:
            assert calculate(text) is None
            return
    total = values[0]
    for operator, value in zip(stack, values[1:], strict=True):
        total = total + value if operator == "+" else total - value
    expected = str(total.numerator) if abs(total) < 10**64 and len(text) <= MAX_CHARACTERS else None
    assert calculate(text) == expected


@settings(max_examples=100, deadline=None)
@given(st.integers(-50, 50), st.integers(0, 30))
def test_powers_are_pythons(base, exponent):
    expected = base**exponent
    assert calculate(f"({base}) ** {exponent}") == (str(expected) if abs(expected) < 10**64 else None)


@settings(max_examples=300, deadline=None)
@given(st.text(alphabet="0123456789+-*/%(). ,", max_size=60) | st.text(max_size=60))
def test_any_text_gives_a_short_answer_quickly(text):
    start = time.thread_time()
    result = calculate(text)
    assert time.thread_time() - start < 2
    assert result is None or 0 < len(result) <= 100


@pytest.mark.parametrize(
    ("expression", "result"),
    [
        ("1+1", "2"),
        (" 12 * 3 ", "36"),
        ("0.1 + 0.2", "0.3"),
        ("1/3", "0.3333333333"),
        ("-2/3", "-0.6666666667"),
        ("0.000001/3", "0.0000003333333333"),
        ("1234567890123.5 + 0", "1234567890123.5"),
        ("6/2", "3"),
        ("-7 // 2", "-4"),
        ("-7 % 3", "2"),
        ("-2 ** 2", "-4"),
        ("2 ** 3 ** 2", "512"),
        ("2 ** -1", "0.5"),
        ("9 ** 0.5", "3"),
        ("64 ** (1/3)", "4"),
        ("0 ** 0", "1"),
        ("1 ** 99999999999999999999", "1"),
        ("--5", "5"),
        ("+5", "5"),
        ("1,234,567 + 1", "1234568"),
        ("1,000.50 * 2", "2001"),
        (".5 + 5.", "5.5"),
        ("1000 * 1.05 ** 30", "4321.9423751507"),
        ("007", "7"),
    ],
)
def test_values(expression, result):
    assert calculate(expression) == result


@pytest.mark.parametrize(
    "expression",
    [
        "",
        " ",
        "1 / 0",
        "1 // 0",
        "1 % 0",
        "0 ** -1",
        "(-8) ** 0.5",
        "1 +",
        "* 1",
        "(1",
        "1)",
        "()",
        "1 2",
        "1,23",
        "1,2345",
        "12,345,6",
        ",1",
        "1..2",
        "1.2.3",
        ".",
        "1e5",
        "0x10",
        "1_000",
        "2 = 2",
        "abs(1)",
        "__import__('os')",
        "x",
        "２ + ２",
        "9 ** 9 ** 9",
        "10 ** 64",
        "99999999999 ** 99999999999",
        "0.1 ** 99",
        "2 ** 0.5 ** 0.5 ** -999999999",
        "(" * 100 + "1" + ")" * 100,
        "-" * 200 + "1",
        "2**" * 80 + "2",
        "1" * 300,
    ],
)
def test_invalid_is_none(expression):
    assert calculate(expression) is None


def test_the_hardest_expressions_are_fast():
    hard = ["*".join(["9" * 20] * 12), "1.01**1200*1.01**1200", "+".join(["1/3**500", "1/7**500", "1/11**400"] * 6)]
    start = time.thread_time()
    for expression in hard:
        calculate(expression)
    assert time.thread_time() - start < 1


def test_concurrent_calls_are_right_from_any_thread():
    """nanochat issue 670: its calculator used SIGALRM, which works in the main thread only."""
    wrong = []

    def work(start: int) -> None:
        wrong.extend(n for n in range(start, start + 300) if calculate(f"{n} * {n} - 1") != str(n * n - 1))

    threads = [threading.Thread(target=work, args=(1000 * i,)) for i in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert wrong == []
