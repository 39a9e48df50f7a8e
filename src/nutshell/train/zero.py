"""ZeRO 2 (arXiv 1910.02054): every rank holds all weights, and each owns a shard of them.

Gradients are reduce-scattered while the backward pass still runs. Each rank keeps optimizer state for its own shard alone,
updates that, and an all-gather brings the new weights to everybody. On one rank nothing is copied and nothing travels.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import NamedTuple

import torch
import torch.distributed as dist
from torch import Tensor, nn

SMALL = 1024  # AdamW tensors of fewer elements are updated by every rank alike: a message costs more than keeping them


@dataclass(eq=False, kw_only=True)
class Shard:
    """The part of a parameter that this rank owns and updates: all of it, or some of its rows."""

    name: str
    parameter: nn.Parameter
    rows: slice
    bucket: Bucket | None = None  # None where every rank owns the whole parameter

    @property
    def replicated(self) -> bool:
        """Every rank owns it."""
        return self.bucket is None

    @property
    def weight(self) -> Tensor:
        return self.parameter.detach()[self.rows]

    @property
    def gradient(self) -> Tensor | None:
        """That of the whole step, summed over all ranks after `Zero.reduce`; None where the loss does not depend on it."""
        return self.parameter.grad if self.bucket is None else self.bucket.gradient(self)


class Bucket:
    """Same-shaped tensors stacked, or one tensor alone, cut into one shard of rows a rank: of a stack, a row is a whole tensor.

    Rank r owns the `rows_per_rank` rows from r * rows_per_rank on. The end is padded, so any number of rows will do
    (karpathy/nanochat issue 320).
    """

    def __init__(self, names: list[str], parameters: list[nn.Parameter], *, stacked: bool, rank: int, world_size: int) -> None:
        self.names, self.parameters, self.stacked, self.world_size = names, parameters, stacked, world_size
        self.rows = len(parameters) if stacked else parameters[0].size(0)
        self.row_shape = parameters[0].shape if stacked else parameters[0].shape[1:]
        self.rows_per_rank = -(-self.rows // world_size)
        self.start = min(rank * self.rows_per_rank, self.rows)
        self.stop = min(self.start + self.rows_per_rank, self.rows)
        self.missing = 0  # gradients that this backward has not brought yet
        self.work: dist.Work | None = None
        self.free()

    def free(self) -> None:
        """Let go of the gradients."""
        self.present = [False] * len(self.names)  # which parameters have one
        self.all_rows = torch.empty(0)  # (rows_per_rank * world_size, *row_shape), padding included
        self.own_rows = torch.empty(0)  # (rows_per_rank, *row_shape), this rank's

    def shards(self) -> list[Shard]:
        if self.stacked:
            owned = range(self.start, self.stop)
            return [Shard(name=self.names[i], parameter=self.parameters[i], rows=slice(None), bucket=self) for i in owned]
        rows = slice(self.start, self.stop)
        return [Shard(name=self.names[0], parameter=self.parameters[0], rows=rows, bucket=self)] * (self.start < self.stop)

    def views(self, rows: Tensor) -> list[Tensor]:
        """The parameters in a tensor of all rows."""
        return list(rows[: self.rows].unbind()) if self.stacked else [rows[: self.rows]]

    def reduce_scatter(self) -> None:
        """Begin to sum the gradients over the ranks, each rank receiving its own rows; frees the parameters' gradients."""
        like = self.parameters[0]
        self.all_rows = torch.empty(self.rows_per_rank * self.world_size, *self.row_shape, dtype=like.dtype, device=like.device)
        self.all_rows[self.rows :].zero_()
        self.present = [p.grad is not None for p in self.parameters]
        for p, view in zip(self.parameters, self.views(self.all_rows), strict=True):
            view.zero_() if p.grad is None else view.copy_(p.grad)
            p.grad = None
        self.own_rows = torch.empty_like(self.all_rows[: self.rows_per_rank])
        self.work = dist.reduce_scatter_tensor(self.own_rows, self.all_rows, async_op=True)

    def wait(self) -> None:
        if self.work is not None:
            self.work.wait()
            self.work = None

    def gradient(self, shard: Shard) -> Tensor | None:
        index = self.names.index(shard.name)
        if not self.present[index]:
            return None
        return self.own_rows[index - self.start] if self.stacked else self.own_rows[: self.stop - self.start]

    def all_gather(self) -> None:
        """Begin to send this rank's new weights to all others."""
        weights = [shard.weight for shard in self.shards()]
        own = self.own_rows if self.stacked else [self.own_rows[: self.stop - self.start]]
        for view, weight in zip(own, weights, strict=False):
            view.copy_(weight)
        self.work = dist.all_gather_into_tensor(self.all_rows, self.own_rows, async_op=True)

    def finish_all_gather(self) -> None:
        """Take over all ranks' new weights."""
        self.wait()
        for p, view in zip(self.parameters, self.views(self.all_rows), strict=True):
            p.copy_(view)
        self.free()

    def gather(self, owned: list[Tensor], row_shape: tuple[int, ...]) -> Iterator[tuple[str, Tensor]]:
        """On rank 0 whole tensors of state by parameter name, on the CPU; `owned` is what this rank has. A collective."""
        own = torch.zeros(self.rows_per_rank, *row_shape, device=self.parameters[0].device)
        if owned:
            own[: self.stop - self.start] = torch.stack(owned) if self.stacked else owned[0]
        received = [torch.empty_like(own) for _ in range(self.world_size)] if dist.get_rank() == 0 else None
        dist.gather(own, received)
        if received is not None:
            yield from zip(self.names, self.views(torch.cat([rows.cpu() for rows in received])), strict=True)


class Partition(NamedTuple):
    """How one parameter group is split across ranks."""

    shards: list[Shard]  # what this rank owns: it has these gradients and momenta, and updates these weights
    buckets: list[Bucket]  # in which these travel; what is in none is whole on every rank
    second_shards: list[Shard]  # whose second moments this rank keeps: the same, unless weights are sharded too (FSDP)
    second_buckets: list[Bucket]


class Zero:
    """Shards and buckets of all groups, and the collectives of a step."""

    def __init__(self, *, rank: int = 0, world_size: int = 1) -> None:
        self.rank, self.world_size = rank, world_size
        self.buckets: list[Bucket] = []
        """In the order in which they are sent, which has to be the same on all ranks."""
        self.shards: list[Shard] = []
        self.sent = 0
        self.overlapping = False

    def partition(self, names: list[str], parameters: list[nn.Parameter], *, matrices: bool) -> Partition:
        """Split a group. `matrices` (same-shaped, for Muon) are owned whole, in turn: Newton-Schulz of some rows is not that of
        the matrix. Other large tensors are owned by rows, small ones by every rank."""
        named = list(zip(names, parameters, strict=True))
        size = self.world_size if matrices and self.world_size > 1 else 1
        shards: list[Shard] = []
        buckets: list[Bucket] = []
        for chunk in (named[i : i + size] for i in range(0, len(named), size)):
            if self.world_size == 1 or (not matrices and chunk[0][1].numel() < SMALL):
                shards += [Shard(name=name, parameter=p, rows=slice(None)) for name, p in chunk]
                continue
            keys, tensors = [name for name, _ in chunk], [p for _, p in chunk]
            bucket = Bucket(keys, tensors, stacked=matrices, rank=self.rank, world_size=self.world_size)
            buckets.append(bucket)
            shards += bucket.shards()
            for p in tensors:
                p.register_post_accumulate_grad_hook(lambda _, bucket=bucket: self._send_when_complete(bucket))
        self.shards += shards
        self.buckets += buckets
        return Partition(shards, buckets, shards, buckets)

    def sort_buckets(self, positions: dict[str, int]) -> None:
        """Gradients come last layer first, so the bucket whose first parameter stands last in the model is sent first."""
        self.buckets.sort(key=lambda bucket: -min(positions[name] for name in bucket.names))

    def reduce_in_backward(self) -> None:
        """The next backward is the step's last: each bucket is sent as soon as its gradients are complete."""
        self.overlapping, self.sent = True, 0
        for bucket in self.buckets:
            bucket.missing = len(bucket.parameters)

    def _send_when_complete(self, bucket: Bucket) -> None:
        if not self.overlapping:
            return
        bucket.missing -= 1
        while self.sent < len(self.buckets) and self.buckets[self.sent].missing == 0:
            self.buckets[self.sent].reduce_scatter()
            self.sent += 1

    @torch.no_grad()
    def reduce(self) -> Tensor:
        """Wait until all gradients are summed over the ranks. Returns the norm of this rank's share of them; what every rank
        owns counts for rank 0."""
        if self.world_size > 1:
            if not self.overlapping:  # backward has run without it
                self.sent = 0
            self.overlapping = False
            for bucket in self.buckets[self.sent :]:
                bucket.reduce_scatter()
            small = [p.grad for shard in self.shards if shard.replicated and (p := shard.parameter).grad is not None]
            if small:
                flat = torch.cat([gradient.flatten() for gradient in small])
                dist.all_reduce(flat)
                for gradient, total in zip(small, flat.split([g.numel() for g in small]), strict=True):
                    gradient.copy_(total.view_as(gradient))
            for bucket in self.buckets:
                bucket.wait()
        own = [shard.gradient for shard in self.shards if self.rank == 0 or not shard.replicated]
        norms = torch._foreach_norm([gradient for gradient in own if gradient is not None])
        return torch.stack(norms).norm() if norms else torch.zeros(())

    def gradients(self) -> list[Tensor]:
        """All gradients that this rank has now."""
        return [gradient for shard in self.shards if (gradient := shard.gradient) is not None]

    def all_gather(self, buckets: list[Bucket]) -> None:
        """Begin to send the new weights of these buckets to the other ranks."""
        for bucket in buckets:
            bucket.all_gather()

    def finish_all_gather(self) -> None:
        """Wait until this rank has all new weights."""
        for bucket in self.buckets:
            bucket.finish_all_gather()

    def on_whole_matrices(self, function: Callable[[Tensor], Tensor], matrices: Tensor, rows: int) -> Tensor:
        """`function` of a group's matrices (N, rows, columns), which this rank owns whole."""
        return function(matrices)
