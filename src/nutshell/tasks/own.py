"""Your own test: a function in a Python file (`my_task.py:task`), or a file of JSON lines. A row is one of

{"question": "...", "answer": "..."}                                 the model writes; a list gives several right answers
{"question": "...", "regex": "..."}                                  the reply must match; may stand beside an answer
{"question": "...", "choices": ["...", "..."], "answer": "..."}      multiple choice; answer: text, letter or index from 0
{"messages": [..., {"role": "user", ...}], "answer": "...", "choices": [...]}      choices are whole replies; may be left out
{"messages": [..., {"role": "assistant", "content": "..."}]}         the last message is the answer

The function takes nothing and returns a `Task`, or such rows:

    def task():
        return Task(items=[Item(messages=[{"role": "user", "content": "2 + 2?"}], answer="4")], grade=my_grade)
"""

from __future__ import annotations

import difflib
import importlib.util
import re
import sys
import traceback
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from types import ModuleType
from typing import Any

from nutshell.tasks.task import (
    LETTERS,
    Item,
    Task,
    chosen_letter,
    guessing,
    last_number,
    lettered_item,
    plain_number,
    read_rows,
    same_text,
    subsample,
)

ROWS = "rows with question (or prompt) and answer (and choices, or a regex), or with messages"
NEEDS = f"JSON lines: {ROWS}"


def is_own(name: str) -> bool:
    """Whether a task is named by its file."""
    return ".py:" in name or Path(name).suffix in (".py", ".jsonl", ".json", ".gz", ".zst")


def load(name: str, limit: int | None, seed: int, *, answered: bool = True) -> Task:
    """The task of a file. ValueError says which row is wrong, or how the function failed; FileNotFoundError for no file.

    Rows need no answer where they are not `answered`: something else grades the replies.
    """
    if ".py:" in name:
        task = _called(name, answered)
    elif name.endswith(".py"):
        raise ValueError(f"{name} names no function. Give {name}:task, with a function `task` in that file.")
    else:
        task = from_rows(read_rows(Path(name), NEEDS), name, answered=answered)
    return replace(task, name=name, items=subsample(task.items, limit, seed))


def load_function(name: str, what: str) -> Callable[..., Any]:
    """The function that `file.py:function` names; `what` it is for. ValueError or FileNotFoundError where there is none."""
    file, _, function = name.rpartition(".py:")
    path = Path(f"{file}.py")
    if not (file and function):
        raise ValueError(f"the {what} is {name!r}; accepted: a file and a function in it, as my_file.py:my_function.")
    if not path.is_file():
        raise FileNotFoundError(f"{path} does not exist; the {what} {name} is a function in that file.")
    with _errors_of(path, f"the {what} {name}"):
        module = _run(path)
    found = getattr(module, function, None)
    if not callable(found):
        close = difflib.get_close_matches(function, [key for key in vars(module) if callable(getattr(module, key))], n=1)
        raise ValueError(f"{path} has no function {function!r}.{f' Did you mean {close[0]}?' if close else ''}")
    return found  # type: ignore[no-any-return]


def _run(path: Path) -> ModuleType:
    """The user's file as a module, which may import its neighbours."""
    spec = importlib.util.spec_from_file_location(f"nutshell_user_{path.stem}", path)
    assert spec is not None  # of a .py file
    assert spec.loader is not None
    module = sys.modules[spec.name] = importlib.util.module_from_spec(spec)  # dataclasses look their module up
    if (folder := str(path.resolve().parent)) not in sys.path:
        sys.path.append(folder)
    spec.loader.exec_module(module)
    return module


@contextmanager
def _errors_of(path: Path, what: str) -> Iterator[None]:
    """What the user's file raises, as a ValueError with its line."""
    try:
        yield
    except (Exception, SystemExit) as error:
        frames = [
            frame for frame in traceback.extract_tb(error.__traceback__) if Path(frame.filename).resolve() == path.resolve()
        ]
        line = f" in line {frames[-1].lineno}" if frames else ""
        raise ValueError(f"{what} raised {type(error).__name__}{line}: {error}") from error


def _called(name: str, answered: bool) -> Task:
    """What the function of that name gives, as a task."""
    function = load_function(name, "task")
    with _errors_of(Path(f"{name.rpartition('.py:')[0]}.py"), f"the task {name}"):
        made = function()
        made = list(made) if isinstance(made, Iterator) else made
    if isinstance(made, Task):
        if not made.items or not all(isinstance(item, Item) for item in made.items):
            raise ValueError(f"the task {name} has the items {made.items!r:.80}; accepted: a list of at least one Item.")
        return replace(made, items=[replace(item, index=index) for index, item in enumerate(made.items)])
    if isinstance(made, (list, tuple)) and made and all(isinstance(row, dict) for row in made):
        return from_rows([(f"{name}, row {number}", row) for number, row in enumerate(made)], name, answered=answered)
    raise ValueError(f"the task {name} returned {made!r:.80}; accepted: a Task, or a list of {ROWS}.")


def from_rows(rows: list[tuple[str, dict[str, Any]]], name: str, *, answered: bool = True) -> Task:
    """The task of (place, row) pairs. Every row is multiple choice, or none is."""
    items = [replace(_item(place, row, answered), index=index) for index, (place, row) in enumerate(rows)]
    with_options = [bool(item.options) for item in items]
    if any(with_options) and not all(with_options):
        other = with_options.index(not with_options[0])
        raise ValueError(f"{rows[other][0]}: either every row has choices or none has, but it and the first row differ.")
    if not any(with_options):
        return Task(name=name, items=items, grade=grade_text)
    lettered = all(item.options == tuple(LETTERS[: len(item.options)]) for item in items)
    return Task(name=name, items=items, baseline=guessing(items), grade=chosen_letter if lettered else same_text)


def _item(place: str, row: dict[str, Any], answered: bool) -> Item:
    options = _options(place, row.get("choices", row.get("options")))
    pattern = _pattern(place, row.get("regex"))
    if "messages" in row:
        messages, answer = _conversation(place, row["messages"]), row.get("answer")
        if messages[-1]["role"] == "assistant":
            answer = messages.pop()["content"]
        if not messages or messages[-1]["role"] != "user":
            raise ValueError(f"{place}: the conversation must have a user's message before the answer.")
        accepted = _answers(place, answer, options, pattern, answered)
        details = {**row, "accepted": accepted, "regex": pattern}
        return Item(messages=messages, answer=accepted[0], options=options, details=details)
    question = row.get("question", row.get("prompt"))
    if not isinstance(question, str) or not question.strip():
        raise ValueError(f"{place}: has {', '.join(row) or 'nothing'}; accepted: {NEEDS}.")
    accepted = _answers(place, row.get("answer"), options, pattern, answered)
    if options:
        return lettered_item(question, options, options.index(accepted[0]))
    asked = [{"role": "user", "content": question}]
    return Item(messages=asked, answer=accepted[0], details={**row, "accepted": accepted, "regex": pattern})


def _options(place: str, options: object) -> tuple[str, ...]:
    if options is None:
        return ()
    most = len(LETTERS)
    if not isinstance(options, list) or not 2 <= len(options) <= most or not all(isinstance(o, str) for o in options):
        raise ValueError(f"{place}: choices are {options!r}; accepted: a list of 2 to {most} texts.")
    if len(set(options)) < len(options):
        raise ValueError(f"{place}: choices are {options!r}; they must differ from each other.")
    return tuple(options)


def _pattern(place: str, pattern: object) -> str:
    if pattern is None:
        return ""
    try:
        re.compile(pattern)  # type: ignore[call-overload]
    except (re.error, TypeError) as error:
        raise ValueError(f"{place}: regex is {pattern!r}; accepted: a regular expression of Python ({error}).") from None
    return str(pattern)


def _conversation(place: str, messages: object) -> list[dict[str, Any]]:
    fine = isinstance(messages, list) and messages and all(_is_message(message) for message in messages)
    if not fine:
        raise ValueError(f"{place}: messages must be a list of objects with role (system, user or assistant) and content (text).")
    return list(messages)  # type: ignore[call-overload]


def _is_message(message: object) -> bool:
    return (
        isinstance(message, dict)
        and message.get("role") in ("system", "user", "assistant")
        and isinstance(message.get("content"), str)
    )


def _answers(place: str, answer: object, options: tuple[str, ...], pattern: str, needed: bool) -> list[str]:
    """The right answers; of options there is one, given as its text, its letter or its index from 0."""
    if not options and (not needed or (answer is None and pattern)):
        return [answer if isinstance(answer, str) else ""]
    several = answer if isinstance(answer, list) and answer and not options else [answer]
    return [_answer(place, each, options) for each in several]


def _answer(place: str, answer: object, options: tuple[str, ...]) -> str:
    if isinstance(answer, int) and not isinstance(answer, bool):
        if options and 0 <= answer < len(options) and str(answer) not in options:
            return options[answer]
        answer = str(answer)
    elif isinstance(answer, float):
        answer = str(answer)
    if not isinstance(answer, str) or not answer.strip():
        raise ValueError(f"{place}: answer is {answer!r}; accepted: a text or a number, or a list of them.")
    if not options or answer in options:
        return answer
    if len(answer) == 1 and answer in LETTERS[: len(options)]:
        return options[LETTERS.index(answer)]
    raise ValueError(f"{place}: answer is {answer!r}; accepted: one of the choices, as text, letter or index from 0.")


def grade_text(item: Item, text: str) -> float:
    """The reply equals an answer without regard to case, space and a last full stop; a number may end a sentence. Or it matches
    the regex."""
    if item.details["regex"] and re.search(item.details["regex"], text):
        return 1.0
    return float(any(_says(answer, text) for answer in item.details["accepted"] if answer))


def _says(answer: str, text: str) -> bool:
    if _normal(text) == _normal(answer):
        return True
    wanted = last_number(answer)
    return wanted is not None and wanted == plain_number(answer) and last_number(text) == wanted


def _normal(text: str) -> str:
    return " ".join(text.split()).rstrip(".").casefold()
