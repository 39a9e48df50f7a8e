"""What `nutshell eval` does: its checks before anything is computed, its table, its files."""

from __future__ import annotations

import argparse
import math
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from nutshell.cli.arguments import check_output
from nutshell.data.text import read_documents
from nutshell.tasks import GROUPS, READ_DATA, TAKE_SHOTS, TASK_NAMES, load_task, task_names


def run(options: argparse.Namespace, *, given_model: bool) -> dict[str, Any]:
    """Score the model that the options name; the results by task, without their items."""
    folders = [word for word in options.tasks if word and Path(word).is_dir() and word not in (*TASK_NAMES, *GROUPS)]
    words = [word for word in options.tasks if word not in folders]
    models = folders + [options.model] * given_model
    if len(models) > 1:
        raise ValueError(f"two models are named, {models[0]} and {models[1]}; accepted: one a command.")
    for flag, least in (("limit", 0), ("shots", 0), ("samples", 1), ("max_tokens", 0), ("seed", 0)):
        if getattr(options, flag) < least:
            raise ValueError(f"--{flag.replace('_', '-')} is {getattr(options, flag)}; accepted: {least} or more.")
    temperature = options.temperature if options.temperature is not None else 0.8 * (options.samples > 1)
    if temperature < 0 or (temperature == 0 and options.samples > 1):
        raise ValueError(f"--temperature is {temperature}; accepted: 0 or more; above 0 for several samples, or they are equal.")
    names = task_names(words or ([] if options.text else ["primer"]))
    if words and not names:
        raise ValueError(f"--tasks is {' '.join(words)!r}, which names none; leave it out for the primer's.")
    tasks = [
        load_task(name, limit=options.limit or None, seed=options.seed, data_folder=options.data, shots=options.shots)
        for name in names
    ]
    for flag, given, users in (("shots", options.shots, TAKE_SHOTS), ("data", options.data, READ_DATA)):
        if given and (others := [name for name in names if name not in users]):
            print(
                f"note: --{flag} {given} changes nothing for {', '.join(others)}; it is for {', '.join(users)}", file=sys.stderr
            )
    out, report_file = (Path(path) if path else None for path in (options.out, options.report))
    for flag, path in (("--out", out), ("--report", report_file)):
        if path is not None:
            check_output(flag, path, folder=path is out)
    if options.text:
        next(read_documents(options.text))
    folder = models[0] if models else options.model
    runtime, model, tok = open_any(folder, options.device, options.dtype)

    from nutshell.eval.run import evaluate_tasks
    from nutshell.files import write_json, write_text
    from nutshell.runtime import leave_ranks

    if out is not None and runtime.is_main:
        out.mkdir(parents=True, exist_ok=True)
    with progress_bars(quiet=not runtime.is_main) as progress:
        results = evaluate_tasks(
            tasks, model, tok, runtime=runtime, out=out, progress=progress, show=show if runtime.is_main else None,
            samples=options.samples, temperature=temperature, max_tokens=options.max_tokens,
        )  # fmt: skip
    settings = {
        "limit": options.limit or "none", "shots": options.shots, "samples": options.samples, "temperature": temperature,
        "dtype": runtime.dtype_name, "seed": options.seed,
    }  # fmt: skip
    short = {name: {k: v for k, v in result.items() if k not in ("examples", "records")} for name, result in results.items()}
    if options.text:
        short["text"] = {"bpb": text_bpb(options.text, model, tok)}
        print(f"{'text':16} {short['text']['bpb']:8.4f}  bits per byte")
    if out is not None and runtime.is_main:
        write_json(out / "results.json", {"model": str(folder), "settings": settings, "results": short})
    if report_file is not None and runtime.is_main:
        report_file.parent.mkdir(parents=True, exist_ok=True)
        write_text(report_file, page(str(folder), results, settings))
    leave_ranks(runtime)
    return short


def text_bpb(path: str, model: Any, tok: Any) -> float:
    """Bits per byte of files of text. DamagedModelError where they are no number."""
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


def page(model: str, results: dict[str, Any], settings: dict[str, Any]) -> str:
    """The results as Markdown."""
    from nutshell.report.document import Block, Heading, Sample, Table, Text, markdown

    blocks: list[Block] = [Heading(f"Evaluation of {model}", 1), Text(", ".join(f"{k} {v}" for k, v in settings.items()))]
    rows = []
    for name, result in results.items():
        low, high = result["interval"]
        numbers = (f"{result['accuracy']:.4f}", f"{low:.4f} to {high:.4f}", f"{result['baseline']:.4f}", str(result["count"]))
        rows.append([name, *numbers])
    blocks.append(Table(["task", "accuracy", "95% interval", "guessing", "items"], rows))
    for name, result in results.items():
        if "pass_at_k" in result:
            chances = ", ".join(f"pass@{k} {value:.4f}" for k, value in result["pass_at_k"].items())
            blocks.append(Text(f"{name}: {chances}"))
        blocks += [Text(f"{name}: {note}.") for note in result["notes"]]
    if "core" in results:
        parts = results["core"]["tasks"].items()
        rows = [[label, f"{part['accuracy']:.4f}", f"{part['centered']:.4f}", str(part["count"])] for label, part in parts]
        blocks += [Heading("CORE"), Table(["task", "accuracy", "centred", "items"], rows)]
    examples = [(name, example) for name, result in results.items() for example in result["examples"]]
    blocks += [Heading("Examples")] if examples else []
    for name, example in examples:
        verdict = "right" if example["right"] else f"wrong, the answer is {example['answer']}"
        blocks.append(Sample(f"{name}, {verdict}", f"{example['question']}\n\n> {example['reply']}"))
    return markdown(blocks)


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
