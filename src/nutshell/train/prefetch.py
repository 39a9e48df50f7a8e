"""Micro-batches on their way to the device, while the device computes the steps before them."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from nutshell.model.flash import KERNELS, document_offsets


class MicroBatch(NamedTuple):
    """One micro-batch. Its targets are counted before the first forward, so the loss is a mean over the whole step."""

    ids: Tensor  # (B, T)
    targets: Tensor  # (B, T), -1 where nothing is learned
    target_count: int  # Targets that are learned. On other ranks and in other micro-batches there may be more or fewer.
    weights: Tensor | None = None  # (B, T), a factor on each target's loss: the advantages of RL
    reference: Tensor | None = None  # log-probabilities by another model: in DPO of whole answers, in RL of each target
    old: Tensor | None = None  # (B, T), log-probabilities before the first update by this batch (RL)
    offsets: Tensor | None = None  # `document_offsets` of ids, for attention kernels that take documents
    ready: torch.cuda.Event | None = None  # the copy to the device has ended; None where there is none to wait for

    def wait(self) -> None:
        """Order what follows after the copy, on the stream that will read it."""
        if self.ready is None:
            return
        current = torch.cuda.current_stream(self.ids.device)
        current.wait_event(self.ready)
        for tensor in (self.ids, self.targets, self.offsets):
            if tensor is not None:
                tensor.record_stream(current)  # its memory is not reused before that stream is done with it


class ToDevice:
    """Called in the loader's thread with (ids, targets) on the CPU: starts their copy on a stream of its own."""

    def __init__(self, device: torch.device, bos_id: int, attention_kernel: str) -> None:
        self.device, self.bos_id = device, bos_id
        self.by_documents = attention_kernel in KERNELS
        self.stream = torch.cuda.Stream(device) if device.type == "cuda" else None

    def __call__(self, batch: tuple[Tensor, Tensor]) -> MicroBatch:
        """The micro-batch, with document offsets where the kernel takes documents.

        Their number depends on the ids, so finding them on a GPU would make the CPU wait for it in every step.
        """
        ids, targets = batch
        offsets = document_offsets((ids == self.bos_id).cumsum(1)) if self.by_documents else None
        count = int((targets >= 0).sum())
        if self.stream is None:
            ids, targets = ids.to(self.device), targets.to(self.device)
            return MicroBatch(ids, targets, count, offsets=None if offsets is None else offsets.to(self.device))
        # The current device belongs to a thread: without this, pinning would open a context on GPU 0 for every rank.
        with torch.cuda.device(self.device), torch.cuda.stream(self.stream):
            sent = [x.pin_memory().to(self.device, non_blocking=True) for x in (ids, targets, offsets) if x is not None]
            ready = self.stream.record_event()
        return MicroBatch(sent[0], sent[1], count, offsets=sent[2] if len(sent) > 2 else None, ready=ready)
