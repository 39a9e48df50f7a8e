"""The one reader of documents: text, Markdown, JSON lines, JSON and Parquet files, compressed or not, and folders of them.

Everything streams, so a file larger than memory is fine. Errors name the file and the line, byte or row.
"""

from __future__ import annotations

import itertools
import re
from collections import Counter, defaultdict
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pyarrow

from nutshell.data.rows import ROW_KINDS, TABLES, Bad, file_rows, open_parquet
from nutshell.files import COMPRESSED, files_below, json_kind, kind_of, shown, text_blocks

Notes = defaultdict[str, Counter[str]]
"""What a reader counts on its way: notes["column"] the columns that text was found in where that is not "text"."""
TEXT_KINDS = (".txt", ".md", ".jsonl", ".ndjson", ".json", ".parquet")
COLUMNS = ("text", "content", "raw_content", "body", "document", "article", "passage", "page_content", "story", "markdown")
"""Where no column is named, the first of these that a file has."""
SHORTEST_CUT, LONGEST_CUT = 16_384, 65_536
"""A text file is cut into documents of at most so many characters, at blank lines where it has them: the more text, the longer.
Even the shortest fill a context of 2,048 tokens; a small file still becomes several documents, so that one can be held out."""

_BOUNDARIES = ("\n\n", "\n", ". ", "。", " ")
_SPLITS = {"train": "train", "training": "train", "test": "test", "testing": "test", "validation": "val"}
_SPLITS |= {"valid": "val", "val": "val", "dev": "val"}
_ABOUT = re.compile(
    r"(readme|licen[cs]e|copying|changelog|contributing|code_of_conduct|citation|requirements|cmakelists|robots)([-_. ].*)?"
)


@dataclass(kw_only=True)
class Found:
    """The files of some paths: those to train on, those that their folder names for validation, and what was left out."""

    train: list[Path] = field(default_factory=list)
    val: list[Path] = field(default_factory=list)
    left_out: Counter[str] = field(default_factory=Counter)
    notes: Notes = field(default_factory=lambda: defaultdict(Counter))
    """Of the documents, as far as reading has come."""

    def documents(self) -> Iterator[str]:
        """Documents of the files to train on. An input without any raises ValueError at its end."""
        return self._read(self.train)

    def val_documents(self) -> Iterator[str]:
        return self._read(self.val)

    def _read(self, files: list[Path]) -> Iterator[str]:
        empty = True
        for file in files:
            for document in read_file(file, self.notes):
                empty = False
                yield document
        if empty:
            raise ValueError(f"no text in {names_of(files)}: every document is empty")

    def summary(self) -> str:
        """One line: what was taken and what was left out, by kind and count."""
        parts = [f"{len(self.train)} file{'s' * (len(self.train) != 1)} ({_counts(Counter(map(_suffix, self.train)))})"]
        parts += [f"column {', '.join(sorted(self.notes['column']))}"] if self.notes["column"] else []
        parts += [f"validation: {_counts(Counter(map(_suffix, self.val)))}"] if self.val else []
        parts += [f"left out: {_counts(self.left_out)}"] if self.left_out else []
        return "read " + "; ".join(parts)


def read_documents(paths: Path | str | Iterable[Path | str]) -> Iterator[str]:
    """Documents to train on from files and folders (recursive, sorted by path, see `find_files`).

    A text file becomes many documents of 16,384 to 65,536 characters; a row of a .jsonl, .json or .parquet file is one.
    Documents of nothing but white space are left out. Missing paths and unknown suffixes raise ValueError or
    FileNotFoundError at once, broken content when the iteration reaches it, and an input without any document at its end.
    """
    return find_text(paths).documents()


def find_text(paths: Path | str | Iterable[Path | str]) -> Found:
    """The files of text that `paths` name; see `find_files`."""
    return find_files(paths, TEXT_KINDS, lambda row: isinstance(row, dict) and find_column(row) is not None)


def find_files(
    paths: Path | str | Iterable[Path | str], kinds: tuple[str, ...], fits: Callable[[Any], bool], encoding: str = ""
) -> Found:
    """The files that `paths` name, folders searched recursively, links followed. The encoding is that of tables.

    A file that is named itself is taken whatever it is called. In folders these are left out and counted: other kinds of
    files, those about the data (README.md, requirements.txt), run folders, test files, files of rows whose first row does not
    fit. Where a folder has files for validation (dev.jsonl, validation/), those are `val`. Hidden files are passed over.
    Raises FileNotFoundError for a path that does not exist, ValueError for a file of another kind, and for a folder without
    a fitting file.
    """
    found = Found()
    accepted = f"{', '.join(kinds[:15])}{' and other code' * (len(kinds) > 15)} (also {', '.join(COMPRESSED)})"
    several = [paths] if isinstance(paths, (str, Path)) else list(paths)
    for path in map(Path, several):
        if path.is_dir():
            _add_folder(found, path, kinds, lambda file: _first_row_fits(file, fits, encoding), accepted)
        elif not path.exists():
            raise FileNotFoundError(f"{shown(path)} does not exist: give a file ({accepted}) or a folder of such files")
        elif kind_of(path) not in kinds:
            kind = f"suffix {path.suffix!r}" if path.suffix else "no suffix"
            raise ValueError(f"{shown(path)} has {kind}; accepted are {accepted}, and folders of those")
        else:
            found.train.append(path)
    if not several:
        raise ValueError(f"no input path was given; accepted are {accepted}, and folders of those")
    return found


def _add_folder(found: Found, folder: Path, kinds: tuple[str, ...], fits: Callable[[Path], bool], accepted: str) -> None:
    left_out: Counter[str] = Counter()
    taken: list[Path] = []
    for file in sorted(files_below(folder, left_out)):
        if kind_of(file) not in kinds:
            left_out[_suffix(file) or "without a suffix"] += 1
        elif kind_of(file) in (".txt", ".md") and _ABOUT.fullmatch(file.name.lower()):
            left_out[file.name] += 1
        else:
            taken.append(file)
    fitting = [file for file in taken if fits(file)] or taken  # of which reading says what is wrong with them
    left_out.update(f"{_suffix(file)} with other rows" for file in set(taken).difference(fitting))
    if not fitting:
        raise ValueError(f"no data file in the folder {shown(folder)} (found: {_counts(left_out) or 0}); accepted are {accepted}")
    splits = _splits([file.relative_to(folder) for file in fitting])
    left_out["test"] += splits.count("test")
    found.train += [file for file, split in zip(fitting, splits, strict=True) if split == "train"]
    found.val += [file for file, split in zip(fitting, splits, strict=True) if split == "val"]
    found.left_out += left_out


def _first_row_fits(file: Path, fits: Callable[[Any], bool], encoding: str) -> bool:
    """Whether a file of rows is one of those looked for. Of a broken one only reading says what is wrong."""
    try:
        if kind_of(file) == ".parquet":
            with open_parquet(file) as parquet:
                return fits(dict.fromkeys(parquet.schema_arrow.names))
        if kind_of(file) in ROW_KINDS:
            first = [fits(row) for _, row in itertools.islice(file_rows(file, None, encoding), 1)]
            return first[0] if first else kind_of(file) not in TABLES
    except (ValueError, OSError):
        return kind_of(file) not in (".json", *TABLES)
    return True


def _splits(files: list[Path]) -> list[str]:
    """train, val or test for each file, as its folders or its name say; all train where none would remain to train on.

    A word inside a name (wiki.test.txt) counts only beside another file for training: else it may be any text.
    """
    whole, words = [], []
    for file in files:
        folders = [_SPLITS[part.lower()] for part in file.parts[:-1] if part.lower() in _SPLITS]
        stem = file.name.lower().split(".")[0]
        named = re.fullmatch(r"([a-z]+)([-_ ]?\d.*)?", stem)
        whole.append(folders[0] if folders else _SPLITS.get(named[1]) if named else None)
        words.append(next((_SPLITS[word] for word in re.findall("[a-z]+", file.name.lower()) if word in _SPLITS), None))
    named_train = "train" in (*whole, *words)
    splits = [exact or (word if named_train else None) or "train" for exact, word in zip(whole, words, strict=True)]
    return splits if "train" in splits else ["train"] * len(files)


def _suffix(file: Path) -> str:
    packed = file.suffix.lower() if file.suffix.lower() in COMPRESSED else ""
    return kind_of(file) + packed


def _counts(counter: Counter[str]) -> str:
    return ", ".join(f"{count} {shown(kind)}" for kind, count in counter.most_common(12) if count)


# ---- documents of one file -----------------------------------------------------------------------------------------


def names_of(files: list[Path]) -> str:
    return ", ".join(map(shown, files[:3])) + (f" and {len(files) - 3} more" if len(files) > 3 else "")


def read_file(
    file: Path, notes: Notes | None = None, column: str = "", bad: Bad | None = None, encoding: str = ""
) -> Iterator[str]:
    """The documents of one file that are more than white space, of `column` where that is named and the file has columns.
    A bad row goes to `bad`; without it, and for a file that cannot be read, ValueError."""
    kind = kind_of(file)
    if kind == ".parquet":
        documents: Iterator[str] = (text for part in text_columns(file, notes, column) for text in part.to_pylist())
    elif kind in (".txt", ".md"):
        limit = min(LONGEST_CUT, max(SHORTEST_CUT, file.stat().st_size // 128))
        documents = split_text(text_blocks(file), limit)
    else:
        documents = _row_documents(file_rows(file, bad, encoding), notes, column, bad)
    return (document for document in documents if document and not document.isspace())


def split_text(blocks: Iterable[str], limit: int = SHORTEST_CUT) -> Iterator[str]:
    """Cuts running text into documents of at most `limit` characters.

    Cuts at the last blank line that fits, else at the last line end, sentence or space, else anywhere. Only the line
    ends and the spaces at a cut are lost.
    """
    text = ""
    for block in blocks:
        text += block
        start = 0
        while len(text) - start > limit:
            cut = _cut(text, start, limit)
            yield text[start:cut].strip("\n ")
            start = cut
        text = text[start:]
    yield text.strip("\n ")


def _cut(text: str, start: int, limit: int) -> int:
    for boundary in _BOUNDARIES:
        # A boundary in the first quarter would leave crumbs; a weaker one further on is better.
        found = text.rfind(boundary, start + limit // 4, start + limit)
        if found >= 0:
            return found + len(boundary)
    return start + limit


def find_column(names: Iterable[str]) -> str | None:
    """The column of text among `names`: the first of `COLUMNS`, in any case of letters."""
    known = {name.lower(): name for name in names}
    return next((known[name] for name in COLUMNS if name in known), None)


def _column_of(where: str, names: list[str], notes: Notes | None = None, column: str = "") -> str:
    there = ", ".join(map(str, names[:20])) or "none"
    if column and column not in names:
        raise ValueError(f"{where}: no column {column!r}; found {there:.300}")
    found = column or find_column(names)
    if found is None:
        hint = "; these look like conversations, which are read for fine-tuning"
        hint = hint if {"messages", "conversations"} & {*names} else f"; accepted are {', '.join(COLUMNS)}"
        raise ValueError(f"{where}: no column 'text'; found {there:.300}{hint}")
    if found != "text" and notes is not None:
        notes["column"][found] += 1
    return found


def _row_documents(rows: Iterable[tuple[str, Any]], notes: Notes | None, asked: str, bad: Bad | None) -> Iterator[str]:
    """The text of rows, which come with their places for messages."""
    column = asked or "text"
    for where, row in rows:
        try:
            if not isinstance(row, dict):
                raise ValueError(f"{where}: {json_kind(row)} where an object with the column {column!r} is expected")
            if column not in row:
                column = _column_of(where, list(row), notes, asked)
            text = row[column]
            if text is not None and not isinstance(text, str):
                raise ValueError(f"{where}: column {column!r} holds {json_kind(text)}, not a string")
        except ValueError as error:
            if bad is None:
                raise
            bad(where, error)
        else:
            yield text or ""


def text_columns(file: Path, notes: Notes | None = None, column: str = "") -> Iterator[pyarrow.LargeStringArray]:
    """The text of a Parquet file, some rows at a time, null as "": columns of strings or of UTF-8 bytes, dictionaries too."""
    with open_parquet(file) as parquet:
        name = text_column(file, parquet.schema_arrow, notes, column)
        row = 0
        for batch in parquet.iter_batches(batch_size=1024, columns=[name]):
            yield as_text(batch.column(0), f"{shown(file)}, row", row)
            row += len(batch)


def text_column(file: Path, schema: pyarrow.Schema, notes: Notes | None = None, asked: str = "") -> str:
    """The name of a Parquet file's column of text. ValueError where it has none, or one that holds something else."""
    column = _column_of(shown(file), schema.names, notes, asked)
    if schema.names.count(column) > 1:
        raise ValueError(f"{shown(file)} has several columns {column!r}; one is needed")
    kind = schema.field(column).type
    value = kind.value_type if pyarrow.types.is_dictionary(kind) else kind
    if str(value) not in ("string", "large_string", "string_view", "binary", "large_binary", "binary_view"):
        raise ValueError(f"{shown(file)}: column {column!r} is of type {kind}; a column of strings is needed")
    return column


def as_text(array: pyarrow.Array, where: str, before: int) -> pyarrow.LargeStringArray:
    """A column of text as checked UTF-8 strings. ValueError names a row that is not, counted from 1, `before` rows on."""
    if isinstance(array, pyarrow.DictionaryArray):
        array = array.dictionary_decode()
    if str(array.type) in ("string_view", "binary_view"):
        array = array.cast(pyarrow.large_string() if str(array.type) == "string_view" else pyarrow.large_binary())
    array = array.cast(pyarrow.large_binary())  # from there, and only from there, the cast to strings checks them
    try:
        return array.cast(pyarrow.large_string()).fill_null("")
    except pyarrow.ArrowInvalid:
        for number, value in enumerate(array.to_pylist(), before + 1):
            try:
                (value or b"").decode("utf-8")
            except UnicodeDecodeError as error:
                raise ValueError(f"{where} {number} is not UTF-8: byte 0x{value[error.start]:02x} at {error.start}") from None
        raise
