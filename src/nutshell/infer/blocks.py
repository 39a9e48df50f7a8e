"""Which blocks of the KV cache are whose, and what the blocks hold that nobody needs at the moment. Numbers only, no tensors.

A full block is known by the tokens in it and the block before it, so a chain of known blocks is a known beginning of a text: a
request that begins alike reads on from there. Blocks that nobody holds are kept until their memory is needed, the least recently
used first. A shared block is never written: all its tokens are there before it becomes known.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Sequence
from itertools import count
from typing import NamedTuple

from nutshell.infer.sampling import Draw

START = 0
"""The name of what stands before a first block."""


class Chunk(NamedTuple):
    """Tokens of one sequence that follow what the cache holds of it."""

    ids: Sequence[int]
    """At least one."""
    start: int
    """Position of the first: how many tokens the cache holds."""
    previous: int
    """The token before the first, -1 where there is none."""
    blocks: Sequence[int]
    """Where the sequence lies: token t in block blocks[t // size]."""
    draw: Draw | None = None
    """How the token behind it is drawn; None: the likeliest is taken."""


class BlockPool:
    """`total` blocks of `size` tokens each."""

    def __init__(self, total: int, size: int) -> None:
        self.total, self.size = total, size
        self.free = list(range(total))[::-1]
        self.holders = [0] * total
        self.idle: OrderedDict[int, None] = OrderedDict()  # known, held by nobody; least recently used first
        self._known: dict[tuple[int, tuple[int, ...]], tuple[int, int]] = {}  # (parent's name, tokens): (block, name)
        self._key: dict[int, tuple[int, tuple[int, ...]]] = {}  # of known blocks
        self._names = count(START + 1)  # never used again, so a name means one text for ever

    @property
    def available(self) -> int:
        """Blocks that can be taken."""
        return len(self.free) + len(self.idle)

    def find(self, tokens: Sequence[int]) -> tuple[list[int], int]:
        """The longest known chain of whole blocks that `tokens` begin with, and the name of its last block."""
        blocks: list[int] = []
        name = START
        for start in range(0, len(tokens) - self.size + 1, self.size):
            known = self._known.get((name, tuple(tokens[start : start + self.size])))
            if known is None:
                break
            blocks.append(known[0])
            name = known[1]
        return blocks, name

    def hold(self, blocks: Sequence[int]) -> None:
        """Share known blocks."""
        for block in blocks:
            self.holders[block] += 1
            self.idle.pop(block, None)

    def take(self, number: int) -> list[int]:
        """So many blocks of unknown content. MemoryError where fewer are `available`; then none is taken."""
        if number > self.available:
            raise MemoryError(f"{number} blocks of the KV cache are asked for, and {self.available} of {self.total} are left.")
        taken = [self.free.pop() if self.free else self._evict() for _ in range(number)]
        for block in taken:
            self.holders[block] = 1
        return taken

    def _evict(self) -> int:
        block, _ = self.idle.popitem(last=False)
        del self._known[self._key.pop(block)]
        return block

    def give_back(self, blocks: Sequence[int]) -> None:
        """Hold the blocks of a sequence no longer. The last are given up first, since without its parent a block is not found."""
        for block in reversed(blocks):
            self.holders[block] -= 1
            if self.holders[block] == 0:
                if block in self._key:
                    self.idle[block] = None
                else:
                    self.free.append(block)

    def remember(self, block: int, parent: int, tokens: Sequence[int]) -> int:
        """Make a full block known by the name of its parent and its tokens; returns its name. Where another block holds the
        same already, that one's name."""
        key = (parent, tuple(tokens))
        if key not in self._known:
            self._known[key] = (block, next(self._names))
            self._key[block] = key
        return self._known[key][1]

    def forget(self) -> None:
        """Nothing is known any more: the weights have changed, or nobody knows what a failed step wrote."""
        self.free += self.idle
        self.idle.clear()
        self._known.clear()
        self._key.clear()
