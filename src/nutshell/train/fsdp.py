"""Weights divided among the ranks too (FSDP2), for models that do not fit one GPU: each rank holds its rows of every tensor.

FSDP2 gathers a block's weights before it computes, in the dtype it computes in, and divides its gradients after every backward
pass: no rank ever holds them all. AdamW and Muon's momentum work on rows. Muon's direction needs whole matrices: they go to their
owners and the updates come back, one exchange each way and shape.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import cast

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.distributed.fsdp import MixedPrecisionPolicy, fully_shard
from torch.distributed.tensor import DTensor

from nutshell.model.build import build_model
from nutshell.model.decoder import Decoder
from nutshell.train.zero import Bucket, Partition, Shard, Zero


def shard_weights(model: Decoder, device: torch.device, *, compiled: bool = False) -> None:
    """Divide the weights among all ranks, in place; FSDP2 moves each to `device` as it goes.

    Blocks cast their weights to the compute dtype anyway, so they may travel in it. What an embedding or the head learns from
    many tokens is summed in fp32, as it is where weights are whole.
    """
    mesh = dist.init_device_mesh(device.type, (dist.get_world_size(),))
    computed = MixedPrecisionPolicy(param_dtype=model.compute_dtype, reduce_dtype=torch.float32, cast_forward_inputs=False)
    for blocks in (module for module in model.modules() if isinstance(module, nn.ModuleList)):
        for block in blocks:
            if compiled:
                block.compile(dynamic=False)  # each by itself: gathering and freeing weights happens between blocks
            fully_shard(block, mesh=mesh, mp_policy=computed)
    if not model.config.tied:  # a tied embedding stays whole for the head, with the rest
        for module in [module for module in model.modules() if isinstance(module, nn.Embedding)]:
            fully_shard(module, mesh=mesh)
    # The head and what is small. Left whole after a forward without a backward, they would hide from the optimizer.
    fully_shard(model, mesh=mesh, reshard_after_forward=True)


@torch.no_grad()
def whole_model(model: Decoder, *, everywhere: bool = False) -> Decoder:
    """A plain model with all the weights in CPU memory, of rank 0 or of every rank; a collective, tensor by tensor.

    Elsewhere it has shapes and no storage.
    """
    keep = everywhere or dist.get_rank() == 0
    whole = build_model(model.config, initialize=False).set_precision(model.compute_dtype, model.attention_kernel)
    weights = {}
    for name, p in model.named_parameters():
        tensor = cast(DTensor, p.detach()).full_tensor()
        if keep:
            weights[name] = tensor.cpu()
    if keep:
        whole.load_state_dict(weights, assign=True)
    return whole


class LocalShard(Shard):
    """This rank's rows, which are all of the parameter that it holds."""

    @property
    def replicated(self) -> bool:
        return False

    @property
    def weight(self) -> Tensor:
        return cast(DTensor, self.parameter.detach()).to_local()

    @property
    def gradient(self) -> Tensor | None:
        return None if self.parameter.grad is None else cast(DTensor, self.parameter.grad).to_local()


class Fsdp(Zero):
    """The same work for a model whose weights `shard_weights` has divided."""

    def partition(self, names: list[str], parameters: list[nn.Parameter], *, matrices: bool) -> Partition:
        def bucket(names: list[str], parameters: list[nn.Parameter], stacked: bool) -> Bucket:
            return Bucket(names, parameters, stacked=stacked, rank=self.rank, world_size=self.world_size)

        by_rows = [bucket([name], [p], False) for name, p in zip(names, parameters, strict=True)]
        shards: list[Shard] = [
            LocalShard(name=rows.names[0], parameter=rows.parameters[0], rows=slice(rows.start, rows.stop)) for rows in by_rows
        ]
        self.shards += shards
        if not matrices:
            return Partition(shards, by_rows, shards, by_rows)
        chunks = range(0, len(names), self.world_size)
        owned = [bucket(names[i : i + self.world_size], parameters[i : i + self.world_size], True) for i in chunks]
        return Partition(shards, by_rows, [shard for matrices in owned for shard in matrices.shards()], owned)

    def reduce_in_backward(self) -> None:
        """FSDP2 does, in every backward pass, so that no rank ever holds all gradients."""

    @torch.no_grad()
    def reduce(self) -> Tensor:
        torch._foreach_mul_(self.gradients(), self.world_size)  # FSDP2 has taken the mean over ranks
        return torch.stack(torch._foreach_norm(self.gradients())).norm()

    def all_gather(self, buckets: list[Bucket]) -> None:
        """Nobody else holds these weights."""

    def finish_all_gather(self) -> None:
        """Nothing to wait for."""

    def on_whole_matrices(self, function: Callable[[Tensor], Tensor], matrices: Tensor, rows: int) -> Tensor:
        """`function` of whole matrices of which every rank holds some rows: `matrices` is (N, own rows, columns).

        Rank r gets all rows of matrix r, r + world_size, ..., maps them as (M, rows, columns), and sends each rank its rows back.
        """
        world_size, (count, own_rows, columns) = self.world_size, matrices.shape
        per_owner, per_rank = -(-count // world_size), -(-rows // world_size)  # matrices and rows, the last ones padded
        row_counts = [max(0, min(per_rank, rows - rank * per_rank)) for rank in range(world_size)]
        own_splits = [per_owner * own_rows * columns] * world_size  # elements for each owner
        row_splits = [per_owner * n * columns for n in row_counts]  # elements from each rank
        padded = torch.cat([matrices, matrices.new_zeros(per_owner * world_size - count, own_rows, columns)])
        send = padded.view(per_owner, world_size, own_rows, columns).transpose(0, 1).flatten()  # by owner
        received = matrices.new_empty(sum(row_splits))
        dist.all_to_all_single(received, send, row_splits, own_splits)
        parts = zip(received.split(row_splits), row_counts, strict=True)
        whole = torch.cat([part.view(per_owner, n, columns) for part, n in parts], dim=1)  # (M, rows, columns)
        owned = len(range(self.rank, count, world_size))
        whole[:owned] = function(whole[:owned])
        send = torch.cat([part.flatten() for part in whole.split(row_counts, dim=1)])
        received = matrices.new_empty(sum(own_splits))
        dist.all_to_all_single(received, send, own_splits, row_splits)
        return received.view(world_size, per_owner, own_rows, columns).transpose(0, 1).flatten(0, 1)[:count]
