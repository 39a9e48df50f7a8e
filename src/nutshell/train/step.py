"""The one step generator: accumulation, optimizer step, timing and the finite check. Stages keep their order visible."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor

from nutshell.model.decoder import Decoder
from nutshell.model.fp8 import quantise_weights
from nutshell.plan.schedule import Schedule
from nutshell.runtime import Runtime
from nutshell.train.optim import MuonAdamW
from nutshell.train.precision import LossScale

MOST_SKIPPED_IN_A_ROW = 10


@dataclass(frozen=True, kw_only=True)
class StepResult:
    """What one optimizer step did."""

    step: int
    """Steps done so far, this one included (1-based)."""
    loss: float
    """Mean over all ranks, in nats."""
    grad_norm: float
    lr_scale: float
    tokens: int
    """Of all ranks."""
    seconds: float
    skipped: bool
    """The loss or a gradient was not finite, so nothing was changed but the loss scale."""


class TrainingDiverged(RuntimeError):
    """Too many steps in a row had no finite loss or gradient."""


class MicroBatch(NamedTuple):
    """Data that is fetched and counted before any loss of its step is computed."""

    loss: Callable[[], Tensor]
    """Computes the mean loss of its targets."""
    targets: int
    """Terms of that mean; on other ranks and in other micro-batches there may be more or fewer."""
    tokens: int


def train_steps(
    model: Decoder,
    optimizer: MuonAdamW,
    micro_batch: Callable[[], MicroBatch],
    *,
    accumulation: int,
    schedule: Schedule,
    lr_scale: float,
    first_step: int,
    steps: int,
    runtime: Runtime,
    describe: Callable[[], str] = lambda: "",
    loss_scale: LossScale | None = None,
) -> Iterator[StepResult]:
    """Yield after each of the optimizer steps first_step + 1 ... steps.

    `micro_batch()` fetches the next data; it is called `accumulation` times a step. The loss of a step is the mean over the
    targets of all its micro-batches on all ranks. `describe()` names the last batch's documents and what is saved, for the
    message of TrainingDiverged. `loss_scale` is adapted from step to step (fp16).
    """
    skipped_in_a_row, scaling = 0, loss_scale or LossScale()
    for step in range(first_step, steps):
        start = time.perf_counter()
        for p in model.parameters():
            p.grad = None
        quantise_weights(model)
        batches = [micro_batch() for _ in range(accumulation)]
        counts = torch.tensor([[batch.targets, batch.tokens] for batch in batches]).sum(0)
        targets, tokens = runtime.total(counts).tolist()
        total = torch.zeros((), device=runtime.device)
        for number, batch in enumerate(batches, 1):
            share = batch.loss() * (batch.targets / max(1, targets))
            if number == accumulation:
                optimizer.shards.reduce_in_backward()
            (share * scaling.scale).backward()
            total += share.detach()
        optimizer.shards.reduce()
        scaling.unscale(optimizer.shards.gradients())
        norm = float(optimizer.shards.norm())
        loss_value = float(runtime.total(total))
        finite = math.isfinite(norm) and math.isfinite(loss_value)
        factor = schedule.lr_scale(step, steps)
        if finite:
            optimizer.step(
                lr_scale=factor * lr_scale, momentum=schedule.momentum(step, steps), decay_scale=schedule.decay_scale(step, steps)
            )
        if not scaling.after_step(loss_value, finite):
            skipped_in_a_row = 0 if finite else skipped_in_a_row + 1
        if skipped_in_a_row >= MOST_SKIPPED_IN_A_ROW:
            raise TrainingDiverged(
                f"the last {skipped_in_a_row} steps up to step {step + 1} had no finite loss or gradient (loss {loss_value}, "
                f"gradient norm {norm}). {describe()}. Look at that data, or lower the rates (--optimizer.matrix-lr ...)."
            )
        runtime.synchronize()
        yield StepResult(
            step=step + 1, loss=loss_value, grad_norm=norm, lr_scale=factor * lr_scale, tokens=tokens,
            seconds=time.perf_counter() - start, skipped=not finite,
        )  # fmt: skip
