"""HumanEval: Python functions to write from their signature and docstring (Chen et al. 2021, arXiv 2107.03374)."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

from nutshell.infer.checker import check_program
from nutshell.infer.sandbox import Sandbox
from nutshell.tasks.task import Item, Task, needed_folder, read_items, subsample

NEEDS = "JSON lines with prompt, test and entry_point; `nutshell data download humaneval` fetches them"
MAX_TOKENS = 512
TIMEOUT_SECONDS = 5.0
_BLOCK = re.compile(r"```(?:python|py)?[ \t]*\n(.*?)(?:```|\Z)", re.DOTALL)


def load(limit: int | None, seed: int, data_folder: str | Path | None) -> Task:
    """The items of DATA_FOLDER/humaneval/; replies are run in the sandbox. SandboxError where there is none on this machine."""
    folder = needed_folder("humaneval", data_folder, "humaneval/HumanEval.jsonl") / "humaneval"
    items = subsample(read_items(folder / "HumanEval.jsonl", NEEDS, _item), limit, seed)
    sandbox = Sandbox.open()

    def grade(item: Item, text: str) -> float:
        """Whether the item's tests pass. A sandbox that breaks is an error, never a wrong answer."""
        tests = f"{item.details['test']}\ncheck({item.details['entry_point']})"
        return float(check_program(sandbox, program(item, text), tests, TIMEOUT_SECONDS).passed)

    notes = (f"programs ran in the sandbox {sandbox.level}",)
    return Task(name="humaneval", items=items, grade=grade, max_tokens=MAX_TOKENS, notes=notes)


def _item(place: str, row: dict[str, Any], index: int) -> Item:
    prompt, solution = row.get("prompt"), row.get("canonical_solution", "")
    details = {key: row.get(key) for key in ("prompt", "test", "entry_point")}
    if not all(isinstance(text, str) for text in (solution, *details.values())):
        raise ValueError(f"{place}: accepted: {NEEDS}.")
    return Item(
        messages=[{"role": "user", "content": f"Complete this Python function.\n```python\n{prompt}```"}],
        solution=f"```python\n{prompt}{solution}```", index=index, details=details,
    )  # fmt: skip


def program(item: Item, reply: str) -> str:
    """The code of a reply: its first block of code, or all of it. Code that does not define the function goes on where the prompt
    ends; to code that does, the prompt's imports are given."""
    block = _BLOCK.search(reply)
    code = block.group(1) if block else reply
    prompt = item.details["prompt"]
    if not re.search(rf"^def {re.escape(item.details['entry_point'])}\b", code, re.MULTILINE):
        return prompt + code
    imports = re.findall(r"^(?:from|import) .*$", prompt, re.MULTILINE)
    return "\n".join([*imports, code])
