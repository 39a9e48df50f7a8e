"""Learning rate, momentum and weight decay as pure functions of the step."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import NamedTuple

from nutshell.config import check_ranges


class Rates(NamedTuple):
    """What a step is taken with."""

    lr: float  # factor on every group's peak learning rate
    momentum: float  # Muon's
    decay: float  # factor on Muon's weight decay


@dataclass(frozen=True, kw_only=True)
class Schedule:
    """Trapezoid: linear warm-up, constant, linear warm-down to `final_fraction`."""

    warmup_steps: int = 40
    """Steps until the full learning rate; at most a fortieth of all, but 10 where there are 40."""
    warmdown_fraction: float = 0.65
    """Share of all steps over which the learning rate falls."""
    final_fraction: float = 0.05
    """Learning rate of the last step, as a share of the peak."""
    momentum_warmup_steps: int = 400
    """Steps over which Muon's momentum rises from 0.85 to 0.97; at most an eighth of all, but 50 where there are 150."""

    def __post_init__(self) -> None:
        check_ranges(self, {"warmup_steps": (0, math.inf), "momentum_warmup_steps": (0, math.inf)})
        check_ranges(self, {"warmdown_fraction": (0, 1), "final_fraction": (0, 1)})

    def at(self, step: int, steps: int, stage_lr: float = 1.0) -> Rates:
        """All that changes from step to step, for step `step` (from 0) of `steps`; `stage_lr` multiplies the learning rates."""
        lr = stage_lr * self.lr_scale(step, steps)
        return Rates(lr=lr, momentum=self.momentum(step, steps), decay=self.decay_scale(step, steps))

    def warmup(self, steps: int) -> int:
        """Steps of warm-up in a stage of `steps`: those asked for, fewer in a short stage."""
        return min(self.warmup_steps, max(1, steps // 4), max(10, steps // 40))

    def lr_scale(self, step: int, steps: int) -> float:
        """Factor on the peak learning rate of step `step` (from 0) of `steps`."""
        warmup = self.warmup(steps)
        warmdown = round(self.warmdown_fraction * steps)
        if step < warmup:
            return (step + 1) / warmup
        if step < steps - warmdown:
            return 1.0
        remaining = (steps - step) / max(1, warmdown)
        return remaining + (1 - remaining) * self.final_fraction

    def momentum(self, step: int, steps: int) -> float:
        """Muon's momentum: 0.85 to 0.97 while warming up, down to 0.90 in the warm-down."""
        warmup = min(self.momentum_warmup_steps, max(1, steps // 3), max(50, steps // 8))
        warmdown_start = steps - round(self.warmdown_fraction * steps)
        value = 0.85 + 0.12 * min(1.0, step / warmup)
        if step > warmdown_start:
            value -= 0.07 * (step - warmdown_start) / max(1, steps - warmdown_start)
        return value

    @staticmethod
    def decay_scale(step: int, steps: int) -> float:
        """Factor on Muon's weight decay: cosine to 0."""
        return 0.5 * (1 + math.cos(math.pi * step / max(1, steps)))
