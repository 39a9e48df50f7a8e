"""The verbs of `nutshell tokenizer`: train, encode, decode, show, eval."""

from __future__ import annotations

import argparse
import json
import re
import shlex
import shutil
import sys
import time
from collections.abc import Callable
from dataclasses import fields
from itertools import chain
from pathlib import Path
from typing import TYPE_CHECKING, Any

from nutshell.cli import compression, tokens
from nutshell.cli.arguments import FOLDER, PATTERN, check_output, open_tokenizer, parse_arguments, read_text

if TYPE_CHECKING:
    from nutshell.data.find import Files
    from nutshell.tokenizer import Tokenizer


def tokenizer(arguments: list[str]) -> Any:
    """Train a tokenizer, encode, decode, show tokens, measure compression."""
    action = arguments[0] if arguments else "--help"
    if action in ("-h", "--help"):
        print("usage: nutshell tokenizer ACTION [--help] ...\n")
        print("\n".join(f"  {name:8} {(verb.__doc__ or '').splitlines()[0]}" for name, verb in ACTIONS.items()))
        return None
    if action not in ACTIONS:
        raise ValueError(f"nutshell tokenizer {action}: unknown. Accepted: {', '.join(ACTIONS)}.")
    return ACTIONS[action](arguments[1:])


# ---- train ---------------------------------------------------------------------------------------------------------


def train(arguments: list[str]) -> Any:
    """Train a tokenizer on text files, or a run's tokenizer from a recipe.

    With a recipe (nutshell tokenizer train RECIPE; a .toml file, or a folder
    with config.toml) the tokenizer becomes that run's own, in RUN/tokenizer,
    trained on its data, which is prepared first where needed. All flags of a
    recipe: nutshell pretrain --help
    """
    from nutshell.cli.train import train_tokenizer

    if _names_a_recipe(arguments):
        return train_tokenizer(arguments)
    options = parse_arguments(
        "tokenizer train", arguments, train.__doc__,
        _files={"metavar": "FILE", "nargs": "*", "help": ".txt, .md, .jsonl, .json, .parquet, or folders of them"},
        out={"metavar": "FOLDER", "help": "where tokenizer.json is written, when all is done"},
        kind={"choices": ("bpe", "char"), "default": "bpe",
              "help": "bpe, or char: an id for each character that the text holds (nanoGPT's), and one for all others"},
        vocab_size={"metavar": "N", "type": int, "default": 32768, "help": "tokens, the 9 special ones included (bpe)"},
        pattern={"metavar": "P", "default": "nanochat",
                 "help": "how text is split before merging: nanochat, gpt2, cl100k, o200k, qwen2 or a regex"},
        threads={"metavar": "N", "type": int, "default": 0, "help": "0 takes all cores; the result is the same"},
        force={"action": "store_true", "help": "replace a tokenizer that is in FOLDER already"},
    )  # fmt: skip
    if not options.files and options.out and (Path(options.out) / "plan.json").exists():
        return train_tokenizer(arguments)  # the run's own recipe
    found = _check(options)
    started = time.perf_counter()
    tok, size = _learn(options, found.train)
    seconds = time.perf_counter() - started
    tok.save(options.out)
    print(found.summary(), file=sys.stderr)
    head = list(compression.beginning(chain.from_iterable(map(compression.documents, map(str, found.train)))))
    bytes_per_token = sum(len(text.encode()) for text in head) / max(len(tok.encode_batch(head)[0]), 1)
    folder, fewer = shlex.quote(options.out), ""
    if options.kind == "bpe" and tok.vocab_size < options.vocab_size:
        fewer = f" (fewer than the {options.vocab_size:,} asked for: the text holds no more pairs to merge)"
    speed = f"{seconds:.2f} s, {size / seconds / 1e6:.1f} MB/s"
    print(f"{folder}: {tok.vocab_size:,} tokens{fewer}")
    print(f"  {size / 1e6:,.1f} MB of text in {speed}; {bytes_per_token:.3f} bytes per token on it")
    print(f"Try it:\n  nutshell tokenizer show {folder} 'some text'\n  nutshell tokenizer eval {folder}")
    return {
        "folder": options.out, "vocab_size": tok.vocab_size, "bytes": size, "seconds": seconds,
        "megabytes_per_second": size / seconds / 1e6, "bytes_per_token": bytes_per_token,
    }  # fmt: skip


def _learn(options: argparse.Namespace, files: list[Path]) -> tuple[Tokenizer, int]:
    """The tokenizer of these files, and how many bytes of text they hold."""
    from rich.console import Console

    from nutshell.tokenizer import Tokenizer

    if options.kind == "char":
        return Tokenizer.train_characters(files), sum(file.stat().st_size for file in files)
    size = 0
    with Console(stderr=True).status("starting") as status:

        def progress(stage: str, done: int) -> None:
            nonlocal size
            size = done if stage == "read" else size
            status.update(f"read {done / 1e6:,.1f} MB" if stage == "read" else f"learned {done:,} merges")

        tok = Tokenizer.train(files, options.vocab_size, options.pattern, threads=options.threads, progress=progress)
    return tok, size


def _names_a_recipe(arguments: list[str]) -> bool:
    """Whether the first argument is a recipe, or a flag is given that only recipes have."""
    if arguments and not arguments[0].startswith("-"):
        path = Path(arguments[0])
        if path.suffix == ".toml" or (path / "config.toml").is_file():
            return True
    from nutshell.plan.recipe import Recipe

    names = {re.split("[=.]", a[2:].replace("-", "_"))[0] for a in arguments if a.startswith("--")}
    return bool(names & ({f.name for f in fields(Recipe)} - {"out", "vocab_size", "threads"}))


def _check(options: argparse.Namespace) -> Files:
    """The files to train on. Bad input is refused here, before the training begins."""
    from nutshell.data.text import TEXT_KINDS, find_text

    if not options.files:
        raise ValueError(f"give text to train on ({', '.join(TEXT_KINDS)} files or folders of them), or a recipe (recipes/demo)")
    if not options.out:
        raise ValueError("give --out FOLDER, where the tokenizer is written")
    if options.threads < 0:
        raise ValueError(f"--threads is {options.threads}; accepted: 0 (all cores) or more")
    out = Path(options.out)
    check_output("--out", out, folder=True)
    if (out / "plan.json").exists():
        raise ValueError(f"{out} is a run, which has a tokenizer of its own; give another --out")
    if (out / "tokenizer.json").exists() and not options.force:
        raise FileExistsError(f"{out} holds a tokenizer already; give another --out, or --force to replace it")
    return find_text(options.files)


# ---- encode, decode, show ------------------------------------------------------------------------------------------

TEXT_OPTIONS: dict[str, Any] = {
    "_folder": FOLDER,
    "_text": {"metavar": "TEXT", "nargs": "?", "help": "the text; - reads standard input; after -- it may begin with -"},
    "file": {"metavar": "PATH", "help": "read the text from this file"},
    "special": {
        "metavar": "NAME", "action": "append", "default": [],
        "help": "read this special token from the text, such as '<|bos|>'; all reads every one. May be repeated. Text that "
        "spells another one stays plain text.",
    },
    "pattern": PATTERN,
}  # fmt: skip


def encode(arguments: list[str]) -> Any:
    """Print the token ids of a text."""
    options = parse_arguments("tokenizer encode", arguments, encode.__doc__, **TEXT_OPTIONS)
    _, _, ids = _encode(options)
    print(" ".join(map(str, ids)))
    return {"ids": ids}


def show(arguments: list[str]) -> Any:
    """Print a text with its tokens in colours."""
    options = parse_arguments(
        "tokenizer show", arguments, show.__doc__, **TEXT_OPTIONS,
        ids={"action": "store_true", "help": "print each token's id below it"},
        color={"short": ["--colour"], "choices": ("auto", "always", "never"), "default": "auto",
               "help": "auto: on a terminal without NO_COLOR; without colours │ stands between tokens"},
    )  # fmt: skip
    tok, text, ids = _encode(options)
    colour = tokens.in_colour(options.color)
    if options.ids:
        print(tokens.show_ids(tok, ids, colour=colour, width=shutil.get_terminal_size().columns))
    else:
        print(tokens.show(tok, ids, colour=colour))
    size = len(text.encode())
    print(f"\n{_plural(len(ids), 'token')}, {_plural(size, 'byte')}, {size / max(len(ids), 1):.2f} bytes per token")
    return {"ids": ids, "tokens": [tokens.spell(tok, id) for id in ids], "bytes": size}


def decode(arguments: list[str]) -> Any:
    """Print the text of token ids."""
    options = parse_arguments(
        "tokenizer decode", arguments, decode.__doc__, _folder=FOLDER, pattern=PATTERN,
        _ids={"metavar": "ID", "nargs": "*", "help": "token ids; - reads them from standard input"},
        file={"metavar": "PATH", "help": "read the ids from this file: numbers, or what encode --json printed"},
        spell_special={"action": "store_true", "help": "print the names of special tokens; else they give no text"},
    )  # fmt: skip
    ids = _ids(_read(" ".join(options.ids) if options.ids else None, options.file, "ID"))
    tok = open_tokenizer(options.folder, options.pattern)
    print(text := tok.decode(ids, special=options.spell_special))
    return {"text": text}


def _encode(options: argparse.Namespace) -> tuple[Tokenizer, str, list[int]]:
    text = _read(options.text, options.file, "TEXT")
    tok = open_tokenizer(options.folder, options.pattern)
    special = list(tok.special_tokens) if "all" in options.special else options.special
    return tok, text, tok.encode(text, special=special)


def _ids(text: str) -> list[int]:
    """Ids from numbers between blanks or commas, a JSON list, or the object that `encode --json` prints."""
    if text.lstrip().startswith("{"):
        try:
            text = " ".join(map(str, json.loads(text)["ids"]))
        except (ValueError, KeyError, TypeError):
            raise ValueError('expected token ids, or the JSON object with "ids" that encode --json prints') from None
    words = re.sub(r"[\[\],]", " ", text).split()
    wrong = next((word for word in words if not re.fullmatch(r"-?[0-9]{1,20}", word)), None)
    if wrong is not None:
        raise ValueError(f"{wrong!r} is not a token id; give whole numbers")
    return [int(word) for word in words]


def _read(given: str | None, file: str | None, name: str) -> str:
    """The text given as an argument, or that of a file or of standard input."""
    if (given is None) == (file is None):
        raise ValueError(f"give one of: {name} as an argument, - for standard input, or --file PATH")
    return read_text(file or "-") if given in (None, "-") else given


def _plural(count: int, noun: str) -> str:
    return f"{count:,} {noun}{'' if count == 1 else 's'}"


ACTIONS: dict[str, Callable[[list[str]], Any]] = {
    "train": train,
    "encode": encode,
    "decode": decode,
    "show": show,
    "eval": compression.evaluate,
}
