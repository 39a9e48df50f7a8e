"""The tokenizer's algorithm, slow and plain: the Rust core must give the same on every input.

Read this to understand byte-level BPE; nothing in the package runs on it. Following minbpe, a text is cut into pieces,
a piece is a list of byte values, and training merges the most frequent pair of neighbours again and again:

>>> merges = train(["low low lower"], merge_count=3)
>>> merges  # l+o, lo+w, then a space and that; bytes are the ids 0 to 255, the first merge makes 256
[(108, 111), (256, 119), (32, 257)]
>>> encode("lower low", merges)
[257, 101, 114, 258]
>>> decode([257, 101, 114, 258], merges)
'lower low'
"""

from __future__ import annotations

import unicodedata
from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from itertools import pairwise

Split = Callable[[str], list[str]]


def split_nanochat(text: str) -> list[str]:
    r"""Cut a text as the pattern `nanochat` does, alternative by alternative:

        '(?i:[sdmt]|ll|ve|re)          a contraction's end
        [^\r\n\p{L}\p{N}]?+\p{L}+      letters, with one character before them that is no letter, number or line end
        \p{N}{1,2}                     one or two numbers
         ?[^\s\p{L}\p{N}]++[\r\n]*     symbols, with a space before and line ends after them
        \s*[\r\n]                      space up to its last line end
        \s+(?!\S)|\s+                  space, without its last character where something visible follows

    >>> split_nanochat("It's 2024,\n  isn't it?")
    ['It', "'s", ' ', '20', '24', ',\n', ' ', ' isn', "'t", ' it', '?']
    """
    pieces: list[str] = []
    start = 0
    while start < len(text):
        end = _piece_end(text, start)
        pieces.append(text[start:end])
        start = end
    return pieces


def _kind(character: str) -> str:
    if character.isspace() and character not in "\x1c\x1d\x1e\x1f":  # those four are spaces to Python alone
        return "space"
    return {"L": "letter", "N": "number"}.get(unicodedata.category(character)[0], "symbol")


def _run(text: str, at: int, accepts: Callable[[str], bool], most: int | None = None) -> int:
    """End of the characters from `at` on that are accepted, `most` at most."""
    end = at
    while end < len(text) and accepts(text[end]) and (most is None or end - at < most):
        end += 1
    return end


def _piece_end(text: str, at: int) -> int:
    def is_letter(character: str) -> bool:
        return _kind(character) == "letter"

    first = text[at]
    if first == "'":
        after = text[at + 1 : at + 3].lower()
        if text[at + 1 : at + 2] == "ſ" or after[:1] in ("s", "d", "m", "t"):
            return at + 2
        if after in ("ll", "ve", "re"):
            return at + 3
    prefix = _kind(first) not in ("letter", "number") and first not in "\r\n"
    letters = _run(text, at + prefix, is_letter)
    if letters > at + prefix:
        return letters
    if _kind(first) == "number":
        return _run(text, at, lambda character: _kind(character) == "number", most=2)
    symbols_at = at + (first == " ")
    symbols = _run(text, symbols_at, lambda character: _kind(character) == "symbol")
    if symbols > symbols_at:
        return _run(text, symbols, lambda character: character in "\r\n")
    spaces = _run(text, at, lambda character: _kind(character) == "space")
    last_line_end = max(text.rfind("\n", at, spaces), text.rfind("\r", at, spaces))
    if last_line_end >= at:
        return last_line_end + 1
    if spaces == len(text) or spaces == at + 1:
        return spaces
    return spaces - 1


def train(texts: Iterable[str], merge_count: int, split: Split = split_nanochat) -> list[tuple[int, int]]:
    """Learn up to `merge_count` merges; the i-th joins two ids into the id 256 + i.

    At each step the pair with the highest count is taken, among equals the one with the lowest left id, then the
    lowest right id. Neighbours are counted within pieces; `aaa` counts the pair `aa` twice.
    """
    pieces = Counter(piece for text in texts for piece in split(text))
    words = [(list(piece.encode()), count) for piece, count in pieces.items()]
    merges: list[tuple[int, int]] = []
    while len(merges) < merge_count:
        pairs: Counter[tuple[int, int]] = Counter()
        for ids, count in words:
            for pair in pairwise(ids):
                pairs[pair] += count
        if not pairs:
            break
        best = min(pairs, key=lambda pair: (-pairs[pair], pair))
        words = [(_merge(ids, best, 256 + len(merges)), count) for ids, count in words]
        merges.append(best)
    return merges


def _merge(ids: Sequence[int], pair: tuple[int, int], new_id: int) -> list[int]:
    """Replace the pair by the new id, from left to right.

    >>> _merge([1, 1, 1, 2], (1, 1), 9)
    [9, 1, 2]
    """
    merged: list[int] = []
    at = 0
    while at < len(ids):
        if tuple(ids[at : at + 2]) == pair:
            merged.append(new_id)
            at += 2
        else:
            merged.append(ids[at])
            at += 1
    return merged


def encode(text: str, merges: Sequence[tuple[int, int]], split: Split = split_nanochat) -> list[int]:
    """Ids of a text: in each piece, the merge learned first is made first, until none applies."""
    new_ids = {pair: 256 + index for index, pair in enumerate(merges)}
    result: list[int] = []
    for piece in split(text):
        ids = list(piece.encode())
        while True:
            pairs = [pair for pair in pairwise(ids) if pair in new_ids]
            if not pairs:
                break
            first = min(pairs, key=new_ids.__getitem__)
            ids = _merge(ids, first, new_ids[first])
        result += ids
    return result


def decode(ids: Iterable[int], merges: Sequence[tuple[int, int]]) -> str:
    """Text of ids; bytes that are not UTF-8 become U+FFFD."""
    tokens = [bytes([byte]) for byte in range(256)]
    for left, right in merges:
        tokens.append(tokens[left] + tokens[right])
    return b"".join(tokens[id] for id in ids).decode("utf-8", "replace")
