"""A page made of blocks, written as Markdown or as one HTML file that needs nothing else.

Texts of blocks may have `**bold**` and `` `code` ``; whatever else they hold, what a model wrote included, stays text.
"""

from __future__ import annotations

import base64
import hashlib
import re
from collections.abc import Sequence
from dataclasses import dataclass
from html import escape
from pathlib import Path

from nutshell.report.svg import WEB

CSS = Path(__file__).with_name("report.css")
START = 'for (const svg of document.querySelectorAll("svg.plot:not(.shares)")) zoomable(svg);'


@dataclass
class Heading:
    text: str
    level: int = 2


@dataclass
class Text:
    text: str


@dataclass
class Items:
    """A list."""

    items: list[str]


@dataclass
class Table:
    """The first column on the left, the others on the right; columns without an entry are left out."""

    head: Sequence[str]
    rows: Sequence[Sequence[str]]


@dataclass
class Figure:
    """A drawing: `svg` stands in the HTML, and Markdown names `file`."""

    svg: str
    caption: str
    file: str = ""


@dataclass
class Sample:
    """Text that is shown as it is, such as what a model wrote."""

    title: str
    text: str


Block = Heading | Text | Items | Table | Figure | Sample


def markdown(blocks: Sequence[Block]) -> str:
    return "\n\n".join(filter(None, map(_markdown, blocks))) + "\n"


def _markdown(block: Block) -> str:
    match block:
        case Heading(text, level):
            return f"{'#' * level} {text}"
        case Text(text):
            return text
        case Items(items):
            return "\n".join(f"- {item}" for item in items)
        case Table(head, rows):
            return markdown_table(head, rows)
        case Figure(_, caption, file):
            return f"![{caption}]({file})\n\n*{caption}*" if file else ""
        case Sample(title, text):
            ticks = "`" * max(3, 1 + max(map(len, re.findall("`+", text)), default=0))  # longer than any in the text
            return (f"*{title}*\n\n" if title else "") + f"{ticks}text\n{text}\n{ticks}"


def markdown_table(head: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """A table, its first column on the left and the others on the right; columns without an entry are left out."""
    shown = _columns(head, rows)
    lines = [[head[column] for column in shown], ["---" if column == 0 else "---:" for column in shown]]
    lines += [[row[column].replace("|", "\\|").replace("\n", " ") for column in shown] for row in rows]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def _columns(head: Sequence[str], rows: Sequence[Sequence[str]]) -> list[int]:
    return [column for column in range(len(head)) if any(row[column] for row in rows)]


def html(title: str, blocks: Sequence[Block]) -> str:
    """One file: style, script and drawings are inside, and its policy lets nothing else run or load."""
    style = "".join(path.read_text(encoding="utf-8") for path in (WEB / "plot.css", CSS))
    script = (WEB / "plot.js").read_text(encoding="utf-8") + START
    policy = f"default-src 'none'; style-src {_hash(style)}; script-src {_hash(script)}; img-src data:"
    headings = [
        (f"s{number}", block.text) for number, block in enumerate(blocks) if isinstance(block, Heading) and block.level == 2
    ]
    contents = "".join(f'<a href="#{name}">{escape(text)}</a>' for name, text in headings)
    body = "\n".join(_html(block, f"s{number}") for number, block in enumerate(blocks))
    return f"""<!doctype html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta http-equiv="Content-Security-Policy" content="{policy}">
<meta name="viewport" content="width=device-width, initial-scale=1">
<title>{escape(title)}</title>
<style>{style}</style>
</head>
<body>
<nav aria-label="Contents">{contents}</nav>
<main>
{body}
</main>
<script type="module">{script}</script>
</body>
</html>
"""


def _hash(text: str) -> str:
    return f"'sha256-{base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()}'"


def _html(block: Block, name: str) -> str:
    match block:
        case Heading(text, level):
            return f'<h{level} id="{name}">{_inline(text)}</h{level}>'
        case Text(text):
            return f"<p>{_inline(text)}</p>"
        case Items(items):
            return f"<ul>{''.join(f'<li>{_inline(item)}</li>' for item in items)}</ul>"
        case Table(head, rows):
            shown = _columns(head, rows)
            lines = ["".join(f'<th scope="col">{_inline(head[column])}</th>' for column in shown)]
            for row in rows:
                first, *others = (_inline(row[column]) for column in shown)
                lines.append(f'<th scope="row">{first}</th>' + "".join(f"<td>{cell}</td>" for cell in others))
            text = "".join(f"<tr>{line}</tr>" for line in lines)
            return f'<div class="table" tabindex="0" role="group" aria-label="Table"><table>{text}</table></div>'
        case Figure(svg, caption, _):
            return f"<figure>{svg}<figcaption>{_inline(caption)}</figcaption></figure>"
        case Sample(title, text):
            return f'<div class="sample"><p>{_inline(title)}</p><pre dir="auto">{escape(text)}</pre></div>'


def _inline(text: str) -> str:
    text = re.sub(r"`([^`]+)`", r"<code>\1</code>", escape(text))
    return re.sub(r"\*\*([^*]+)\*\*", r"<strong>\1</strong>", text)
