"""What comes from outside and goes there: `data download`, `data import`, `push`."""

from __future__ import annotations

import difflib
import os
import shlex
from pathlib import Path
from typing import Any

from nutshell.cli.arguments import parse_arguments


def download(arguments: list[str]) -> Any:
    """Fetch named data: text to pretrain on, conversations, tests. `nutshell data download` alone lists them."""
    from nutshell.data.sources import SOURCES

    options = parse_arguments(
        "data download", arguments, download.__doc__,
        _names={"nargs": "*", "metavar": "NAME", "help": ", ".join(SOURCES)},
        shards={"short": ["-n"], "type": int, "default": 8, "help": "shards of climbmix and fineweb-edu to train on; 0: all"},
        out={"default": "data", "type": os.path.expanduser, "help": "folder to put them in, one below it for each name"},
        url={"help": "another address of core or identity", "default": ""},
        dry_run={"action": "store_true", "help": "say how much it is, and ask nobody"},
    )  # fmt: skip
    if not options.names:
        for name, source in SOURCES.items():
            size = f"{source.megabytes:g} MB" + " a shard" * bool(source.shards)
            print(f"{name:16} {source.about}\n{'':16} {size}; {source.licence}; for {source.use}")
        return {name: source.repository or source.url for name, source in SOURCES.items()}
    for name in options.names:
        if name not in SOURCES:
            close = difflib.get_close_matches(name, SOURCES, n=1)
            hint = f" Did you mean {close[0]}?" if close else ""
            raise ValueError(f"unknown data {name!r}.{hint} Accepted: {', '.join(SOURCES)}.")
    if options.dry_run:
        return _sizes(options.names, options.shards, options.out)
    from nutshell.data.download import download as bring

    result = {}
    for name in options.names:
        source = SOURCES[name]
        shards = (options.shards or source.shards) if source.shards else None
        files = bring(source, Path(options.out) / source.folder, shards=shards, url=options.url, note=print)
        result[name] = {"folder": str(Path(options.out) / source.folder), "files": len(files)}
    return result


def _sizes(names: list[str], shards: int, out: str) -> dict[str, float]:
    """About how many megabytes each name is, printed with the room there is."""
    from nutshell.data.sources import SOURCES
    from nutshell.hub import free_bytes

    sizes = {}
    for name in names:
        source = SOURCES[name]
        count = len(source.wanted(shards or source.shards)) if source.shards else 1
        sizes[name] = count * source.megabytes
        print(f"download  {name}: about {sizes[name]:,.1f} MB" + f" in {count:,} shards" * bool(source.shards))
    total, free = sum(sizes.values()) / 1e3, free_bytes(Path(out)) / 1e9
    print(f"disk      about {total:,.1f} GB for data in {out}, {free:,.1f} GB are free")
    return sizes


def import_data(arguments: list[str]) -> Any:
    """Turn your files into shards to train on: .txt .md .html .csv .tsv .json .jsonl .parquet .pdf, code, also .gz .zst .bz2."""
    options = parse_arguments(
        "data import", arguments, import_data.__doc__,
        _paths={"nargs": "+", "metavar": "PATH", "type": os.path.expanduser, "help": "files and folders; - is standard input"},
        out={"required": True, "type": os.path.expanduser, "help": "folder to make, for --data"},
        column={"default": "", "help": "column of text (default: text, content ...)"},
        encoding={"default": "", "help": "of text, code, pages and tables (default: UTF-8, or UTF-16 where the file says so)"},
        lines={"action": "store_true", "help": "each line of a .txt file is a document"},
        min_chars={"type": int, "default": 1, "help": "leave out shorter documents"},
        max_chars={"type": int, "help": "leave out longer documents"},
        near_duplicates={"type": float, "default": 0.0, "metavar": "X", "help": "leave out what is as like an earlier one: 0.8"},
        language={"nargs": "+", "default": [], "help": "leave out documents in other languages: en de"},
        skip_bad={"action": "store_true", "help": "leave out what cannot be read in place of stopping"},
        val_fraction={"type": float, "default": 0.01, "help": "part of the text that is held out for validation"},
        seed={"type": int, "default": 0, "help": "of the order"},
    )  # fmt: skip
    from nutshell.data.importing import Choice, import_files

    names = ("column", "encoding", "lines", "min_chars", "max_chars", "near_duplicates", "skip_bad")
    given = {name: getattr(options, name) for name in names if getattr(options, name) is not None}
    choice = Choice(**given, languages=tuple(options.language))
    if not all([*options.paths, options.out]):
        raise ValueError("a path is empty (an unset variable?). Accepted: files, folders, - for standard input.")
    out = Path(options.out)
    facts = import_files(options.paths, out, choice, note=print, val_fraction=options.val_fraction, seed=options.seed)
    print(f"train on it: nutshell speedrun --data {shlex.quote(options.out)}")
    return {"folder": str(out), **facts}


def push(arguments: list[str]) -> Any:
    """Upload a model to the Hugging Face hub, with a model card."""
    options = parse_arguments(
        "push", arguments, push.__doc__,
        _model={"type": os.path.expanduser, "help": "run, model folder, or a folder that `nutshell export` made"},
        _repository={"metavar": "OWNER/NAME", "help": "made where it does not exist"},
        private={"action": "store_true", "help": "a new repository is seen by you alone"},
        tags={"nargs": "+", "default": [], "help": "for the card, beside nutshell"},
        licence={"default": "", "short": ["--license"], "help": "for the card, such as mit"},
    )  # fmt: skip
    from nutshell.interop.push import push as upload

    address = upload(
        Path(options.model), options.repository, private=options.private, tags=tuple(options.tags), licence=options.licence
    )
    print(address)
    return {"commit": address}
