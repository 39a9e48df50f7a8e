"""`nutshell tokenizer train`: straight from text files, or by a recipe."""

from __future__ import annotations

import argparse
import itertools
import os
import shlex
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import fields
from pathlib import Path
from typing import TYPE_CHECKING, Any

from nutshell.cli.tokenizer_common import parser_of

if TYPE_CHECKING:
    from nutshell.data.text import Found

_OWN_FLAGS = ("out", "vocab_size", "threads")
_MEASURED_BYTES = 4_000_000

Progress = Callable[[str, int], object]


def train(arguments: list[str], by_recipe: Callable[[list[str]], Any]) -> Any:
    """Train on the files named in `arguments` and save; where they name a recipe instead, leave it to `by_recipe`.

    Returns folder, vocabulary, bytes of text, seconds, speed and bytes per token. Whatever can be refused is refused
    before the training begins, and nothing is written until it has ended.
    """
    if _names_a_recipe(arguments):
        return by_recipe(arguments)
    options = _parser().parse_intermixed_args(arguments)
    if not options.files and options.out and (Path(options.out) / "plan.json").exists():
        return by_recipe(arguments)  # the run's own recipe
    found = _check(options)
    from nutshell.tokenizer import Tokenizer

    started, size = time.perf_counter(), 0
    with _progress() as show:

        def progress(stage: str, done: int) -> None:
            nonlocal size
            size = done if stage == "read" else size
            if show:
                show(stage, done)

        tok = Tokenizer.train(found.train, options.vocab_size, options.pattern, threads=options.threads, progress=progress)
    seconds = time.perf_counter() - started
    tok.save(options.out)
    print(found.summary(), file=sys.stderr)
    result = {
        "folder": options.out,
        "vocab_size": tok.vocab_size,
        "bytes": size,
        "seconds": seconds,
        "megabytes_per_second": size / seconds / 1e6,
        "bytes_per_token": _bytes_per_token(tok, found.train),
    }
    _print(result, options.vocab_size)
    return result


def _parser() -> argparse.ArgumentParser:
    parser = parser_of(
        "train",
        "FILE ... --out FOLDER [--vocab-size N] [--pattern P] [--threads N] [--force]\n"
        "       nutshell tokenizer train RECIPE [--out RUN] [the recipe's flags]",
        "With a recipe (a .toml file, or a folder with config.toml) the tokenizer becomes that run's own, in RUN/tokenizer,\n"
        "trained on its data, which is prepared first where needed. All flags of a recipe: nutshell pretrain --help",
    )
    parser.add_argument("files", metavar="FILE", nargs="*", help=".txt, .md, .jsonl, .json, .parquet, or folders of them")
    parser.add_argument("--out", metavar="FOLDER", help="where tokenizer.json is written, when all is done")
    parser.add_argument(
        "--vocab-size", metavar="N", type=int, default=32768, help="tokens, the 9 special ones included (default: 32768)"
    )
    parser.add_argument(
        "--pattern",
        metavar="P",
        default="nanochat",
        help="how text is split before merging: nanochat, gpt2, cl100k, o200k, qwen2 or a regex (default: nanochat)",
    )
    parser.add_argument(
        "--threads", metavar="N", type=int, default=0, help="0 takes all cores (the default); the result is the same"
    )
    parser.add_argument("--force", action="store_true", help="replace a tokenizer that is in FOLDER already")
    return parser


def _names_a_recipe(arguments: list[str]) -> bool:
    """Whether the first argument is a recipe, or a flag is given that only recipes have."""
    if arguments and not arguments[0].startswith("-"):
        path = Path(arguments[0])
        if path.suffix == ".toml" or (path / "config.toml").is_file():
            return True
    from nutshell.plan.recipe import Recipe

    names = {argument[2:].split("=")[0].replace("-", "_") for argument in arguments if argument.startswith("--")}
    return any(name.split(".")[0] in {f.name for f in fields(Recipe)} - {*_OWN_FLAGS} for name in names)


def _check(options: argparse.Namespace) -> Found:
    """The files to train on; whatever can be refused at once is refused here."""
    from nutshell.data.text import TEXT_KINDS, find_text

    if not options.files:
        raise ValueError(f"give text to train on ({', '.join(TEXT_KINDS)} files or folders of them), or a recipe (recipes/demo)")
    if not options.out:
        raise ValueError("give --out FOLDER, where the tokenizer is written")
    if options.threads < 0:
        raise ValueError(f"--threads is {options.threads}; accepted: 0 (all cores) or more")
    out = Path(options.out)
    if out.exists() and not out.is_dir():
        raise NotADirectoryError(f"--out {out} is a file; give a folder")
    if (out / "plan.json").exists():
        raise ValueError(f"{out} is a run, which has a tokenizer of its own; give another --out")
    if (out / "tokenizer.json").exists() and not options.force:
        raise FileExistsError(f"{out} holds a tokenizer already; give another --out, or --force to replace it")
    parent = next(folder for folder in (out, *out.absolute().parents) if folder.exists())
    if not parent.is_dir() or not os.access(parent, os.W_OK):
        raise PermissionError(f"--out {out} can't be written: {parent} is no folder that this user may write to")
    return find_text(options.files)


def _bytes_per_token(tok: Any, files: list[Path]) -> float:
    """On the beginning of the text trained on."""
    from nutshell.cli.tokenizer_compare import documents

    texts, size = [], 0
    for text in itertools.chain.from_iterable(map(documents, map(str, files))):
        texts.append(text)
        size += len(text.encode())
        if size >= _MEASURED_BYTES:
            break
    return size / max(len(tok.encode_batch(texts)[0]), 1)


@contextmanager
def _progress() -> Iterator[Progress | None]:
    """A line on standard error that says how far reading and merging are, where that is a terminal."""
    if not sys.stderr.isatty():
        yield None
        return
    from rich.console import Console
    from rich.progress import Progress as Bar
    from rich.progress import SpinnerColumn, TextColumn, TimeElapsedColumn

    with Bar(
        SpinnerColumn(), TextColumn("{task.description}"), TimeElapsedColumn(), console=Console(stderr=True), transient=True
    ) as bar:
        task = bar.add_task("starting")

        def report(stage: str, done: int) -> None:
            bar.update(task, description=f"read {done / 1e6:,.1f} MB" if stage == "read" else f"learned {done:,} merges")

        yield report


def _print(result: dict[str, Any], asked: int) -> None:
    folder, size = shlex.quote(result["folder"]), result["vocab_size"]
    fewer = f" (fewer than the {asked:,} asked for: the text holds no more pairs to merge)" if size < asked else ""
    print(f"{folder}: {size:,} tokens{fewer}")
    speed = f"{result['seconds']:.2f} s, {result['megabytes_per_second']:.1f} MB/s"
    print(f"  {result['bytes'] / 1e6:,.1f} MB of text in {speed}; {result['bytes_per_token']:.3f} bytes per token on it")
    print("Try it:")
    print(f"  nutshell tokenizer show {folder} 'some text'")
    print(f"  nutshell tokenizer eval {folder}")
