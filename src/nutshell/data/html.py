"""The text of an HTML page, as a reader sees it."""

from __future__ import annotations

import re
from html.parser import HTMLParser
from typing import Any


class _Page(HTMLParser):
    """Collects the visible text: no scripts, and a line break where a block begins or ends."""

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
        if tag == "body":  # in case the head was never closed
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
    """The visible text of an HTML page, each block on lines of its own."""
    parser = _Page()
    parser.feed(page)
    parser.close()
    text = re.sub(r" *\n *", "\n", "".join(parser.parts)) if "<pre" not in page.lower() else "".join(parser.parts)
    return re.sub(r"\n{3,}", "\n\n", text).strip()
