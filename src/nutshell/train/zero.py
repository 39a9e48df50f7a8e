"""Several ranks: who owns which part of the parameters, and how gradients, weights and optimizer state travel.

Every rank holds all weights. Gradients are summed and divided among the ranks while backward still runs; each rank keeps
optimizer state for what it owns alone, updates that, and sends the new weights to the others (ZeRO 2, arXiv 1910.02054).
On one rank nothing is copied and nothing travels.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import NamedTuple

import torch
import torch.distributed as dist
from torch import Tensor, nn

SMALL = 1024
"""AdamW tensors of fewer elements stay whole on every rank: a message costs more than keeping them."""


@dataclass(eq=False, kw_only=True)
class Part:
    """What this rank owns of a parameter, and updates: all of it, or some of its rows."""

    name: str
    parameter: nn.Parameter
    rows: slice
    bucket: Bucket | None = None
    """None where every rank owns the whole parameter."""

    @property
    def shared(self) -> bool:
        """Every rank owns it."""
        return self.bucket is None

    @property
    def weight(self) -> Tensor:
        return self.parameter.detach()[self.rows]

    @property
    def gradient(self) -> Tensor | None:
        """Of the whole step, over all ranks once `Shards.reduce` is through; None where no rank has one."""
        return self.parameter.grad if self.bucket is None else self.bucket.gradient(self)


class Bucket:
    """Same-shaped tensors stacked, or one tensor alone, divided by rows: of a stack, each row is a whole tensor.

    Rank r owns the `each` rows from r * each on. What is missing at the end is padding, so any number of rows will do
    (nanochat issue 320).
    """

    def __init__(self, names: list[str], parameters: list[nn.Parameter], *, stacked: bool, rank: int, world_size: int) -> None:
        self.names, self.parameters, self.stacked, self.world_size = names, parameters, stacked, world_size
        self.rows = len(parameters) if stacked else parameters[0].size(0)
        self.row_shape = parameters[0].shape if stacked else parameters[0].shape[1:]
        self.each = -(-self.rows // world_size)
        self.start = min(rank * self.each, self.rows)
        self.stop = min(self.start + self.each, self.rows)
        self.missing = 0  # gradients that this backward has not brought yet
        self.work: dist.Work | None = None
        self.release()

    def release(self) -> None:
        """Forget the gradients."""
        self.present = [False] * len(self.names)  # which parameters have one
        self.whole = torch.empty(0)  # (each * world_size, *row_shape), all ranks' rows, padding included
        self.own = torch.empty(0)  # (each, *row_shape), this rank's

    def parts(self) -> list[Part]:
        if self.stacked:
            owned = range(self.start, self.stop)
            return [Part(name=self.names[i], parameter=self.parameters[i], rows=slice(None), bucket=self) for i in owned]
        rows = slice(self.start, self.stop)
        return [Part(name=self.names[0], parameter=self.parameters[0], rows=rows, bucket=self)] * (self.start < self.stop)

    def views(self, whole: Tensor) -> list[Tensor]:
        """The parameters' places in a tensor of all rows."""
        return list(whole[: self.rows].unbind()) if self.stacked else [whole[: self.rows]]

    def launch(self) -> None:
        """Begin to sum the gradients over the ranks, each rank receiving its own rows; frees the parameters' gradients."""
        like = self.parameters[0]
        self.whole = torch.empty(self.each * self.world_size, *self.row_shape, dtype=like.dtype, device=like.device)
        self.whole[self.rows :].zero_()
        self.present = [p.grad is not None for p in self.parameters]
        for p, view in zip(self.parameters, self.views(self.whole), strict=True):
            view.zero_() if p.grad is None else view.copy_(p.grad)
            p.grad = None
        self.own = torch.empty_like(self.whole[: self.each])
        self.work = dist.reduce_scatter_tensor(self.own, self.whole, async_op=True)

    def wait(self) -> None:
        if self.work is not None:
            self.work.wait()
            self.work = None

    def gradient(self, part: Part) -> Tensor | None:
        index = self.names.index(part.name)
        if not self.present[index]:
            return None
        return self.own[index - self.start] if self.stacked else self.own[: self.stop - self.start]

    def publish(self) -> None:
        """Begin to send this rank's new weights to all others."""
        weights = [part.weight for part in self.parts()]
        for place, weight in zip(self.own if self.stacked else [self.own[: self.stop - self.start]], weights, strict=False):
            place.copy_(weight)
        self.work = dist.all_gather_into_tensor(self.whole, self.own, async_op=True)

    def receive(self) -> None:
        """Take over all ranks' new weights."""
        self.wait()
        for p, view in zip(self.parameters, self.views(self.whole), strict=True):
            p.copy_(view)
        self.release()

    def gather(self, owned: list[Tensor], row_shape: tuple[int, ...]) -> Iterator[tuple[str, Tensor]]:
        """On rank 0 the whole tensors by parameter name, on the CPU; `owned` is what this rank has of them. A collective."""
        like = self.parameters[0]
        mine = torch.zeros(self.each, *row_shape, device=like.device)
        if owned:
            mine[: self.stop - self.start] = torch.stack(owned) if self.stacked else owned[0]
        received = [torch.empty_like(mine) for _ in range(self.world_size)] if dist.get_rank() == 0 else None
        dist.gather(mine, received)
        if received is not None:
            yield from zip(self.names, self.views(torch.cat([piece.cpu() for piece in received])), strict=True)


class Division(NamedTuple):
    """What became of one group of parameters."""

    parts: list[Part]
    """What this rank owns: it has these gradients and momenta, and updates these weights."""
    buckets: list[Bucket]
    """In which these are laid out over the ranks; what is in none is whole on every rank."""
    second_parts: list[Part]
    """Of what this rank keeps the second moment: the same, unless weights are divided too."""
    second_buckets: list[Bucket]


class Shards:
    """The parameters of an optimizer, divided among the ranks."""

    def __init__(self, *, rank: int = 0, world_size: int = 1) -> None:
        self.rank, self.world_size = rank, world_size
        self.buckets: list[Bucket] = []
        self.parts: list[Part] = []
        self.order: list[Bucket] = []
        """In which buckets are launched, alike on all ranks: as their gradients came in the first step."""
        self.came: list[Bucket] = []
        self.launched = 0
        self.armed = False

    def divide(self, names: list[str], parameters: list[nn.Parameter], *, matrices: bool) -> Division:
        """Take in a group of parameters.

        `matrices` (same-shaped, for Muon) are owned whole, in turn; other large tensors by rows; small ones by every rank.
        """
        named = list(zip(names, parameters, strict=True))
        if matrices and self.world_size > 1:
            chunks = [named[i : i + self.world_size] for i in range(0, len(named), self.world_size)]
        else:
            chunks = [[pair] for pair in named]
        parts: list[Part] = []
        buckets: list[Bucket] = []
        for chunk in chunks:
            if self.world_size == 1 or (not matrices and chunk[0][1].numel() < SMALL):
                parts += [Part(name=name, parameter=p, rows=slice(None)) for name, p in chunk]
                continue
            keys, tensors = [name for name, _ in chunk], [p for _, p in chunk]
            bucket = Bucket(keys, tensors, stacked=matrices, rank=self.rank, world_size=self.world_size)
            buckets.append(bucket)
            parts += bucket.parts()
            for p in tensors:
                p.register_post_accumulate_grad_hook(lambda _, bucket=bucket: self._came(bucket))
        self.parts += parts
        self.buckets += buckets
        return Division(parts, buckets, parts, buckets)

    def reduce_in_backward(self) -> None:
        """The next backward is the step's last: each bucket is sent as soon as its gradients are complete."""
        self.armed, self.launched, self.came = True, 0, []
        for bucket in self.buckets:
            bucket.missing = len(bucket.parameters)

    def _came(self, bucket: Bucket) -> None:
        if not self.armed:
            return
        bucket.missing -= 1
        if bucket.missing == 0:
            self.came.append(bucket)
        while self.launched < len(self.order) and self.order[self.launched].missing == 0:
            self.order[self.launched].launch()
            self.launched += 1

    @torch.no_grad()
    def reduce(self) -> None:
        """Wait until all gradients are summed over the ranks."""
        if self.world_size == 1:
            return
        if not self.armed:  # backward has run without it
            self.reduce_in_backward()
        self.armed = False
        for bucket in (self.order or self.buckets)[self.launched :]:
            bucket.launch()
        self._settle()
        for bucket in self.buckets:
            bucket.wait()
        if not self.order:
            self.order = self._agree_on_order()

    def gradients(self) -> list[Tensor]:
        """All gradients that this rank has now: of what it owns, and of the small tensors that all ranks own alike."""
        return [gradient for part in self.parts if (gradient := part.gradient) is not None]

    @torch.no_grad()
    def norm(self) -> Tensor:
        """Euclidean norm of all ranks' gradients, the same number on each (inf or nan where one is)."""
        # What every rank owns is counted by rank 0.
        mine = [g for part in self.parts if (g := part.gradient) is not None and (self.rank == 0 or not part.shared)]
        norm = torch.stack(torch._foreach_norm(mine)).norm() if mine else torch.zeros((), device=self.device)
        if self.world_size == 1:
            return norm
        squares = norm.square()
        dist.all_reduce(squares)
        return squares.sqrt()

    def _settle(self) -> None:
        """Sum the small gradients, and agree which parameters have one on any rank."""
        small = [part.parameter for part in self.parts if part.bucket is None]
        present = [p.grad is not None for p in small] + [flag for bucket in self.buckets for flag in bucket.present]
        gradients = [torch.zeros_like(p) if p.grad is None else p.grad for p in small]
        flat = torch.cat([torch.tensor(present, dtype=torch.float32, device=self.device), *(g.flatten() for g in gradients)])
        dist.all_reduce(flat)
        flags = iter((flat[: len(present)] > 0).tolist())
        sums = flat[len(present) :].split([p.numel() for p in small])
        for p, value in zip(small, sums, strict=True):
            p.grad = value.view_as(p) if next(flags) else None
        for bucket in self.buckets:
            bucket.present = [next(flags) for _ in bucket.names]

    def _agree_on_order(self) -> list[Bucket]:
        rest = [bucket for bucket in self.buckets if bucket not in self.came]
        order = torch.tensor([self.buckets.index(bucket) for bucket in self.came + rest], device=self.device)
        dist.broadcast(order, 0)
        return [self.buckets[i] for i in order.tolist()]

    @property
    def device(self) -> torch.device:
        return self.parts[0].parameter.device if self.parts else self.buckets[0].parameters[0].device

    def publish(self, buckets: list[Bucket]) -> None:
        """Begin to send the new weights of these buckets to the other ranks."""
        for bucket in buckets:
            bucket.publish()

    def receive(self) -> None:
        """Wait until this rank has all new weights."""
        for bucket in self.buckets:
            bucket.receive()

    def on_whole(self, function: Callable[[Tensor], Tensor], local: Tensor, rows: int) -> Tensor:
        """`function` of a group's matrices (N, rows, columns): this rank has them whole."""
        return function(local)
