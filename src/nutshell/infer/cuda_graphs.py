"""Decoding on CUDA at the speed of its kernels: a step of single tokens is recorded once for each size, then replayed.

A step of a small model is some hundred kernels of a few microseconds each, and Python takes longer to launch them than they take
to run. A CUDA graph launches them all at once, but only with the shapes and addresses that it was recorded with. So the step
reads its inputs from tensors that stay in place, and the number of rows is rounded up to a power of two. Padding repeats the last
row: one that stands twice writes the same numbers to the same place. How long rows are does not matter, since attention reads
only what their block tables name (`model/paged_attention.py`). A recorded step ends with the tokens drawn.
"""

from __future__ import annotations

import sys
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

Step = Callable[[Tensor, Tensor, "int | None"], tuple[Tensor, Tensor]]
"""A step of the model: of a row of numbers for each sequence, how tokens are drawn, and of how many candidates, it makes logits
(B, V) and tokens (B,). It may not wait for the device."""

Replay = Callable[[], tuple[Tensor, Tensor]]

DIFFERENCE = 0.02
"""Of logits in relation to their norm; a recorded step rounds bf16 as the step itself does, and often to the bit."""


class DecodeGraphs:
    """Runs `step` for at most `most_rows` rows, recorded where that works.

    `works` turns False at the first size that cannot be recorded or computes something else, and the step is called as it is from
    then on.
    """

    def __init__(
        self, step: Step, most_rows: int, device: torch.device, record: Callable[[Callable[[], Any]], Replay] | None = None
    ) -> None:
        self.step, self.most_rows, self.device = step, most_rows, device
        self.record = record or CudaRecorder()
        self.works = True
        self._recorded: dict[tuple[int, int | None], tuple[Tensor, Tensor, Replay]] = {}

    def __call__(self, table: Tensor, draws: Tensor, candidates: int | None) -> tuple[Tensor, Tensor]:
        """The step of inputs on CPU. What a recorded step gives is valid until the next call."""
        rows = len(table)
        size = min(1 << (rows - 1).bit_length(), self.most_rows)
        padding = torch.arange(size).clamp(max=rows - 1)
        if self.works and (size, candidates) not in self._recorded:
            try:
                self._record(table[padding], draws[padding], candidates)
            except RuntimeError as error:  # whatever a driver or a library refuses, the step itself still runs
                self.works = False
                reason = (str(error).splitlines() or [type(error).__name__])[0][:200]
                print(f"CUDA graphs do not work here ({reason}); decoding goes on without them.", file=sys.stderr)
        if not self.works:
            return self.step(table.to(self.device), draws.to(self.device), candidates)
        table_there, draws_there, replay = self._recorded[size, candidates]
        table_there.copy_(table[padding])
        draws_there.copy_(draws[padding])
        logits, tokens = replay()
        return logits[:rows], tokens[:rows]

    def _record(self, table: Tensor, draws: Tensor, candidates: int | None) -> None:
        """And compare what a replay computes with the step itself: writing the same tokens again is harmless."""
        table, draws = table.to(self.device), draws.to(self.device)
        expected, tokens = self.step(table, draws, candidates)
        replay = self.record(lambda: self.step(table, draws, candidates))
        found, found_tokens = replay()
        differs = float((found - expected).norm() / expected.norm())
        if differs > DIFFERENCE:
            raise RuntimeError(f"the logits of a recorded step differ by {differs:.1%}")
        if not differs and not torch.equal(found_tokens, tokens):
            raise RuntimeError("a recorded step draws other tokens")
        self._recorded[len(table), candidates] = table, draws, replay


class CudaRecorder:
    """Records steps on CUDA. What they compute lies in one pool of memory, since none runs beside another."""

    def __init__(self) -> None:
        self.pool: Any = None

    def __call__(self, step: Callable[[], Any]) -> Callable[[], Any]:
        """What replays `step()` with whatever its inputs hold then, into the same results."""
        stream = torch.cuda.Stream()
        stream.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(stream):
            step()  # libraries take their workspaces now, not while recording
        torch.cuda.current_stream().wait_stream(stream)
        graph = torch.cuda.CUDAGraph()
        # Other threads (a training beside it, another model being loaded) may use the device meanwhile.
        with torch.cuda.graph(graph, pool=self.pool, stream=stream, capture_error_mode="thread_local"):
            results = step()
        self.pool = graph.pool()

        def replay() -> Any:
            graph.replay()
            return results

        return replay
