"""Do two scores differ by more than noise? Item by item where both models answered the same items, else by their intervals."""

from __future__ import annotations

import math
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from nutshell.text_files import json_rows

Graded = dict[tuple[int, str], tuple[float, Any]]
"""{(index, hash of the prompt): (grade from 0 to 1, what was picked)} of a task; another prompt is another item."""
Score = tuple[float | None, list[float] | None, Graded | None]
"""Value, its 95% interval, its items."""


@dataclass(frozen=True)
class Difference:
    """`p` is the chance of a difference at least as large between equally good models; None where nothing tells."""

    value: float
    p: float | None
    pairs: int = 0


def read_items(file: Path) -> tuple[dict[str, Graded], int]:
    """{task: items} of an items.jsonl (`eval/records.py`), and the number of lines that are no record."""
    found: dict[str, Graded] = {}
    bad: list[str] = []
    for place, row in json_rows(file, bad=lambda place, error: bad.append(place)):
        try:
            found.setdefault(row["task"], {})[row["index"], row["prompt"]] = (float(row["right"]), row["picked"])
        except (KeyError, TypeError, ValueError):
            bad.append(place)
    return found, len(bad)


def compare_scores(first: Score, other: Score) -> Difference | None:
    """The other score less the first; None where one is missing. Paired items decide, then intervals."""
    (a, a_interval, a_items), (b, b_interval, b_items) = first, other
    if pairs := [(a_items[key][0], b_items[key][0]) for key in a_items if key in b_items] if a_items and b_items else []:
        better, worse = sum(y > x for x, y in pairs), sum(y < x for x, y in pairs)
        return Difference(sum(y - x for x, y in pairs) / len(pairs), sign_test(better, worse), len(pairs))
    if a is None or b is None:
        return None
    if not a_interval or not b_interval:
        return Difference(b - a, None)
    # Half a 95% interval is 1.96 standard errors; the errors of two independent scores add as squares.
    error = math.hypot(a_interval[1] - a_interval[0], b_interval[1] - b_interval[0]) / (2 * 1.96)
    return Difference(b - a, math.erfc(abs(b - a) / error / math.sqrt(2)) if error else None)


def sign_test(better: int, worse: int) -> float:
    """McNemar's exact test: how likely a coin falls as unevenly as the items that two models grade differently, or more so.

    Items that both get right, or both wrong, say nothing of which is better.
    """
    tosses, fewer = better + worse, min(better, worse)
    ways, term = 0, 1
    for heads in range(fewer + 1):
        ways += term
        term = term * (tosses - heads) // (heads + 1)
    return min(1.0, 2 * ways / 2**tosses)
