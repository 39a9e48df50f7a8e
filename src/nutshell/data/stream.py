"""An endless stream of packed batches, prefetched and resumable to the bit: what the two loaders share.

The stream of rows depends only on the data, the seed and the row length. It goes epoch by epoch and block by block (a block is a
row group, or 1,024 conversations), in an order shuffled by seed and epoch. A global batch is the next `rows * world_size` rows,
and rank r takes the rows i with i % world_size == r. So with another number of ranks or rows, training sees the same rows in the
same order.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch

from nutshell.data.packing import Document, pack

Batch = tuple[torch.Tensor, torch.Tensor]
"""inputs (rows, T) and targets (rows, T), both int64; target -1 is ignored by the loss."""


@dataclass(frozen=True, kw_only=True)
class _State:
    """Where the next batch begins: row `row` of block `block`, which is packed with `carry`."""

    epoch: int = 0
    block: int = 0
    row: int = 0
    carry: list[Document] = field(default_factory=list)


class PackedStream:
    """A subclass provides the blocks and their documents, in the five methods at the end."""

    _split_documents = True

    def __init__(
        self, bos_id: int, rows: int, row_tokens: int, *, seed: int = 0, rank: int = 0, world_size: int = 1,
        prepare: Callable[[Batch], Any] | None = None, prefetched_batches: int = 4,
    ):  # fmt: skip
        """`rows` is the batch size of this rank; a row has `row_tokens` = T + 1 tokens. The prefetching thread works
        `prefetched_batches` ahead and calls `prepare` on each batch; `next` returns the result."""
        self.bos_id, self.rows, self.row_tokens, self.seed = bos_id, rows, row_tokens, seed
        self.rank, self.world_size = rank, world_size
        self.prepare, self.prefetched_batches = prepare, prefetched_batches
        self.sources: list[str] = []
        """The blocks that the rows of the last batch came from, by name, for messages."""
        self._state = _State()
        self._thread: ThreadPoolExecutor | None = None  # a single one, which makes the batches ahead
        self._ahead: deque[Future[tuple[Any, _State, list[str]]]] = deque()

    # ---- iteration and state -------------------------------------------------------------------------------------

    def __iter__(self) -> Iterator[Any]:
        return self

    def __next__(self) -> Any:
        if self._thread is None:
            self._thread = ThreadPoolExecutor(1, thread_name_prefix="nutshell-data")
            self._coming = self._batches(self._state)
        while len(self._ahead) < self.prefetched_batches:
            self._ahead.append(self._thread.submit(next, self._coming))
        batch, self._state, self.sources = self._ahead[0].result()  # an error stays in place and is raised again by the next call
        self._ahead.popleft()
        return batch

    @property
    def epoch(self) -> float:
        """Passes over the data up to the last batch, as a fraction."""
        return self._state.epoch + self._state.block / self._blocks()

    def state_dict(self) -> dict[str, Any]:
        """The state after the last batch, as JSON: a loader that loads it goes on with the next batch."""
        state = self._state
        carry = [[ids.tolist(), None if mask.all() else mask.astype(int).tolist()] for ids, mask in state.carry]
        return {**self._identity(), "epoch": state.epoch, "block": state.block, "row": state.row, "carry": carry}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Go on where the state was taken. ValueError if data, seed, row length or BOS differ."""
        for name, value in self._identity().items():
            if state.get(name) != value:
                raise ValueError(
                    f"the data stream cannot be resumed: {name} was {state.get(name)!r} and is {value!r} now; use the old."
                )
        self.close()
        carry = [(np.array(ids, np.uint32), np.array(mask or [True] * len(ids), bool)) for ids, mask in state["carry"]]
        self._state = _State(epoch=state["epoch"], block=state["block"], row=state["row"], carry=carry)

    def close(self) -> None:
        """End the prefetching thread. A later `next` starts a new one and gives the same batch as otherwise."""
        if self._thread is not None:
            self._thread.shutdown(cancel_futures=True)
            self._thread = None
            self._ahead.clear()

    def __enter__(self) -> PackedStream:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    # ---- the stream, in the prefetching thread -------------------------------------------------------------------

    def _batches(self, state: _State) -> Iterator[tuple[Batch, _State, list[str]]]:
        global_rows = self.rows * self.world_size
        pending: list[tuple[np.ndarray, np.ndarray]] = []
        pending_rows, sources = 0, []
        epoch, block, row, carry = state.epoch, state.block, state.row, state.carry
        while True:
            order = self._shuffled("blocks", self._blocks(), epoch)
            first_block, epoch_tokens = block, 0
            for block in range(first_block, len(order)):
                documents = self._documents(int(order[block]), epoch)
                epoch_tokens += sum(len(ids) for ids, _ in documents)
                split, last = self._split_documents, block == len(order) - 1
                packed = pack(documents, self.row_tokens, carry, split, bos_id=self.bos_id, flush=last and not split)
                shuffled = self._shuffled("rows", len(packed.ids), epoch, block)
                while row < len(shuffled):
                    chosen = shuffled[row : row + global_rows - pending_rows]
                    pending.append((packed.ids[chosen], packed.mask[chosen]))
                    sources.append(self._block_name(int(order[block])))
                    row += len(chosen)
                    pending_rows += len(chosen)
                    if pending_rows == global_rows:
                        after = _State(epoch=epoch, block=block, row=row, carry=carry)
                        batch = self._rank_batch(pending)
                        yield self.prepare(batch) if self.prepare else batch, after, list(dict.fromkeys(sources))
                        pending, pending_rows, sources = [], 0, []
                carry, row = packed.carry, 0
            if first_block == 0:
                self._check_epoch(epoch_tokens)
            epoch, block = epoch + 1, 0

    def _shuffled(self, what: str, count: int, epoch: int, block: int = 0) -> np.ndarray:
        """A permutation that depends only on the arguments and the seed."""
        purpose = ("blocks", "rows", "conversations").index(what)
        return np.random.default_rng([self.seed, epoch, block, purpose]).permutation(count)

    def _rank_batch(self, pending: list[tuple[np.ndarray, np.ndarray]]) -> Batch:
        """This rank's rows of a global batch, which comes as parts (ids, mask)."""
        ids, mask = (np.concatenate(parts)[self.rank :: self.world_size] for parts in zip(*pending, strict=True))
        ids = ids.astype(np.int64)
        targets = np.where(mask[:, 1:], ids[:, 1:], -1)
        return torch.from_numpy(ids[:, :-1].copy()), torch.from_numpy(targets)

    def _fixed_batches(self, ids: np.ndarray, mask: np.ndarray, wanted: int | None) -> list[Batch]:
        """At most `wanted` of the rows in batches. The last one is filled up with rows without a target, so that all ranks have
        the same number of batches."""
        # Chosen at random: packing puts long documents first, and a part of the rows must not hold those alone.
        chosen = np.random.default_rng(0).permutation(len(ids))[:wanted]
        step = self.rows * self.world_size
        missing = ((0, -len(chosen) % step), (0, 0))
        ids = np.pad(ids[chosen], missing, constant_values=self.bos_id)
        mask = np.pad(mask[chosen], missing)
        return [self._rank_batch([(ids[i : i + step], mask[i : i + step])]) for i in range(0, len(ids), step)]

    def _identity(self) -> dict[str, Any]:
        return {"data": self._fingerprint(), "seed": self.seed, "row_tokens": self.row_tokens, "bos_id": self.bos_id}

    def _blocks(self) -> int:
        raise NotImplementedError

    def _block_name(self, block: int) -> str:
        raise NotImplementedError

    def _documents(self, block: int, epoch: int) -> list[Document]:
        raise NotImplementedError

    def _fingerprint(self) -> str:
        raise NotImplementedError

    def _check_epoch(self, tokens: int) -> None:
        """ValueError if an epoch of this many tokens is too little to train on."""
        raise NotImplementedError
