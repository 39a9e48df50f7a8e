"""CORE: 22 tasks for models that only continue text (DCLM, Li et al. 2024, arXiv 2406.11794), as nanochat reports it.

Prompts, the examples drawn for each item and the centring follow nanochat's core_eval.py and base_eval.py, so that the same model
gets the same answer on every item. `eval/core.py` scores them.
"""

from __future__ import annotations

import csv
import json
import random
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from nutshell.tasks.task import needed_folder, read_rows

BUNDLE = (
    "the files of the CORE evaluation bundle (core.yaml, eval_meta_data.csv, eval_data/), which "
    "`nutshell data download core` fetches"
)
FIELDS = {
    "multiple_choice": ("query", "choices", "gold"),
    "schema": ("context_options", "continuation", "gold"),
    "language_modeling": ("context", "continuation"),
}
"""What a row has, by type of task."""
Row = dict[str, Any]


@dataclass(frozen=True, kw_only=True)
class CoreTask:
    """One of the 22."""

    label: str
    type: str
    """multiple_choice: one beginning, several ends. schema: several beginnings, one end. language_modeling: the end must be
    what the model would say."""
    shots: int
    delimiter: str
    """Between a question and its answer."""
    baseline: float
    """Accuracy of guessing, 0 to 1."""
    rows: list[Row]
    """Shuffled."""

    def examples(self, index: int) -> list[Row]:
        """The solved rows before item `index`: drawn for it, without itself."""
        others = range(len(self.rows) - 1)  # without a place for the item itself
        drawn = random.Random(1234 + index).sample(others, min(self.shots, len(others)))
        return [self.rows[place + (place >= index)] for place in drawn]

    def prompts(self, index: int) -> list[str]:
        """Texts of item `index`: one for each choice or beginning; of language modeling, without and with the end."""
        row, solved = self.rows[index], "".join(f"{self._solved(example)}\n\n" for example in self.examples(index))
        if self.type == "multiple_choice":
            return [f"{solved}{row['query']}{self.delimiter}{choice}" for choice in row["choices"]]
        if self.type == "schema":
            return [f"{solved}{context}{self.delimiter}{row['continuation']}" for context in row["context_options"]]
        before = f"{solved}{row['context'].strip()}{self.delimiter}"
        return [before.strip(), f"{before}{row['continuation']}"]

    def _solved(self, row: Row) -> str:
        if self.type == "multiple_choice":
            return f"{row['query']}{self.delimiter}{row['choices'][row['gold']]}"
        if self.type == "schema":
            return f"{row['context_options'][row['gold']]}{self.delimiter}{row['continuation']}"
        return f"{row['context'].strip()}{self.delimiter}{row['continuation']}"


@dataclass(frozen=True, kw_only=True)
class Core:
    """All tasks of a bundle."""

    tasks: list[CoreTask]
    name: str = "core"
    baseline: float = 0.0
    """Of the mean of centred accuracies."""
    notes: tuple[str, ...] = ()

    @property
    def items(self) -> list[tuple[CoreTask, int]]:
        """Each task with the index of each of its rows."""
        return [(task, index) for task in self.tasks for index in range(len(task.rows))]


def load(data_folder: str | Path | None, limit: int | None) -> Core:
    """The bundle in DATA_FOLDER/core, or in DATA_FOLDER itself; `limit` rows of each task are nanochat's subset.

    Rows are shuffled by Random(1337), the first `limit` are taken, and the examples are drawn from these. ValueError and
    FileNotFoundError say what is missing.
    """
    folder = needed_folder("core", data_folder, f"core/, {BUNDLE}")
    folder = folder if (folder / "core.yaml").is_file() else folder / "core"
    for name in ("core.yaml", "eval_meta_data.csv"):
        if not (folder / name).is_file():
            raise FileNotFoundError(f"{folder / name} does not exist; core needs {BUNDLE}.")
    with open(folder / "eval_meta_data.csv", encoding="utf-8", newline="") as file:
        chances = {row["Eval Task"]: row["Random baseline"] for row in csv.DictReader(file)}
    entries = read_task_list(folder / "core.yaml")
    tasks = [_task(folder, entry, chances, limit) for entry in entries]
    few = [task.label for task in tasks if task.shots >= len(task.rows)]
    notes = (f"fewer examples than asked for, there are no more items: {', '.join(few)}",) if few else ()
    return Core(tasks=tasks, notes=notes)


def _task(folder: Path, entry: Row, chances: dict[str, str], limit: int | None) -> CoreTask:
    label, kind = entry["label"], entry["icl_task_type"]
    if kind not in FIELDS:
        raise ValueError(f"{folder / 'core.yaml'}: {label} is of type {kind!r}; accepted: {', '.join(FIELDS)}.")
    if label not in chances:
        raise ValueError(f"{folder / 'eval_meta_data.csv'} has no random baseline of {label}. Take both files from one bundle.")
    found = read_rows(folder / "eval_data" / entry["dataset_uri"], f"a part of {BUNDLE}")
    for place, row in found:
        if missing := [name for name in FIELDS[kind] if name not in row]:
            raise ValueError(f"{place}: {', '.join(missing)} missing; accepted for {kind}: {', '.join(FIELDS[kind])}.")
    rows = [row for _, row in found]
    random.Random(1337).shuffle(rows)
    return CoreTask(
        label=label, type=kind, shots=int(entry["num_fewshot"][0]), delimiter=entry.get("continuation_delimiter", " "),
        baseline=0.01 * float(chances[label]), rows=rows[:limit] if limit else rows,
    )  # fmt: skip


def read_task_list(path: Path) -> list[Row]:
    """The tasks of core.yaml: a list of flat mappings, whose values are words, quoted texts and lists of numbers."""
    entries: list[Row] = []
    for number, line in enumerate(path.read_text(encoding="utf-8").splitlines(), 1):
        text = line.strip()
        if text.startswith("-"):
            entries.append({})
            text = text[1:].strip()
        if not text or text.startswith("#") or not entries:
            continue
        key, colon, value = text.partition(":")
        try:
            entries[-1][key.strip()] = json.loads(value) if value.strip()[:1] in ('"', "[") else value.strip()
        except json.JSONDecodeError:
            colon = ""
        if not colon:
            raise ValueError(f"{path}, line {number}: {line!r}; accepted: a list of tasks as in {BUNDLE}.")
    needed = ("label", "dataset_uri", "num_fewshot", "icl_task_type")
    for entry in entries:
        if missing := [key for key in needed if key not in entry]:
            raise ValueError(f"{path}: {entry.get('label', 'a task')} has no {', '.join(missing)}. It should be of {BUNDLE}.")
    if not entries:
        raise ValueError(f"{path} lists no tasks; it should be of {BUNDLE}.")
    return entries
