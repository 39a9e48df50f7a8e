"""The texts of the schoolbook, in the folder `book`: plots, facts, questions, words, and what the model says of itself."""

import re
from functools import cache
from pathlib import Path

BOOK = Path(__file__).parent / "book"


@cache
def sections(file: str) -> dict[str, str]:
    """The parts of a .txt of the book by their headings, `== words ==`. What stands above the first is about the file."""
    parts = re.split(r"^== (.*) ==\n", (BOOK / f"{file}.txt").read_text(encoding="utf-8"), flags=re.MULTILINE)
    return dict(zip(parts[1::2], map(str.strip, parts[2::2]), strict=True))


@cache
def phrases(file: str, heading: str) -> tuple[str, ...]:
    """The phrases under a heading."""
    return entries(sections(file)[heading])


def names() -> tuple[str, ...]:
    """Of the people in stories, word problems and small talk."""
    return phrases("stories", "girls") + phrases("stories", "boys")


def entries(text: str) -> tuple[str, ...]:
    """What stands on lines of its own, or is parted by semicolons."""
    return tuple(entry.strip() for entry in re.split("[;\n]", text) if entry.strip())
