"""Anybody's files into shards to train on: text, pages, tables, code, PDF, packed or not.

Each file is read by its kind, what does not fit is left out and counted, and `shards.write_shards` shuffles, drops exact
duplicates and divides. Rows and plain text are read by text.py, as in training.
"""

from __future__ import annotations

import codecs
import csv
import io
import re
import shutil
import sys
import tempfile
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from dataclasses import asdict, dataclass
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

from nutshell.data.near_duplicates import NearDuplicates
from nutshell.data.shards import read_manifest, write_shards
from nutshell.data.shuffle import count_buckets
from nutshell.data.text import TEXT_KINDS, find_column, find_files, read_file, row_documents, split_text, text_blocks
from nutshell.files import kind_of, read_blocks, shown

PAGES, TABLES, PDF = (".html", ".htm", ".xhtml"), (".csv", ".tsv"), (".pdf",)
_CODE = (
    ".py .pyi .rs .c .h .cc .cpp .cxx .hpp .cu .cuh .java .kt .scala .go .js .jsx .ts .tsx .rb .php .cs .fs .swift .m .r .jl "
    ".lua .pl .hs .ml .ex .exs .erl .clj .lisp .el .zig .nim .d .dart .sh .sql .css .scss .toml .yaml .yml .ini .tex .rst .org"
)
CODE = tuple(_CODE.split())
KINDS = (*TEXT_KINDS, *PAGES, *TABLES, *PDF, *CODE)
WHOLE = 1 << 20
"""Characters of the longest text file that stays one document; longer ones are cut at blank lines."""


@dataclass(frozen=True, kw_only=True)
class Choice:
    """What becomes a document."""

    column: str = ""
    """Of rows and tables; empty: the first known name of a column of text."""
    encoding: str = ""
    """Of text, code, pages and tables; empty: UTF-8, or UTF-16 where the file says so."""
    lines: bool = False
    """Each line of a .txt file is a document."""
    min_chars: int = 1
    max_chars: int = sys.maxsize
    near_duplicates: float = 0.0
    """Leave out texts that are so like an earlier one; 0 looks for equal ones only."""
    skip_bad: bool = False
    """Leave out what cannot be read (a file from there on) in place of stopping."""

    def __post_init__(self) -> None:
        if not 1 <= self.min_chars <= self.max_chars:
            raise ValueError(
                f"--min-chars {self.min_chars} --max-chars {self.max_chars}; accepted: 1 or more, and not less than it."
            )
        try:
            codecs.lookup(self.encoding or "utf-8")
        except LookupError:
            raise ValueError(f"--encoding {self.encoding} is unknown; accepted: utf-8, utf-16, latin-1, cp1252 ...") from None


def import_files(
    paths: list[str], folder: Path, choice: Choice, *, note: Callable[[str], object] = lambda line: None, **options: Any
) -> dict[str, Any]:
    """Write the documents of files and folders (or - for standard input) as shards into `folder`; what was taken and left.

    `options` are those of `Layout`. ValueError names the file that cannot be read and what is accepted; nothing is written then.
    """
    seen = NearDuplicates(choice.near_duplicates) if choice.near_duplicates else None
    left_out: Counter[str] = Counter()
    with tempfile.TemporaryDirectory() as temporary:
        named = [str(_from_stdin(Path(temporary))) if path == "-" else path for path in paths]
        found = find_files(named, KINDS, lambda row: isinstance(row, dict) and (choice.column or find_column(row)) in row)
        taken: Counter[str] = Counter()

        def documents(files: list[Path]) -> Iterator[str]:
            for file in files:
                for text in _readable(file, choice, found.columns, left_out):
                    if not choice.min_chars <= len(text) <= choice.max_chars:
                        left_out["too short" if len(text) < choice.min_chars else "too long"] += 1
                    elif seen and not seen.is_new(text):
                        left_out["near duplicates"] += 1
                    else:
                        taken[kind_of(file)] += 1
                        yield text

        source = {"files": [shown(path) for path in paths], "choice": asdict(choice)}
        train, val, buckets = documents(found.train), documents(found.val), count_buckets(found.train)
        write_shards(train, folder, held_out=val, buckets=buckets, source=source, **options)
    manifest = read_manifest(folder)
    left_out["equal documents"] = manifest["duplicates_dropped"]
    facts = {"files": len(found.train) + len(found.val), "taken": dict(taken), "documents": manifest["documents"]}
    facts |= {"characters": manifest["characters"], "left_out": dict(+left_out), "files_left_out": dict(+found.left_out)}
    note(_summary(facts, found.columns))
    return facts


def _summary(facts: dict[str, Any], columns: set[str]) -> str:
    def counts(counter: dict[str, int]) -> str:
        return ", ".join(f"{count:,} {shown(name)}" for name, count in counter.items()) or "nothing"

    documents, characters = facts["documents"], facts["characters"]
    lines = [f"took      {counts(facts['taken'])} documents of {facts['files']:,} files"]
    lines[0] += f", column {', '.join(sorted(columns))}" if columns else ""
    lines.append(f"left out  {counts(facts['left_out'])}; of files: {counts(facts['files_left_out'])}")
    lines += [f"{split:9} {documents[split]:,} documents, {characters[split]:,} characters" for split in documents]
    return "\n".join(lines)


def _from_stdin(folder: Path) -> Path:
    """Standard input as a file: JSON lines where it begins with {, else text."""
    first = sys.stdin.buffer.read(1 << 16)
    file = folder / ("stdin.jsonl" if first.lstrip(b"\xef\xbb\xbf \t\r\n").startswith(b"{") else "stdin.txt")
    with file.open("wb") as out:
        out.write(first)
        shutil.copyfileobj(sys.stdin.buffer, out)
    return file


def _readable(file: Path, choice: Choice, columns: set[str], left_out: Counter[str]) -> Iterator[str]:
    """Documents of a file that are more than white space; with skip_bad, up to what cannot be read."""
    try:
        yield from (text for text in read_any(file, choice, columns) if text and not text.isspace())
    except ValueError:
        if not choice.skip_bad:
            raise
        left_out[f"unreadable {kind_of(file)} files"] += 1


# ---- the kinds -----------------------------------------------------------------------------------------------------


def read_any(file: Path, choice: Choice, columns: set[str]) -> Iterator[str]:
    """The documents of one file of any of `KINDS`."""
    kind = kind_of(file)
    if kind in PDF:
        return iter([_pdf_text(file)])
    if kind in TEXT_KINDS and kind not in (".txt", ".md"):
        return read_file(file, columns, choice.column)
    blocks = text_blocks(file, codecs.lookup(choice.encoding).name if choice.encoding else _encoding(file, kind))
    if kind in TABLES:
        return row_documents(_table_rows(file, _lines(blocks), kind), columns, choice.column)
    if kind in PAGES:
        return iter([html_text("".join(blocks))])
    if kind == ".txt" and choice.lines:
        return (line.strip() for line in _lines(blocks))
    return split_text(blocks, WHOLE)


_MARKS = {b"\xff\xfe\0\0": "utf-32", b"\0\0\xfe\xff": "utf-32", b"\xff\xfe": "utf-16", b"\xfe\xff": "utf-16"}
_CHARSET = re.compile(rb"""<meta[^>]{0,200}charset\s*=\s*["']?([\w.:-]+)""", re.IGNORECASE)


def _encoding(file: Path, kind: str) -> str:
    """What a byte order mark says, or a page of itself; else UTF-8."""
    start = next(read_blocks(file), b"")[:4096]
    if said := next((name for mark, name in _MARKS.items() if start.startswith(mark)), ""):
        return said
    if kind in PAGES and (charset := _CHARSET.search(start)):
        try:
            return codecs.lookup(charset[1].decode()).name
        except LookupError:
            pass
    return "utf-8"


def _lines(blocks: Iterable[str]) -> Iterator[str]:
    rest = ""
    for block in blocks:
        *lines, rest = (rest + block).split("\n")
        yield from (f"{line}\n" for line in lines)
    if rest:
        yield rest


def _table_rows(file: Path, lines: Iterator[str], kind: str) -> Iterator[tuple[str, dict[str, str]]]:
    csv.field_size_limit(1 << 30)  # the default refuses cells of more than 131,072 characters
    rows = csv.DictReader(lines, delimiter="\t" if kind == ".tsv" else ",")
    try:
        for row in rows:
            yield f"{shown(file)}, line {rows.line_num}", row
    except csv.Error as error:
        raise ValueError(f"{shown(file)}, line {rows.line_num}: no table ({error})") from None


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


class _Page(HTMLParser):
    """Collects what a reader of the page sees: no scripts, a line break where a block begins or ends."""

    HIDDEN = ("script", "style", "noscript", "template", "svg", "head")
    PARAGRAPHS = ("p", "h1", "h2", "h3", "h4", "pre", "blockquote", "table")
    LINES = re.compile("address|article|aside|br|d[dlt]|div|fig.*|foot.*|form|h[56r]|header|li|main|nav|ol|section|tr|ul")

    def __init__(self) -> None:
        super().__init__(convert_charrefs=True)
        self.parts: list[str] = []
        self.hidden: list[str] = []
        self.preformatted = 0

    def handle_starttag(self, tag: str, attrs: Any) -> None:
        if tag in self.HIDDEN:
            self.hidden.append(tag)
        if tag == "body":  # of a head that was never closed
            self.hidden.clear()
        self.preformatted += tag == "pre"
        self._break(tag)

    def handle_endtag(self, tag: str) -> None:
        if tag in self.hidden:
            del self.hidden[self.hidden.index(tag) :]
        self.preformatted -= tag == "pre" and self.preformatted > 0
        self._break(tag)

    def _break(self, tag: str) -> None:
        if tag in self.PARAGRAPHS:
            self.parts.append("\n\n")
        elif self.LINES.fullmatch(tag):
            self.parts.append("\n")
        elif tag in ("td", "th"):
            self.parts.append(" ")

    def handle_data(self, data: str) -> None:
        if not self.hidden:
            self.parts.append(data if self.preformatted else re.sub(r"\s+", " ", data))


def html_text(page: str) -> str:
    """The text of an HTML page, blocks on lines of their own."""
    parser = _Page()
    parser.feed(page)
    parser.close()
    text = re.sub(r" *\n *", "\n", "".join(parser.parts)) if "<pre" not in page.lower() else "".join(parser.parts)
    return re.sub(r"\n{3,}", "\n\n", text).strip()
