"""One optimizer step, spelled out: forward and backward of its micro-batches, reduction, clipping, update. All stages take it."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from nutshell.model.fp8 import quantise_weights
from nutshell.plan.schedule import Rates
from nutshell.runtime import Runtime
from nutshell.train.optim import MuonAdamW
from nutshell.train.prefetch import MicroBatch


@dataclass(frozen=True, kw_only=True)
class StepResult:
    """What one optimizer step did. Numbers are of all ranks."""

    loss: float  # mean over the targets of the step, in nats; nan where there were none
    grad_norm: float  # Euclidean norm of all gradients, before clipping
    lr: float  # factor on the peak learning rates
    tokens: int
    targets: int
    seconds: float
    finite: bool  # False: the loss or a gradient was not finite, so nothing was changed but the loss scale
    save_due: bool = False  # whether any rank wants to save, or to stop
    stop: bool = False

    @property
    def updated(self) -> bool:
        """Whether the weights were changed: not without a target, nor by an infinite or NaN gradient."""
        return self.finite and self.targets > 0


def next_token_loss(model: nn.Module, batch: MicroBatch) -> Tensor:
    """Mean cross-entropy of a micro-batch's targets, each times its weight where there are weights."""
    return model(batch.ids, batch.targets, batch.weights, batch.offsets)


def target_logprobs(model: nn.Module, batch: MicroBatch) -> Tensor:
    """Log-probability of each target, (B, T) in fp32, and 0 where there is none. All logits of the micro-batch exist at once."""
    logits = model(batch.ids, None, None, batch.offsets)
    losses = F.cross_entropy(logits.flatten(0, 1), batch.targets.flatten(), ignore_index=-1, reduction="none")
    return -losses.view_as(batch.targets)


def pad_rows(rows: Sequence[tuple[list[int], list[int]]], longest: int) -> tuple[Tensor, Tensor]:
    """Ids and targets (N, T), padded on the right, of rows (tokens, mask): what the mask does not mark has no target (-1).

    T is that of the longest row, at most `longest`: what is beyond it is cut off.
    """
    T = min(longest, max(len(tokens) for tokens, _ in rows) - 1)
    ids, targets = torch.zeros(len(rows), T, dtype=torch.long), torch.full((len(rows), T), -1)
    for i, (tokens, mask) in enumerate(rows):
        length = min(T, len(tokens) - 1)
        ids[i, :length] = torch.tensor(tokens[:length])
        targets[i, :length] = torch.where(torch.tensor(mask[1 : length + 1]) > 0, torch.tensor(tokens[1 : length + 1]), -1)
    return ids, targets


def pad_to_same_count(batches: list[MicroBatch], spare: MicroBatch, runtime: Runtime) -> list[MicroBatch]:
    """The micro-batches, and copies of `spare` without targets until every rank has as many: FSDP2 gathers weights in each."""
    most = max(runtime.gather(len(batches)))
    return batches + [spare._replace(target_count=0)] * (most - len(batches))


def train_step(
    model: nn.Module,
    optimizer: MuonAdamW,
    batches: Sequence[MicroBatch],
    rates: Rates,
    runtime: Runtime,
    scaler: LossScaler,
    *,
    clip_norm: float = 0.0,
    loss_of: Callable[[nn.Module, MicroBatch], Tensor] = next_token_loss,
    save_due: bool = False,
    stop: bool = False,
) -> StepResult:
    """Learn from micro-batches: one update by the mean loss over all their targets on all ranks.

    A step without a single target, or with a loss or gradient that is not finite, changes nothing: no weight, no momentum.
    Whether one of the ranks wants to save or to stop is summed along with the loss, so all of them know it without another wait.
    """
    start = time.perf_counter()
    optimizer.zero_grad()
    quantise_weights(model)
    counts = torch.tensor([[batch.target_count, batch.ids.numel()] for batch in batches], dtype=torch.float64).sum(0)
    counts = runtime.total(counts.to(runtime.wire))  # targets and tokens of all ranks; a GPU adds them without being waited for
    own_loss = torch.zeros((), device=runtime.device)
    for number, batch in enumerate(batches, 1):
        batch.wait()
        share = batch.target_count / counts[0].clamp(min=1)  # of this micro-batch in the step's mean
        loss = loss_of(model, batch) * share.to(runtime.device, torch.float32)
        if number == len(batches):
            optimizer.reduce_in_backward()
        (loss * scaler.scale).backward()
        own_loss += loss.detach()
    own_norm = optimizer.reduce() / scaler.scale
    own = torch.stack([own_norm.to(runtime.wire).double().square(), own_loss.to(runtime.wire).double()])
    sums = runtime.total(torch.cat([own, own.new_tensor([save_due, stop])]))
    everything = torch.cat([sums, counts]).tolist()  # the only wait for other ranks
    norm_squared, loss_sum, saving, stopping, targets, tokens = everything
    norm = math.sqrt(norm_squared) if norm_squared >= 0 else math.nan
    finite = math.isfinite(norm) and math.isfinite(loss_sum)
    if finite and targets:
        clip = min(1.0, clip_norm / norm) if clip_norm and norm else 1.0
        optimizer.scale_gradients(clip / scaler.scale)
        optimizer.step(lr=rates.lr, momentum=rates.momentum, decay=rates.decay)
    runtime.synchronize()
    return StepResult(
        loss=loss_sum if targets else math.nan,
        grad_norm=norm,
        lr=rates.lr,
        tokens=int(tokens),
        targets=int(targets),
        seconds=time.perf_counter() - start,
        finite=finite,
        save_due=saving > 0,
        stop=stopping > 0,
    )


def merge_results(results: list[StepResult]) -> StepResult:
    """Several updates as one step: loss and norm of the last that had a target; tokens, targets and seconds of all together."""
    with_targets = [result for result in results if result.targets]
    return replace(
        with_targets[-1] if with_targets else results[-1],
        tokens=sum(result.tokens for result in results),
        targets=sum(result.targets for result in results),
        seconds=sum(result.seconds for result in results),
        finite=all(result.finite for result in results),
        save_due=results[-1].save_due,
        stop=results[-1].stop,
    )


@dataclass
class LossScaler:
    """Training in fp16 on GPUs without bf16: a dynamic loss scale (arXiv 1710.03740).

    fp16 ends at 65504 and loses what is below 6e-8, where many gradients lie. So the loss is multiplied by a power of two before
    the backward pass, and the gradients, which are fp32, are divided by it afterwards. The division by a power of two is exact.
    Saved with the training state, so that a resumed run scales alike.
    """

    scale: float = 1.0  # a power of two, at least 1
    good_steps: int = 0  # since the scale last changed
    dynamic: bool = False

    FIRST_SCALE = 2.0**16
    GROW_EVERY = 2000  # good steps; as in torch.amp

    @classmethod
    def for_dtype(cls, dtype: torch.dtype, saved: dict | None = None) -> LossScaler:
        """fp16 scales dynamically; wider exponents need no scale. `saved` is an earlier `state`."""
        if dtype != torch.float16:
            return cls()
        return cls(**{"scale": cls.FIRST_SCALE, **(saved or {}), "dynamic": True})

    @property
    def state(self) -> dict | None:
        return {"scale": self.scale, "good_steps": self.good_steps} if self.dynamic else None

    def update(self, loss: float, finite: bool) -> bool:
        """Adapt the scale after a step. True where the backward pass has overflowed and a smaller scale may be enough: the loss
        itself was finite, and the scale not yet 1."""
        if not self.dynamic:
            return False
        if finite:
            self.good_steps += 1
            if self.good_steps >= self.GROW_EVERY:
                self.scale, self.good_steps = self.scale * 2, 0
            return False
        overflowed = math.isfinite(loss) and self.scale > 1
        self.scale, self.good_steps = max(1.0, self.scale / 2), 0
        return overflowed
