"""Batches on their way to the device, while the device computes the steps before them."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from nutshell.model.flash import KERNELS, document_offsets


class Sent(NamedTuple):
    """A batch whose copy has been started. `arrived` is None where nothing had to be copied by a stream of its own."""

    tensors: tuple[Tensor | None, ...]
    targets: int
    """How many tokens are learned, counted before the copy."""
    arrived: torch.cuda.Event | None = None


class Transfer:
    """Copies batches from pinned memory on a stream of its own. `start` runs in the loader's thread, `finish` before the step."""

    def __init__(self, device: torch.device, bos_id: int, attention_kernel: str) -> None:
        self.device, self.bos_id = device, bos_id
        self.by_documents = attention_kernel in KERNELS
        self.stream = torch.cuda.Stream(device) if device.type == "cuda" else None

    def start(self, batch: tuple[Tensor, Tensor]) -> Sent:
        """(ids, targets) on the CPU -> (ids, targets, offsets) on the device; offsets where the kernel takes documents.

        Their number depends on the ids, so finding them on a GPU would make the CPU wait for it in every step.
        """
        ids, targets = batch
        offsets = document_offsets((ids == self.bos_id).cumsum(1)) if self.by_documents else None
        tensors, count = (ids, targets, offsets), int((targets >= 0).sum())
        if self.stream is None:
            return Sent(tuple(x if x is None else x.to(self.device) for x in tensors), count)
        with torch.cuda.stream(self.stream):
            sent = tuple(x if x is None else x.pin_memory().to(self.device, non_blocking=True) for x in tensors)
            return Sent(sent, count, self.stream.record_event())

    def finish(self, sent: Sent) -> tuple[Tensor, Tensor, Tensor | None]:
        """The batch, ordered after its copy on the stream that will read it."""
        if sent.arrived is not None:
            current = torch.cuda.current_stream(self.device)
            current.wait_event(sent.arrived)
            for tensor in sent.tensors:
                if tensor is not None:
                    tensor.record_stream(current)  # its memory is not reused before that stream is done with it
        ids, targets, offsets = sent.tensors
        assert ids is not None and targets is not None  # noqa: PT018 - for the type checker
        return ids, targets, offsets
