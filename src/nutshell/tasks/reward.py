"""A user's grades: a function in a file, called so that nothing it does ends a run.

    def grade(item, completion) -> float:          # rewards.py, named as rewards.py:grade
        return float(item["target"] in completion)

`item` is the question (`tasks.Item`): item["name"] is a field of the row that it was read from, item.answer the right answer.
"""

from __future__ import annotations

import inspect
import math
import os
import signal
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from copy import deepcopy
from dataclasses import dataclass, field
from typing import Any

from nutshell.tasks.own import load_function
from nutshell.tasks.task import Item

Grade = Callable[[Item, str], float]
MOST_NOTES = 5
LARGEST = 1e9
"""No larger number is a grade: sums of such ones overflow."""


def load_reward(name: str) -> Grade:
    """The function of `rewards.py:grade`. ValueError or FileNotFoundError where there is none that takes (item, completion)."""
    function = load_function(name, "reward")
    try:
        inspect.signature(function).bind(None, "")
    except TypeError as error:
        raise ValueError(f"the reward {name} does not take (item, completion): {error}.") from None
    if inspect.iscoroutinefunction(function):
        raise ValueError(f"the reward {name} is async, which gives no number at once; accepted: def {function.__name__}(...).")
    return function


class TooSlow(BaseException):
    """A grade takes too long. Not an Exception, so that a reward's own `except Exception` does not swallow it."""


class NoGradeError(Exception):
    """What a grade did instead of giving a number: "gave None"."""


def call_grade(grade: Grade, item: Item, completion: str) -> float:
    """The number that a user's function gives. NoGradeError says what it did instead.

    It gets a copy of the item, so what it changes there is changed for nobody else, and a folder that it enters is left again.
    Where it forks, the copy of this process that comes back ends here: it would go on with the run too.
    """
    folder, process = os.getcwd(), os.getpid()
    try:
        value: Any = grade(deepcopy(item), completion)
    except (Exception, SystemExit) as error:
        raise NoGradeError(f"raised {type(error).__name__}: {error}") from error
    finally:
        if os.getpid() != process:
            os._exit(0)
        os.chdir(folder)
    try:
        number = float(value)
    except (TypeError, ValueError, OverflowError):
        number = math.nan
    if not abs(number) <= LARGEST:  # nor NaN
        raise NoGradeError(f"gave {value!r:.80}")
    return number


@dataclass
class Grader:
    """Calls grades within a time limit. What fails is named by `note`, the first few times, and counted."""

    seconds: float
    note: Callable[[str], object]
    failed: int = 0
    """Calls that gave no grade."""
    _seen: set[str] = field(default_factory=set)

    def __call__(self, grade: Grade, item: Item, completion: str) -> float | None:
        """The grade, or None where the function raises, takes too long, or gives no finite number."""
        try:
            with time_limit(self.seconds):
                return call_grade(grade, item, completion)
        except TooSlow:
            problem = f"took longer than {self.seconds:g} s and was stopped"
        except NoGradeError as error:
            problem = str(error)
        self.failed += 1
        if len(self._seen) < MOST_NOTES and problem not in self._seen:
            self._seen.add(problem)
            asked = f"item {item.index} ({item.messages[-1]['content']!r:.80})"
            self.note(f"the reward {problem} on {asked}, answer {completion!r:.80}. The answer is left out; the run goes on.")
        return None


@contextmanager
def time_limit(seconds: float) -> Iterator[None]:
    """Raise TooSlow in the block after `seconds`, and each second after that until it ends.

    It is an alarm, which Python handles between two bytecodes: C code that never returns is not stopped. There is no limit
    outside the main thread, nor where there are no alarms (Windows).
    """
    if threading.current_thread() is not threading.main_thread() or not hasattr(signal, "setitimer"):
        yield
        return

    def ring(_signal: int, _frame: Any) -> None:
        raise TooSlow

    before = signal.signal(signal.SIGALRM, ring)
    signal.setitimer(signal.ITIMER_REAL, seconds, 1.0)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)
