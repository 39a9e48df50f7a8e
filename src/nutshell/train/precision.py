"""fp16 with a dynamic loss scale, for GPUs without bf16 (arXiv 1710.03740).

fp16 ends at 65504 and loses what is below 6e-8, where many gradients lie. So the loss is multiplied by a power of two before
the backward pass, and the gradients, which are fp32, are divided by it afterwards: exact, but for what would have been lost.
"""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass

import torch
from torch import Tensor

FIRST_SCALE = 2.0**16
GROW_EVERY = 2000  # good steps; as in torch.amp


@dataclass
class LossScale:
    """The scale of a run and what it has seen; saved with the training state, so that a resumed run scales alike."""

    scale: float = 1.0
    """A power of two. 1 is no scaling, and the lowest."""
    good_steps: int = 0
    """Since the scale last changed."""
    dynamic: bool = False

    @classmethod
    def for_dtype(cls, dtype: torch.dtype, saved: dict | None = None) -> LossScale:
        """fp16 scales dynamically; wider exponents need no scale. `saved` is an earlier `state`."""
        if dtype != torch.float16:
            return cls()
        return cls(**{"scale": FIRST_SCALE, **(saved or {}), "dynamic": True})

    @property
    def state(self) -> dict | None:
        return {"scale": self.scale, "good_steps": self.good_steps} if self.dynamic else None

    def unscale(self, gradients: Iterable[Tensor]) -> None:
        """Divide fp32 gradients by the scale, in place."""
        if self.scale != 1:
            torch._foreach_mul_(list(gradients), 1 / self.scale)

    def after_step(self, loss: float, finite: bool) -> bool:
        """Adapt the scale after a step whose numbers were `finite` or not. True where a smaller scale may cure them:

        the loss was a number, so the backward pass has overflowed, and the scale was not yet at its lowest.
        """
        if not self.dynamic:
            return False
        if finite:
            self.good_steps += 1
            if self.good_steps >= GROW_EVERY:
                self.scale, self.good_steps = self.scale * 2, 0
            return False
        curable = math.isfinite(loss) and self.scale > 1
        self.scale, self.good_steps = max(1.0, self.scale / 2), 0
        return curable
