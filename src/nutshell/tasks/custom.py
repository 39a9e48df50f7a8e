"""Your own test from a JSONL file. A row is one of

{"question": "...", "answer": "..."}                                 the model writes, the answer must match
{"question": "...", "options": ["...", "..."], "answer": "..."}      multiple choice; answer: text, letter or index
{"messages": [..., {"role": "user", ...}], "answer": "...", "options": [...]}      options are replies; may be left out
{"messages": [..., {"role": "assistant", "content": "..."}]}         the last message is the answer
"""

from pathlib import Path
from typing import Any

from nutshell.tasks.task import (
    OPTION_LETTERS,
    Item,
    Task,
    chosen_letter,
    guessing,
    last_number,
    plain_number,
    read_rows,
    same_text,
    subsample,
    with_lettered_options,
)

NEEDS = "JSONL rows with question and answer (and options), or with messages"


def load(limit: int | None, seed: int, path: str | Path | None) -> Task:
    """The task of a file, or of custom.jsonl in a folder. Every row is multiple choice, or none is.

    Raises ValueError naming file and line for a row that is none of the module's four forms.
    """
    if path is None:
        raise ValueError(f"task custom reads a file: give data_folder, a .jsonl file or a folder with custom.jsonl ({NEEDS})")
    path = Path(path)
    path = path / "custom.jsonl" if path.is_dir() else path
    rows = read_rows(path, NEEDS)
    items = [_item(f"{path}, line {number}", row) for number, row in rows]
    with_options = [bool(item.options) for item in items]
    if any(with_options) and not all(with_options):
        line = rows[with_options.index(not with_options[0])][0]
        raise ValueError(f"{path}, line {line}: either every row has options or none has, but lines 1 and {line} differ")
    items = subsample(items, limit, seed)
    if not any(with_options):
        return Task(name="custom", kind="generate", items=items, baseline=0.0, grade=grade_text)
    lettered = all(item.options == tuple(OPTION_LETTERS[: len(item.options)]) for item in items)
    grade = chosen_letter if lettered else same_text
    return Task(name="custom", kind="choice", items=items, baseline=guessing(items), grade=grade)


def _item(where: str, row: dict[str, Any]) -> Item:
    options = _options(where, row.get("options"))
    if "messages" in row:
        messages, answer = _conversation(where, row["messages"]), row.get("answer")
        if messages[-1]["role"] == "assistant":
            answer = messages.pop()["content"]
        if not messages or messages[-1]["role"] != "user":
            raise ValueError(f"{where}: the conversation must have a user's message before the answer")
        return Item(messages=messages, answer=_answer(where, answer, options), options=options)
    question = row.get("question")
    if not isinstance(question, str) or not question.strip():
        raise ValueError(f"{where}: expected {NEEDS}; got the columns {', '.join(row) or 'none'}")
    answer = _answer(where, row.get("answer"), options)
    if not options:
        return Item(messages=[{"role": "user", "content": question}], answer=answer)
    content = with_lettered_options(question, options)
    letters = tuple(OPTION_LETTERS[: len(options)])
    return Item(messages=[{"role": "user", "content": content}], answer=letters[options.index(answer)], options=letters)


def _options(where: str, options: object) -> tuple[str, ...]:
    if options is None:
        return ()
    most = len(OPTION_LETTERS)
    if not isinstance(options, list) or not 2 <= len(options) <= most or not all(isinstance(o, str) for o in options):
        raise ValueError(f"{where}: options must be a list of 2 to {most} texts, got {options!r}")
    if len(set(options)) < len(options):
        raise ValueError(f"{where}: options must differ from each other, got {options!r}")
    return tuple(options)


def _conversation(where: str, messages: object) -> list[dict[str, Any]]:
    fine = isinstance(messages, list) and messages and all(_is_message(message) for message in messages)
    if not fine:
        raise ValueError(f"{where}: messages must be a list of objects with role (system, user or assistant) and content (text)")
    return list(messages)  # type: ignore[call-overload]


def _is_message(message: object) -> bool:
    return (
        isinstance(message, dict)
        and message.get("role") in ("system", "user", "assistant")
        and isinstance(message.get("content"), str)
    )


def _answer(where: str, answer: object, options: tuple[str, ...]) -> str:
    """The answer's text; among options it may be given as its text, its letter or its index from 0."""
    if isinstance(answer, int) and not isinstance(answer, bool):
        if not options:
            return str(answer)
        if 0 <= answer < len(options) and str(answer) not in options:
            return options[answer]
        answer = str(answer)
    if not isinstance(answer, str) or not answer.strip():
        raise ValueError(f"{where}: answer must be a text or a whole number, got {answer!r}")
    if not options or answer in options:
        return answer
    if len(answer) == 1 and answer in OPTION_LETTERS[: len(options)]:
        return options[OPTION_LETTERS.index(answer)]
    raise ValueError(f"{where}: answer must be one of the options (text, letter or index from 0), got {answer!r}")


def grade_text(item: Item, text: str) -> bool:
    """The reply equals the answer without regard to case, space and a last full stop; a number may end a sentence."""
    if _normal(text) == _normal(item.answer):
        return True
    wanted = last_number(item.answer)
    return wanted is not None and wanted == plain_number(item.answer) and last_number(text) == wanted


def _normal(text: str) -> str:
    return " ".join(text.split()).rstrip(".").casefold()
