"""Best-fit packing of tokenized documents into rows of exactly `row_tokens` (= T + 1) tokens.

Every row starts with BOS. There are two ways:
- `split=True` (pretraining): rows are always full and no token is thrown away. If no document fits the space left in a row, the
  longest one is split there, and its tail goes back to the pool behind a BOS.
- `split=False` (conversations): documents stay whole, and the rest of a row is padding.
"""

from __future__ import annotations

import heapq
from collections.abc import Iterable
from dataclasses import dataclass

import numpy as np

Document = tuple[np.ndarray, np.ndarray]
"""ids (n,) uint32, starting with BOS, and a mask (n,) bool: True where the token is learned."""


@dataclass(frozen=True, kw_only=True)
class Packed:
    """Result of `pack`."""

    ids: np.ndarray  # (R, row_tokens) uint32
    mask: np.ndarray  # (R, row_tokens) bool, False at padding
    carry: list[Document]  # less than `row_tokens` tokens that did not fill a row, for the next call


_Part = tuple[np.ndarray, np.ndarray, int]
"""(ids, mask, start): a document, or if start > 0 the tail of one, which is BOS and the tokens from `start` on. A tail is copied
only when it is placed; copying it at each split would take quadratic time for a document as long as a book."""


def _length(part: _Part) -> int:
    ids, _, start = part
    return len(ids) - start + (start > 0)


def _pieces(part: _Part, tokens: int, bos_id: int) -> list[Document]:
    """The first `tokens` tokens of a part."""
    ids, mask, start = part
    if start == 0:
        return [(ids[:tokens], mask[:tokens])]
    end = start + tokens - 1
    return [(np.array([bos_id], np.uint32), np.ones(1, bool)), (ids[start:end], mask[start:end])]


def _join(pieces: list[Document]) -> Document:
    ids = np.concatenate([np.zeros(0, np.uint32), *(ids for ids, _ in pieces)]).astype(np.uint32, copy=False)
    return ids, np.concatenate([np.zeros(0, bool), *(mask for _, mask in pieces)])


class _Pool:
    """Documents by length; the longest one that fits is found in constant time.

    Each length up to `limit` has a bucket, and a bit in a big integer that says whether it is occupied. Longer documents are in a
    heap.
    """

    def __init__(self, limit: int):
        self.limit = limit
        self.buckets: list[list[_Part]] = [[] for _ in range(limit + 1)]
        self.occupied = 0
        self.longer: list[tuple[int, int, _Part]] = []
        self.added = 0
        self.tokens = 0

    def add(self, part: _Part) -> None:
        length = _length(part)
        self.tokens += length
        if length > self.limit:
            self.added += 1
            heapq.heappush(self.longer, (-length, self.added, part))
        else:
            self.buckets[length].append(part)
            self.occupied |= 1 << length

    def take_fitting(self, space: int) -> _Part | None:
        """Remove the longest document of at most `space` tokens."""
        length = (self.occupied & ((2 << space) - 1)).bit_length() - 1
        return self._take(length) if length > 0 else None

    def take_longest(self) -> _Part:
        if self.longer:
            length, _, part = heapq.heappop(self.longer)
            self.tokens += length
            return part
        return self._take(self.occupied.bit_length() - 1)

    def _take(self, length: int) -> _Part:
        bucket = self.buckets[length]
        part = bucket.pop()
        if not bucket:
            self.occupied &= ~(1 << length)
        self.tokens -= length
        return part

    def rest(self) -> list[_Part]:
        return [part for bucket in self.buckets for part in bucket]


def pack(
    documents: Iterable[Document], row_tokens: int, carry: Iterable[Document] = (), split: bool = True, *, bos_id: int,
    flush: bool = False,
) -> Packed:  # fmt: skip
    """Pack `carry` and `documents` into rows, as long as there is enough for a whole row.

    With `flush` the rest goes into rows too, and the last one is padded with BOS that is not learned. Empty documents are
    skipped. ValueError if a document does not start with BOS.
    """
    pool, rows = _Pool(row_tokens), 0
    for ids, mask in (*carry, *documents):
        if len(ids) == 0:
            continue
        if ids[0] != bos_id:
            raise ValueError(f"a document starts with token {ids[0]} instead of BOS ({bos_id})")
        pool.add((ids, mask, 0) if split else (ids[:row_tokens], mask[:row_tokens], 0))

    pieces: list[Document] = []
    while pool.tokens >= row_tokens or (flush and pool.tokens):
        rows += 1
        space = row_tokens
        while space:
            # A document longer than a row is cut in any case: it fills whole rows first.
            part = pool.take_fitting(space) if space < row_tokens or not pool.longer else None
            if part is not None:
                pieces += _pieces(part, _length(part), bos_id)
                space -= _length(part)
            elif split and pool.tokens:
                ids, mask, start = part = pool.take_longest()
                pieces += _pieces(part, space, bos_id)
                pool.add((ids, mask, start + space - (start > 0)))
                space = 0
            else:
                pieces.append((np.full(space, bos_id, np.uint32), np.zeros(space, bool)))
                space = 0

    ids, mask = _join(pieces)
    carried = [_join(_pieces(part, _length(part), bos_id)) for part in pool.rest()]
    return Packed(ids=ids.reshape(rows, row_tokens), mask=mask.reshape(rows, row_tokens), carry=carried)
