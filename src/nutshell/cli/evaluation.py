"""The verb `eval`: a model's scores on tasks, and bits per byte of texts."""

from __future__ import annotations

import argparse
import math
import os
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from nutshell.cli.arguments import check_output, parse_arguments
from nutshell.cli.model import DEVICE, MODEL

if TYPE_CHECKING:
    from nutshell.tasks import Core, Task


def evaluate(arguments: list[str]) -> Any:
    """Score a model on tasks."""
    options = parse_arguments(
        "eval", arguments, evaluate.__doc__, _model=MODEL, device=DEVICE,
        dtype={"default": "auto", "help": "auto (float32 on CPU, so that scores are the same on every machine), bfloat16, ..."},
        text={"nargs": "+", "type": os.path.expanduser, "default": [], "metavar": "PATH",
              "help": "score files and folders of text in bits per byte; alone, no task is scored"},
        tasks={"nargs": "+", "default": [], "metavar": "TASK",
               "help": "names or groups, a function in a file as my_task.py:task, a .jsonl file; docs/evaluation.md lists them"},
        limit={"type": int, "default": 200, "help": "items of each task; 0 takes all"},
        data={"short": ["--eval-data"], "type": os.path.expanduser, "default": None,
              "help": "folder with core/, arc/, mmlu/, gsm8k/, as the tasks need; a recipe calls it eval_data"},
        shots={"type": int, "default": 0, "help": "solved examples before each question of arc, mmlu and gsm8k"},
        samples={"type": int, "default": 1, "help": "replies to each item that is answered in writing, for pass@k"},
        temperature={"type": float, "default": None, "help": "of these replies; 0 with one sample, else 0.8"},
        max_tokens={"type": int, "default": 0, "help": "longest reply; 0 leaves it to the task"},
        seed={"type": int, "default": 42, "help": "which items a limit takes"},
        out={"type": _path, "default": None, "metavar": "FOLDER",
             "help": "write items.jsonl and results.json there"},
        report={"type": _path, "default": None, "metavar": "FILE", "help": "write the results as Markdown"},
    )  # fmt: skip
    from nutshell.data.text import read_documents
    from nutshell.tasks import load_task

    folder, names = _model_and_tasks(options)
    _check_numbers(options)
    tasks = [
        load_task(name, limit=options.limit or None, seed=options.seed, data_folder=options.data, shots=options.shots)
        for name in names
    ]
    _note_what_changes_nothing(options, names)
    for flag, path in (("--out", options.out), ("--report", options.report)):
        if path is not None:
            check_output(flag, path, folder=flag == "--out")
    if options.text:
        next(read_documents(options.text))  # what cannot be read is said before anything is computed
    return _score(options, folder, tasks)


def _path(name: str) -> Path | None:
    return Path(name).expanduser() if name else None


def _score(options: argparse.Namespace, folder: str, tasks: list[Task | Core]) -> dict[str, Any]:
    """Score, print and write; the results by task, without their items."""
    runtime, model, tok = open_any(folder, options.device, options.dtype)
    from nutshell.eval.run import evaluate_tasks
    from nutshell.files import write_json, write_text
    from nutshell.report.evaluation import page
    from nutshell.runtime import leave_ranks

    out = options.out
    if out is not None and runtime.is_main:
        out.mkdir(parents=True, exist_ok=True)
    with progress_bars(quiet=not runtime.is_main) as progress:
        results = evaluate_tasks(
            tasks, model, tok, runtime=runtime, out=out, progress=progress, show=show if runtime.is_main else None,
            samples=options.samples, temperature=options.temperature, max_tokens=options.max_tokens,
        )  # fmt: skip
    settings = {
        "limit": options.limit or "none", "shots": options.shots, "samples": options.samples, "temperature": options.temperature,
        "dtype": runtime.dtype_name, "seed": options.seed,
    }  # fmt: skip
    short = {name: {k: v for k, v in result.items() if k not in ("examples", "records")} for name, result in results.items()}
    if options.text:
        short["text"] = {"bpb": text_bpb(options.text, model, tok)}
        if runtime.is_main:
            print(f"{'text':16} {short['text']['bpb']:8.4f}  bits per byte")
    if out is not None and runtime.is_main:
        write_json(out / "results.json", {"model": folder, "settings": settings, "results": short})
    if options.report is not None and runtime.is_main:
        options.report.parent.mkdir(parents=True, exist_ok=True)
        write_text(options.report, page(folder, results, settings))
    leave_ranks(runtime)
    return short


def _model_and_tasks(options: argparse.Namespace) -> tuple[str, list[str]]:
    """The model's folder, which may stand behind --tasks, and the names of the tasks."""
    from nutshell.tasks import GROUPS, TASK_NAMES, task_names

    folders = [word for word in options.tasks if word and Path(word).is_dir() and word not in (*TASK_NAMES, *GROUPS)]
    words = [word for word in options.tasks if word not in folders]
    models = folders + [options.model] * (options.model != MODEL["default"])
    if len(models) > 1:
        raise ValueError(f"two models are named, {models[0]} and {models[1]}; accepted: one a command.")
    names = task_names(words or ([] if options.text else ["primer"]))
    if words and not names:
        raise ValueError(f"--tasks is {' '.join(words)!r}, which names none; leave it out for the primer's.")
    return (models[0] if models else options.model), names


def _check_numbers(options: argparse.Namespace) -> None:
    """ValueError for a number that is out of range. Fills in the temperature of written replies."""
    for flag, least in (("limit", 0), ("shots", 0), ("samples", 1), ("max_tokens", 0), ("seed", 0)):
        if getattr(options, flag) < least:
            raise ValueError(f"--{flag.replace('_', '-')} is {getattr(options, flag)}; accepted: {least} or more.")
    if options.temperature is None:
        options.temperature = 0.8 * (options.samples > 1)
    if options.temperature < 0 or (options.temperature == 0 and options.samples > 1):
        given = f"--temperature is {options.temperature}"
        raise ValueError(f"{given}; accepted: 0 or more; above 0 for several samples, or they are equal.")


def _note_what_changes_nothing(options: argparse.Namespace, names: list[str]) -> None:
    from nutshell.tasks import READ_DATA, TAKE_SHOTS

    for flag, given, users in (("shots", options.shots, TAKE_SHOTS), ("data", options.data, READ_DATA)):
        if given and (others := [name for name in names if name not in users]):
            print(
                f"note: --{flag} {given} changes nothing for {', '.join(others)}; it is for {', '.join(users)}", file=sys.stderr
            )


def text_bpb(path: str, model: Any, tok: Any) -> float:
    """Bits per byte of files of text. DamagedModelError where they are no number."""
    from nutshell.data.text import read_documents
    from nutshell.eval.bpb import bits_per_byte, packed_rows
    from nutshell.infer.sampling import DamagedModelError

    bpb = bits_per_byte(model, packed_rows(read_documents(path), tok, model.config.context), tok.token_byte_lengths())
    if not math.isfinite(bpb):
        raise DamagedModelError
    return bpb


def open_any(folder: str, device: str, dtype: str) -> tuple[Any, Any, Any]:
    """Runtime, frozen model and tokenizer of a run, a model folder, or a folder of transformers."""
    from nutshell.checkpoint import load
    from nutshell.eval.huggingface import is_foreign, load_foreign
    from nutshell.runtime import start_runtime

    runtime = start_runtime(device=device, dtype=dtype, auto_dtype={"cpu": "float32"}, ranks=True)
    if is_foreign(Path(folder)):
        return runtime, *load_foreign(Path(folder), runtime.device, runtime.dtype)
    model, tok = load(folder, runtime.device)
    return runtime, model.set_precision(runtime.dtype).for_inference(), tok


def show(name: str, result: dict[str, Any]) -> None:
    """One task in a line, CORE's parts below."""
    low, high = result["interval"]
    chance = f"guessing {result['baseline']:6.1%}   " if name not in ("core", "chatcore") else " " * 18
    print(f"{name:16} {result['accuracy']:8.2%}   ({low:.1%} to {high:.1%})   {chance}{result['count']} items")
    for k, value in result.get("pass_at_k", {}).items():
        print(f"  pass@{k:<10} {value:8.2%}")
    for label, part in result.get("tasks", {}).items():
        print(f"  {label:34} {part['accuracy']:8.2%}   centred {part['centered']:8.4f}   {part['count']} items")
    for note in result["notes"]:
        print(f"  note: {note}")


@contextmanager
def progress_bars(*, quiet: bool) -> Iterator[Callable[[str], Callable[[int, int], None]] | None]:
    """A function that begins a task's bar: it gives one that is told (done, total). Bars vanish, and go to stderr."""
    if quiet:
        yield None
        return
    from rich.console import Console
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    with Progress(*columns, console=Console(stderr=True), transient=True) as bars:

        def begin(name: str) -> Callable[[int, int], None]:
            for old in bars.task_ids:
                bars.remove_task(old)
            bar = bars.add_task(name, total=None)
            return lambda done, total: bars.update(bar, completed=done, total=total)

        yield begin
