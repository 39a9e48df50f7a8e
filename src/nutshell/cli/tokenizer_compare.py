"""`nutshell tokenizer eval`: which texts and tokenizers are measured."""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

from nutshell.cli.tokenizer_common import FOLDER, PATTERN, existing, in_colour, open_tokenizer, parser_of, utf8
from nutshell.files import COMPRESSED, kind_of

if TYPE_CHECKING:
    from nutshell.tokenizer import Tokenizer

HEAD_BYTES = 4_000_000
"""What is measured of a long text: enough for three digits."""


def compare(arguments: list[str]) -> Any:
    """`nutshell tokenizer eval`: the tokenizers with path and size; of each text its bytes, and by tokenizer the tokens,
    bytes per token and what the first tokenizer saves."""
    parser = parser_of(
        "eval",
        "FOLDER [FILE ...] [--against PATH ...] [--ranks FOLDER] [--pattern P]",
        "Measured are sample texts of six kinds, the first 4 MB of a run's own training and validation text, and of each FILE.\n"
        "GPT-2 and GPT-4 are measured too where their rank files are found; nothing is downloaded.",
    )
    parser.add_argument("folder", metavar="FOLDER", help=f"{FOLDER}; the others are compared with it")
    parser.add_argument("files", metavar="FILE", nargs="*", help="text to measure: plain text, .jsonl, .parquet, or a folder")
    parser.add_argument(
        "--against",
        metavar="PATH",
        nargs="+",
        action="extend",
        default=[],
        help="other tokenizers, of any kind that FOLDER may be",
    )
    parser.add_argument(
        "--ranks", metavar="FOLDER", help="where gpt2.tiktoken and cl100k_base.tiktoken lie (or set NUTSHELL_RANKS); then "
        "tiktoken's own cache is looked through"
    )  # fmt: skip
    parser.add_argument("--pattern", metavar="P", help=PATTERN)
    options = parser.parse_intermixed_args(arguments)
    from nutshell.cli import tokens as tools

    texts = {**tools.samples(), **_run_texts(Path(options.folder))}
    texts |= {f"./{file}" if file in texts else file: list(documents(file)) for file in options.files}
    empty = next((name for name, documents in texts.items() if not any(documents)), None)
    if empty is not None:
        raise ValueError(f"{empty} holds no text to measure")
    tokenizers: dict[str, Tokenizer] = {}
    paths: dict[str, str] = {}
    for path in (options.folder, *options.against):
        label = _label(path, tokenizers)
        tokenizers[label] = _open(path, options.pattern)
        paths[label] = path
    missing = []
    given = {Path(path).resolve() for path in paths.values()}
    folders = _rank_folders(options.ranks)
    for known in tools.KNOWN:
        ranks = tools.find_ranks(known, folders)
        if ranks is None:
            missing.append(known)
        elif ranks.resolve() not in given:
            tokenizers[known.label] = open_tokenizer(str(ranks), known.pattern)
            paths[known.label] = str(ranks)
    measured = tools.compression(tokenizers, texts)
    sizes = {label: tok.vocab_size for label, tok in tokenizers.items()}
    print(tools.table(measured, sizes, colour=in_colour()))
    if missing:
        labels, files = (" and ".join(names) for names in ([m.label for m in missing], [m.files[0] for m in missing]))
        print(
            f"\nNo column for {labels}: put {files} into a folder named by --ranks or NUTSHELL_RANKS "
            "(tiktoken's cache is looked through too)."
        )
    return {
        "tokenizers": {label: {"path": paths[label], "vocab_size": sizes[label]} for label in tokenizers},
        "texts": {
            text.name: {
                "bytes": text.bytes,
                "tokens": text.tokens,
                "bytes_per_token": {label: text.bytes_per_token(label) for label in tokenizers},
                "saved_percent": {label: text.saved_percent(label) for label in list(tokenizers)[1:]},
            }
            for text in measured
        },
    }


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
    from nutshell.data.shards import SPLITS, is_shard_folder, open_shards

    if not is_shard_folder(run / "data"):
        return {}
    shards = open_shards(run / "data")
    texts = {}
    for split in SPLITS:
        blocks = (shards.read(split, block) for block in range(shards.blocks(split)))
        texts[split] = list(_head(document for block in blocks for document in block))
    return texts


def documents(file: str) -> Iterator[str]:
    """The first `HEAD_BYTES` of a plain text file of any name to the byte, or of the documents in other files or a folder."""
    path = Path(file)
    if path.is_dir() or kind_of(path) in (".jsonl", ".ndjson", ".json", ".parquet") or path.suffix.lower() in COMPRESSED:
        from nutshell.data.text import read_documents

        yield from _head(read_documents(path))
        return
    with existing(file).open("rb") as content:
        head = content.read(HEAD_BYTES)
        yield utf8(head, file, final=not content.read(1))


def _head(documents: Iterable[str]) -> Iterator[str]:
    size = 0
    for document in documents:
        yield document
        size += len(document.encode())
        if size >= HEAD_BYTES:
            return
