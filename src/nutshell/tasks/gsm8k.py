"""GSM8K: word problems of primary school (Cobbe et al. 2021, arXiv 2110.14168)."""

import re
from pathlib import Path
from typing import Any

from nutshell.tasks.task import Item, Message, Task, last_number, needed_folder, plain_number, read_rows, subsample

NEEDS = "JSONL rows with question and answer, the answer ending in #### and the result"
MOST_EXAMPLES = 8
_FINAL = re.compile(r"####\s*(-?[\d,]*\.?\d+)")
_CALCULATION = re.compile(r"<<[^>]*>>")


def load(name: str, limit: int | None, seed: int, data_folder: str | Path | None, examples: int = 0) -> Task:
    """The test split from DATA_FOLDER/gsm8k/; `examples` (at most 8) solved problems of train come first."""
    folder = needed_folder(name, data_folder, "gsm8k/test.jsonl") / "gsm8k"
    shots: list[Message] = []
    if examples > 0:
        for number, row in subsample(read_rows(folder / "train.jsonl", NEEDS), min(examples, MOST_EXAMPLES), seed):
            question, solution, _ = _parts(folder / "train.jsonl", number, row)
            shots += [{"role": "user", "content": question}, {"role": "assistant", "content": solution}]
    items = []
    for number, row in subsample(read_rows(folder / "test.jsonl", NEEDS), limit, seed):
        question, _, result = _parts(folder / "test.jsonl", number, row)
        items.append(Item(messages=[*shots, {"role": "user", "content": question}], answer=result))
    return Task(name=name, kind="generate", items=items, baseline=0.0, grade=grade)


def _parts(path: Path, number: int, row: dict[str, Any]) -> tuple[str, str, str]:
    """Question, solution without the calculator marks, result."""
    question, answer = row.get("question"), row.get("answer")
    final = _FINAL.search(answer) if isinstance(answer, str) else None
    if not isinstance(question, str) or not isinstance(answer, str) or final is None:
        raise ValueError(f"{path}, line {number}: expected {NEEDS}")
    return question, _CALCULATION.sub("", answer), plain_number(final.group(1))


def grade(item: Item, text: str) -> bool:
    """The number after the last ####, or the last number of a reply without ####, is the result."""
    marked = _FINAL.findall(text)
    return (plain_number(marked[-1]) if marked else last_number(text)) == item.answer
