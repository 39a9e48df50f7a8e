"""What brings data in: `data download`."""

from __future__ import annotations

import difflib
import os
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
    )  # fmt: skip
    if not options.names:
        print("\n".join(f"{name:16} {source.use:12} {source.about}; {source.licence}" for name, source in SOURCES.items()))
        return {name: source.repository or source.url for name, source in SOURCES.items()}
    for name in options.names:
        if name not in SOURCES:
            close = difflib.get_close_matches(name, SOURCES, n=1)
            hint = f" Did you mean {close[0]}?" if close else ""
            raise ValueError(f"unknown data {name!r}.{hint} Accepted: {', '.join(SOURCES)}.")
    from nutshell.data.download import download as bring

    result = {}
    for name in options.names:
        source = SOURCES[name]
        shards = (options.shards or source.shards) if source.shards else None
        files = bring(source, Path(options.out) / source.folder, shards=shards, url=options.url, note=print)
        result[name] = {"folder": str(Path(options.out) / source.folder), "files": len(files)}
    return result
