"""Decoding on CUDA at the speed of its kernels: a step of single tokens is recorded once for each size, then replayed.

A step of a small model is some hundred kernels of a few microseconds each, and Python takes longer to launch them than they take
to run. A CUDA graph launches them all at once, but only with the shapes and addresses that it was recorded with. So the step
reads one table of numbers, always the same memory, and its sizes are rounded up to powers of two. What is padded repeats the last
row or block: a row that stands twice writes the same numbers to the same place, and a mask hides what lies behind a row's end.
"""

from __future__ import annotations

import sys
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

Step = Callable[[Tensor], Tensor]
"""A step of the model: a row of numbers for each sequence in, logits (B, V) out. It may not wait for the device."""

DIFFERENCE = 0.02
"""Of logits in relation to their norm; a recorded step rounds bf16 as the step itself does, and often to the bit."""


class DecodeGraphs:
    """Runs `step` on tables of `fixed` columns and then blocks, at most `limits` = (rows, blocks), recorded where that works.

    `works` turns False at the first size that cannot be recorded or computes something else, and the step is called as it is from
    then on.
    """

    def __init__(
        self,
        step: Step,
        limits: tuple[int, int],
        fixed: int,
        device: torch.device,
        record: Callable[[Step, Tensor], Callable[[], Tensor]] | None = None,
    ) -> None:
        self.step, self.limits, self.fixed, self.device = step, limits, fixed, device
        self.record = record or CudaRecorder()
        self.works = True
        self._recorded: dict[tuple[int, int], tuple[Tensor, Callable[[], Tensor]]] = {}

    def __call__(self, table: Tensor) -> Tensor:
        """The logits of a table (B, columns) on CPU. Those of a recorded step are valid until the next call."""
        if not self.works:
            return self.step(table)
        rows, columns = table.shape
        most_rows, most_blocks = self.limits
        size = min(rounded_up(rows), most_rows), self.fixed + min(rounded_up(columns - self.fixed), most_blocks)
        padded = table[torch.arange(size[0]).clamp(max=rows - 1)][:, torch.arange(size[1]).clamp(max=columns - 1)]
        if size not in self._recorded:
            try:
                inputs = padded.to(self.device)
                self._recorded[size] = (inputs, self._checked(inputs))
            except RuntimeError as error:  # whatever a driver or a library refuses, the step itself still runs
                self.works = False
                reason = (str(error).splitlines() or [type(error).__name__])[0][:200]
                print(f"CUDA graphs do not work here ({reason}); decoding goes on without them.", file=sys.stderr)
                return self.step(table)
        inputs, replay = self._recorded[size]
        inputs.copy_(padded)
        return replay()[:rows]

    def _checked(self, inputs: Tensor) -> Callable[[], Tensor]:
        """Record the step, and compare what a replay computes with the step itself: writing the same tokens again is harmless."""
        expected = self.step(inputs)
        replay = self.record(self.step, inputs)
        differs = float((replay() - expected).norm() / expected.norm())
        if differs > DIFFERENCE:
            raise RuntimeError(f"the logits of a recorded step differ by {differs:.1%}")
        return replay


def rounded_up(number: int) -> int:
    """To a power of two."""
    return 1 << (number - 1).bit_length()


class CudaRecorder:
    """Records steps on CUDA. What they compute lies in one pool of memory, since none runs beside another."""

    def __init__(self) -> None:
        self.pool: Any = None

    def __call__(self, step: Step, inputs: Tensor) -> Callable[[], Tensor]:
        """What replays `step(inputs)` with whatever `inputs` holds then."""
        stream = torch.cuda.Stream()
        stream.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(stream):
            step(inputs)  # libraries take their workspaces now, not while recording
        torch.cuda.current_stream().wait_stream(stream)
        graph = torch.cuda.CUDAGraph()
        # Other threads (a training beside it, another model being loaded) may use the device meanwhile.
        with torch.cuda.graph(graph, pool=self.pool, stream=stream, capture_error_mode="thread_local"):
            logits = step(inputs)
        self.pool = graph.pool()

        def replay() -> Tensor:
            graph.replay()
            return logits

        return replay
