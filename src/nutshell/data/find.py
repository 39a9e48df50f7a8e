"""Which files to read: folders are searched, and their files divided into those for training and for validation."""

from __future__ import annotations

import itertools
import re
from collections import Counter, defaultdict
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from nutshell.data.rows import ROW_KINDS, TABLES, file_rows, open_parquet
from nutshell.files import files_below, shown
from nutshell.text_files import COMPRESSED, kind_of

Notes = defaultdict[str, Counter[str]]
"""Counts that a reader keeps: in notes["column"] the columns that text was found in, where that is not "text"."""

_SPLITS = {"train": "train", "training": "train", "test": "test", "testing": "test", "validation": "val"}
_SPLITS |= {"valid": "val", "val": "val", "dev": "val"}
_ABOUT = re.compile(
    r"(readme|licen[cs]e|copying|changelog|contributing|code_of_conduct|citation|requirements|cmakelists|robots)([-_. ].*)?"
)
"""Names of files that describe the data."""


@dataclass(kw_only=True)
class Files:
    """The files to train on, those that their names or folders say are for validation, and what was left out."""

    train: list[Path] = field(default_factory=list)
    val: list[Path] = field(default_factory=list)
    left_out: Counter[str] = field(default_factory=Counter)
    notes: Notes = field(default_factory=lambda: defaultdict(Counter))
    """Filled in by those who read the files."""

    def summary(self) -> str:
        """One line: what was taken and what was left out, by kind and count."""
        parts = [f"{len(self.train)} file{'s' * (len(self.train) != 1)} ({_counts(Counter(map(_suffix, self.train)))})"]
        parts += [f"column {', '.join(sorted(self.notes['column']))}"] if self.notes["column"] else []
        parts += [f"validation: {_counts(Counter(map(_suffix, self.val)))}"] if self.val else []
        parts += [f"left out: {_counts(self.left_out)}"] if self.left_out else []
        return "read " + "; ".join(parts)


def find_files(
    paths: Path | str | Iterable[Path | str], kinds: tuple[str, ...], fits: Callable[[Any], bool], encoding: str = ""
) -> Files:
    """The files that `paths` name: files, and folders, which are searched recursively; links are followed.

    A file that is named itself is taken whatever it is called. In folders these are left out and counted: files of other kinds,
    files that describe the data (README.md, requirements.txt), run folders, test files, and files of rows whose first row does
    not fit. Files for validation (dev.jsonl, validation/) become `val`. Hidden files are skipped. `encoding` is for tables.
    FileNotFoundError for a path that does not exist; ValueError for a file of another kind, and for a folder without a file
    that fits.
    """
    found = Files()
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


def _add_folder(found: Files, folder: Path, kinds: tuple[str, ...], fits: Callable[[Path], bool], accepted: str) -> None:
    left_out: Counter[str] = Counter()
    taken: list[Path] = []
    for file in sorted(files_below(folder, left_out)):
        if kind_of(file) not in kinds:
            left_out[_suffix(file) or "without a suffix"] += 1
        elif kind_of(file) in (".txt", ".md") and _ABOUT.fullmatch(file.name.lower()):
            left_out[file.name] += 1
        else:
            taken.append(file)
    fitting = [file for file in taken if fits(file)] or taken  # reading them will say what is wrong
    left_out.update(f"{_suffix(file)} with other rows" for file in set(taken).difference(fitting))
    if not fitting:
        raise ValueError(f"no data file in the folder {shown(folder)} (found: {_counts(left_out) or 0}); accepted are {accepted}")
    splits = _splits([file.relative_to(folder) for file in fitting])
    left_out["test"] += splits.count("test")
    found.train += [file for file, split in zip(fitting, splits, strict=True) if split == "train"]
    found.val += [file for file, split in zip(fitting, splits, strict=True) if split == "val"]
    found.left_out += left_out


def _first_row_fits(file: Path, fits: Callable[[Any], bool], encoding: str) -> bool:
    """Whether the first row of a file is of the kind looked for. A broken file may pass: reading it will say what is wrong."""
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
    """train, val or test for each file, by its folders or its name; all are train if none would be left to train on.

    A word inside a name (wiki.test.txt) counts only if another file is named for training; else it could mean anything.
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


def names_of(files: list[Path]) -> str:
    return ", ".join(map(shown, files[:3])) + (f" and {len(files) - 3} more" if len(files) > 3 else "")
