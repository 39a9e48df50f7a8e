"""`nutshell tokenizer eval`: bytes per token on many kinds of text, side by side with tokenizers that many know."""

from __future__ import annotations

import os
import tempfile
from collections.abc import Iterable, Iterator, Mapping, Sequence
from itertools import chain
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from nutshell.cli.arguments import FOLDER, PATTERN, existing, open_tokenizer, parse_arguments, utf8
from nutshell.cli.tokens import in_colour
from nutshell.text_files import COMPRESSED, kind_of

if TYPE_CHECKING:
    from nutshell.tokenizer import Tokenizer

HEAD_BYTES = 4_000_000
"""How much of a long text is measured: enough for three digits."""
GREEN, RED, END = "\x1b[32m", "\x1b[31m", "\x1b[0m"
SAMPLES = ("news", "code", "korean", "chinese", "maths", "science")


class Known(NamedTuple):
    """A tokenizer that many know, measured where its rank file is at hand."""

    label: str
    pattern: str
    files: tuple[str, ...]
    """Names of its rank file."""
    cached: str
    """Its name in tiktoken's cache: the sha1 of the address that tiktoken fetches it from."""


KNOWN = (
    Known("GPT-2", "gpt2", ("gpt2.tiktoken", "r50k_base.tiktoken"), "0ea1e91bbb3a60f729a8dc8f777fd2fc07cd8df4"),
    Known("GPT-4", "cl100k", ("cl100k_base.tiktoken",), "9b5ad71b2ce5302211f9c61530b329a4922fc6a4"),
)


def evaluate(arguments: list[str]) -> Any:
    """Print bytes per token on many kinds of text, side by side with other tokenizers.

    Measured are sample texts of six kinds, the first 4 MB of a run's own
    training and validation text, and of each FILE. GPT-2 and GPT-4 are measured
    too where their rank files are found; nothing is downloaded.
    """
    options = parse_arguments(
        "tokenizer eval", arguments, evaluate.__doc__, _folder=FOLDER, pattern=PATTERN,
        _files={"metavar": "FILE", "nargs": "*", "help": "text to measure: plain text, .jsonl, .parquet, or a folder"},
        against={"metavar": "PATH", "nargs": "+", "action": "extend", "default": [],
                 "help": "other tokenizers, of any kind that FOLDER may be"},
        ranks={"metavar": "FOLDER", "help": "where gpt2.tiktoken and cl100k_base.tiktoken lie (or set NUTSHELL_RANKS); then "
               "tiktoken's own cache is looked through"},
    )  # fmt: skip
    texts = {**samples(), **_run_texts(Path(options.folder))}
    texts |= {f"./{file}" if file in texts else file: list(documents(file)) for file in options.files}
    empty = next((name for name, documents in texts.items() if not any(documents)), None)
    if empty is not None:
        raise ValueError(f"{empty} holds no text to measure")
    opened: dict[str, tuple[str, Tokenizer]] = {}  # label: path, tokenizer
    for path in (options.folder, *options.against):
        opened[_label(path, opened)] = path, _open(path, options.pattern)
    given = {Path(path).resolve() for path, _ in opened.values()}
    folders, missing = _rank_folders(options.ranks), []
    for known in KNOWN:
        ranks = find_ranks(known, folders)
        if ranks is None:
            missing.append(known)
        elif ranks.resolve() not in given:
            opened[known.label] = str(ranks), open_tokenizer(str(ranks), known.pattern)
    measured = measure({label: tok for label, (_, tok) in opened.items()}, texts)
    sizes = {label: tok.vocab_size for label, (_, tok) in opened.items()}
    print(table(measured, sizes, colour=in_colour()))
    if missing:
        print(
            f"\nNo column for {' and '.join(m.label for m in missing)}: put {' and '.join(m.files[0] for m in missing)} "
            "into a folder named by --ranks or NUTSHELL_RANKS (tiktoken's cache is looked through too)."
        )
    tokenizers = {label: {"path": path, "vocab_size": sizes[label]} for label, (path, _) in opened.items()}
    return {"tokenizers": tokenizers, "texts": measured}


def _open(path: str, pattern: str | None) -> Tokenizer:
    """A tokenizer; `pattern` is for rank files that can't be opened without one, for no other."""
    try:
        return open_tokenizer(path)
    except ValueError:
        if pattern is None:
            raise
        return open_tokenizer(path, pattern)


def _label(path: str, taken: Iterable[str]) -> str:
    """A short name for a column: runs/demo/tokenizer is demo; the whole path where that name is taken."""
    whole = Path(path).resolve()
    while whole.name in ("tokenizer.json", "tokenizer") and whole.parent.name:
        whole = whole.parent
    name = whole.name.removesuffix(".tiktoken").removesuffix(".json")
    return next(label for label in (name, path, *(f"{path} ({n})" for n in range(2, 100))) if label not in taken)


def _rank_folders(option: str | None) -> list[Path]:
    folders = []
    for name, value in (("--ranks", option), ("NUTSHELL_RANKS", os.environ.get("NUTSHELL_RANKS"))):
        if value and not Path(value).is_dir():
            raise NotADirectoryError(f"{name} is {value}, which is not a folder; give the one with gpt2.tiktoken")
        folders += [Path(value)] if value else []
    return folders


def _run_texts(run: Path) -> dict[str, list[str]]:
    """The beginnings of a run's own training and validation text; none where `run` is no run folder."""
    from nutshell.data.mixed import open_corpus
    from nutshell.data.shards import SPLITS, is_shard_folder

    if not is_shard_folder(run / "data"):
        return {}
    shards = open_corpus(run / "data")
    texts = {}
    for split in SPLITS:
        blocks = (shards.read(split, block) for block in range(shards.blocks(split)))
        texts[split] = list(beginning(chain.from_iterable(blocks)))
    return texts


def documents(file: str) -> Iterator[str]:
    """The first `HEAD_BYTES` of a plain text file of any name to the byte, or of the documents in other files or a folder."""
    path = Path(file)
    if path.is_dir() or kind_of(path) in (".jsonl", ".ndjson", ".json", ".parquet") or path.suffix.lower() in COMPRESSED:
        from nutshell.data.text import read_documents

        yield from beginning(read_documents(path))
        return
    with existing(file).open("rb") as content:
        begun = content.read(HEAD_BYTES)
        yield utf8(begun, file, final=not content.read(1))


def beginning(documents: Iterable[str]) -> Iterator[str]:
    """The first documents, until they have `HEAD_BYTES`."""
    size = 0
    for document in documents:
        yield document
        size += len(document.encode())
        if size >= HEAD_BYTES:
            return


def find_ranks(known: Known, folders: Sequence[Path]) -> Path | None:
    """The rank file of a known tokenizer in the first folder that has it, else in tiktoken's cache; None if nowhere."""
    set_caches = [os.environ[name] for name in ("TIKTOKEN_CACHE_DIR", "DATA_GYM_CACHE_DIR") if name in os.environ]
    cache = [*set_caches, os.path.join(tempfile.gettempdir(), "data-gym-cache")][0]
    candidates = [folder / name for folder in folders for name in (*known.files, known.cached)]
    candidates += [Path(cache, known.cached)] if cache else []  # an empty variable switches the cache off
    return next((path for path in candidates if path.is_file()), None)


def samples() -> dict[str, list[str]]:
    """The texts that every tokenizer is measured on: a page each of news, Python and C, Korean, Chinese, LaTeX, science."""
    folder = Path(__file__).parent / "samples"
    return {name: [(folder / f"{name}.txt").read_bytes().decode("utf-8")] for name in SAMPLES}


def measure(tokenizers: Mapping[str, Tokenizer], texts: Mapping[str, Sequence[str]]) -> dict[str, dict[str, Any]]:
    """For each text, given as documents: its `bytes`, and by tokenizer the `tokens` and `bytes_per_token`.

    `saved_percent` says how many percent fewer tokens the first tokenizer makes than each other one; below 0 it makes more.
    """
    measured = {}
    for name, documents in texts.items():
        size = sum(len(document.encode()) for document in documents)
        tokens = {label: len(tok.encode_batch(documents)[0]) for label, tok in tokenizers.items()}
        first, *others = tokens
        measured[name] = {
            "bytes": size,
            "tokens": tokens,
            "bytes_per_token": {label: size / count if count else 0.0 for label, count in tokens.items()},
            "saved_percent": {label: 100 * (1 - tokens[first] / tokens[label]) if tokens[label] else 0.0 for label in others},
        }
    return measured


def table(measured: Mapping[str, dict[str, Any]], vocab_sizes: Mapping[str, int], *, colour: bool = False) -> str:
    """What `measure` found as aligned text, a column for each tokenizer and what the first one saves against the others."""
    from rich.cells import cell_len

    first, *others = vocab_sizes
    rows = [["", "bytes", first], ["vocabulary", "", f"{vocab_sizes[first]:,}"]]
    for other in others:
        rows[0] += [other, "saved"]
        rows[1] += [f"{vocab_sizes[other]:,}", ""]
    for name, text in measured.items():
        row = [name, f"{text['bytes']:,}", f"{text['bytes_per_token'][first]:.3f}"]
        for other in others:
            saved = text["saved_percent"][other]
            row += [f"{text['bytes_per_token'][other]:.3f}", f"{saved:+.1f}%" if round(saved, 1) else "0.0%"]
        rows.append(row)
    widths = [max(cell_len(row[column]) for row in rows) for column in range(len(rows[0]))]

    def cell(column: int, value: str) -> str:
        gap = " " * (widths[column] - cell_len(value))
        if colour and column >= 4 and value[:1] in ("+", "-"):
            value = f"{RED if value.startswith('-') else GREEN}{value}{END}"
        return value + gap if column == 0 else gap + value

    lines = ["Bytes of UTF-8 per token: higher is better."]
    if others:
        lines.append(f"saved: how many percent fewer tokens {first} makes than the tokenizer left of it; below 0 it makes more.")
    return "\n".join([*lines, "", *("  ".join(cell(*pair) for pair in enumerate(row)).rstrip() for row in rows)])
