"""Turn anybody's files into shards to train on: text, web pages, tables, code and PDF, compressed or not.

Each file is read by its kind, and what is not wanted is left out and counted. shuffle.py then shuffles, drops exact duplicates
and holds out a validation part. Rows and plain text are read by text.py, as in training.
"""

from __future__ import annotations

import codecs
import io
import re
import shutil
import sys
import tempfile
from collections.abc import Callable, Iterator
from contextlib import suppress
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from typing import Any

from nutshell.data.find import Notes, find_files
from nutshell.data.html import html_text
from nutshell.data.near_duplicates import NearDuplicates
from nutshell.data.rows import ROW_KINDS, TABLES, Bad, kind_of_error, lines_of
from nutshell.data.shards import build_shards, read_manifest, refuse_filled
from nutshell.data.shuffle import Layout, shuffle_files
from nutshell.data.text import TEXT_KINDS, find_column, read_file, split_text
from nutshell.files import shown
from nutshell.text_files import encoding_of, kind_of, read_blocks, text_blocks

PAGES, PDF = (".html", ".htm", ".xhtml"), (".pdf",)
_CODE = (
    ".py .pyi .rs .c .h .cc .cpp .cxx .hpp .cu .cuh .java .kt .scala .go .js .jsx .ts .tsx .rb .php .cs .fs .swift .m .r .jl "
    ".lua .pl .hs .ml .ex .exs .erl .clj .lisp .el .zig .nim .d .dart .sh .sql .css .scss .toml .yaml .yml .ini .tex .rst .org"
)
CODE = tuple(_CODE.split())
KINDS = (*TEXT_KINDS, *PAGES, *TABLES, *PDF, *CODE)
WHOLE = 1 << 20
"""Characters of the longest file that stays one document; longer ones are cut at blank lines."""
LANGUAGE_CHARACTERS = 1000


@dataclass(frozen=True, kw_only=True)
class Choice:
    """What becomes a document."""

    column: str = ""
    """The column of rows and tables to read; empty: the first of the known names (text.py)."""
    encoding: str = ""
    """Of text, code, pages and tables; empty: UTF-8, or what the file itself says."""
    lines: bool = False
    """Each line of a .txt file is a document."""
    min_chars: int = 1
    max_chars: int = sys.maxsize
    near_duplicates: float = 0.0
    """Leave out texts at least this similar to an earlier one (0.5 to 1); 0 drops only equal ones."""
    languages: tuple[str, ...] = ()
    """Codes of ISO 639. Texts in other languages are left out, judged by their first 1,000 characters. Empty: all are kept."""
    skip_bad: bool = False
    """Leave out bad rows, and files from where they cannot be read, in place of stopping."""

    def __post_init__(self) -> None:
        if not 1 <= self.min_chars <= self.max_chars:
            raise ValueError(
                f"--min-chars {self.min_chars} --max-chars {self.max_chars}; accepted: 1 or more, and not less than it."
            )
        if unknown := sorted({*self.languages}.difference(known_languages())) if self.languages else []:
            raise ValueError(f"--language {unknown[0]} is unknown; accepted: {', '.join(known_languages())}.")
        try:
            "a".encode(self.encoding or "utf-8")  # base64 is a codec too, but of no text
        except LookupError:
            raise ValueError(f"--encoding {self.encoding} is unknown; accepted: utf-8, utf-16, latin-1, cp1252 ...") from None


def import_files(
    paths: list[str], folder: Path, choice: Choice, *, note: Callable[[str], object] = lambda line: None, **options: Any
) -> dict[str, Any]:
    """Write the documents of files and folders (- is standard input) as shards into `folder`; returns what was taken and left
    out, as counts.

    `options` are those of `Layout`. An interrupted import of the same files resumes where it stopped, unless it looks for near
    duplicates, whose memory is lost. ValueError names a file that cannot be read; nothing is written then.
    """
    layout = Layout(**options)
    refuse_filled(folder)
    with tempfile.TemporaryDirectory() as temporary:
        named = [str(_from_stdin(Path(temporary))) if path == "-" else path for path in paths]
        fits = partial(_has_column, column=choice.column)
        found = find_files(named, KINDS, fits, choice.encoding)
        files = [[shown(file), file.stat().st_size, file.stat().st_mtime_ns] for file in (*found.val, *found.train)]
        seen = NearDuplicates(choice.near_duplicates) if choice.near_duplicates else None
        notes, read = found.notes, partial(read_chosen, choice=choice, seen=seen)
        shuffle = partial(shuffle_files, found.train, found.val, layout=layout, notes=notes, read=read, alone=bool(seen))
        try:
            build_shards(shuffle, folder, {"files": files, "choice": asdict(choice)}, layout, resume=not seen)
        except ValueError as error:
            reasons = {**notes["left out"], **notes["bad"]}
            if notes["taken"] or not reasons:
                raise
            first = "".join(f"; {bad}" for bad in [*notes["first bad"]][:1])
            raise ValueError(f"no document is left of these files: {_counts(reasons)}{first}") from error
    manifest = read_manifest(folder)
    notes["left out"]["equal documents"] = manifest["duplicates_dropped"]
    facts = {
        "files": len(files),
        "taken": dict(notes["taken"]),
        "documents": manifest["documents"],
        "characters": manifest["characters"],
        "left_out": dict(+notes["left out"]),
        "bad": dict(notes["bad"]),
        "first_bad": next(iter(notes["first bad"]), ""),
        "files_left_out": dict(+found.left_out),
    }
    note(_summary(facts, sorted(notes["column"])))
    return facts


def _has_column(row: Any, column: str) -> bool:
    return isinstance(row, dict) and (column or find_column(row)) in row


def _summary(facts: dict[str, Any], columns: list[str]) -> str:
    documents, characters = facts["documents"], facts["characters"]
    lines = [f"took      {_counts(facts['taken'])} documents of {facts['files']:,} files"]
    lines[0] += f", column {', '.join(columns)}" if columns else ""
    lines.append(f"left out  {_counts(facts['left_out'])}; of files: {_counts(facts['files_left_out'])}")
    lines += [f"bad       {_counts(facts['bad'])}; the first: {facts['first_bad']}"] if facts["bad"] else []
    lines += [f"{split:9} {documents[split]:,} documents, {characters[split]:,} characters" for split in documents]
    return "\n".join(lines)


def _counts(counter: dict[str, int]) -> str:
    return ", ".join(f"{count:,} {shown(name)}" for name, count in counter.items()) or "nothing"


def _from_stdin(folder: Path) -> Path:
    """Standard input as a file: JSON lines where it begins with {, else text."""
    first = sys.stdin.buffer.read(1 << 16)
    file = folder / ("stdin.jsonl" if first.lstrip(b"\xef\xbb\xbf \t\r\n").startswith(b"{") else "stdin.txt")
    with file.open("wb") as out:
        out.write(first)
        shutil.copyfileobj(sys.stdin.buffer, out)
    return file


def read_chosen(file: Path, notes: Notes, *, choice: Choice, seen: NearDuplicates | None) -> Iterator[str]:
    """The documents of a file that are wanted; the others are counted in `notes`. With skip_bad, a damaged file gives what comes
    before the damage."""

    kind = kind_of(file)

    def bad(place: str, error: ValueError | OSError, unreadable: str = "") -> None:
        if not choice.skip_bad:
            raise ValueError(f"{error}. Mend it, or leave out what is bad: --skip-bad.") from error
        notes["bad"][unreadable or kind_of_error(place, error)] += 1
        if not notes["first bad"]:
            notes["first bad"][str(error)] = 1

    try:
        for text in read_any(file, choice, notes, bad):
            if reason := _why_not(text, choice, seen):
                notes["left out"][reason] += 1
            else:
                notes["taken"][kind] += 1
                yield text
    except (ValueError, OSError) as error:
        if not choice.skip_bad:
            raise
        bad(shown(file), error, f"unreadable {kind} files")


def _why_not(text: str, choice: Choice, seen: NearDuplicates | None) -> str:
    if not text or text.isspace():
        return "empty"
    if len(text) < choice.min_chars:
        return "too short"
    if len(text) > choice.max_chars:
        return "too long"
    if choice.languages and (language := _langid().classify(text[:LANGUAGE_CHARACTERS])[0]) not in choice.languages:
        return f"in language {language}"
    return "near duplicates" if seen and not seen.is_new(text) else ""


def known_languages() -> list[str]:
    """Codes that `Choice.languages` may have. ValueError if py3langid is not installed."""
    return sorted({language for language, _ in _langid().rank("")})


def _langid() -> Any:
    try:
        import py3langid
    except ImportError:
        raise ValueError("--language needs py3langid. Install it: pip install 'nutshell-lm[language]'") from None
    return py3langid


# ---- the kinds -----------------------------------------------------------------------------------------------------


def read_any(file: Path, choice: Choice, notes: Notes, bad: Bad) -> Iterator[str]:
    """The documents of one file of any of `KINDS`; bad rows go to `bad`."""
    kind = kind_of(file)
    if kind in PDF:
        return iter([_pdf_text(file)])
    encoding = codecs.lookup(choice.encoding).name if choice.encoding else _encoding(file, kind)
    if kind in ROW_KINDS:
        return read_file(file, notes, choice.column, bad, encoding)
    blocks = text_blocks(file, encoding)
    if kind in PAGES:
        return iter([html_text("".join(blocks))])
    if kind == ".txt" and choice.lines:
        return (line.strip() for line in lines_of(blocks))
    return split_text(blocks, WHOLE)


_CHARSET = re.compile(rb"""<meta[^>]{0,200}charset\s*=\s*["']?([\w.:-]+)""", re.IGNORECASE)


def _encoding(file: Path, kind: str) -> str:
    """What a byte order mark says, or a web page about itself; else UTF-8."""
    said = encoding_of(file)
    if said == "utf-8" and kind in PAGES and (charset := _CHARSET.search(next(read_blocks(file), b"")[:4096])):
        with suppress(LookupError, UnicodeError):
            if "<".encode(charset[1].decode()) == b"<":  # what was found in ASCII is not UTF-16, whatever it says
                return charset[1].decode()
    return said


def _pdf_text(file: Path) -> str:
    try:
        import pypdf
    except ImportError:
        raise ValueError(f"{shown(file)}: reading .pdf needs pypdf. Install it: pip install 'nutshell-lm[pdf]'") from None
    try:
        pages = pypdf.PdfReader(io.BytesIO(b"".join(read_blocks(file)))).pages
        return "\n\n".join(page.extract_text() for page in pages)
    except Exception as error:  # a broken PDF breaks pypdf in many ways
        raise ValueError(f"{shown(file)} cannot be read as PDF ({type(error).__name__}: {error})") from error
