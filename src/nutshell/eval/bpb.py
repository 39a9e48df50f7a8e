"""Bits per byte: how well a model predicts text, comparable between tokenizers."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator
from typing import Any

import numpy as np
import torch
from torch import Tensor

from nutshell.data.packing import pack


def packed_rows(documents: Iterable[str], tok: Any, context: int, *, rows: int = 8) -> Iterator[tuple[Tensor, Tensor]]:
    """Batches (ids, targets) of up to `rows` rows of `context` tokens, packed as in pretraining. Targets are -1 in padding.
    All ids are held in memory."""
    encoded = (np.array([tok.bos_id, *tok.encode(text)], np.uint32) for text in documents)
    packed = pack(((ids, np.ones(len(ids), bool)) for ids in encoded), context + 1, bos_id=tok.bos_id, flush=True)
    ids = torch.from_numpy(packed.ids.astype(np.int64))
    targets = ids[:, 1:].masked_fill(~torch.from_numpy(packed.mask[:, 1:]), -1)
    for first in range(0, len(ids), rows):
        yield ids[first : first + rows, :-1], targets[first : first + rows]


@torch.no_grad()  # not inference_mode: FSDP2 keeps what it gathers, and a later training step could not use inference tensors
def bits_per_byte(
    model: Any,
    batches: Iterable[tuple[Tensor, Tensor]],
    token_byte_lengths: np.ndarray | Tensor,
    *,
    reduce: Callable[[Tensor], Tensor] | None = None,
) -> float:
    """Bits the model needs for each byte of the targets, over all `batches` of (ids, targets), both (B, T).

    Bytes are those of the raw tokens (V,), not of decoded text, where a split character would count as the three bytes
    of U+FFFD (nanochat issue 693). Targets of -1 and special tokens, which have no bytes, count neither as bits nor as
    bytes. Sums are float64. `reduce` adds up the tensor (nats, bytes) over ranks where there are several. ValueError
    where not a single byte was scored.
    """
    device = next(model.parameters()).device
    lengths = torch.as_tensor(token_byte_lengths, dtype=torch.long, device=device)
    nats, count = 0.0, 0
    for ids, targets in batches:
        ids, targets = ids.to(device), targets.to(device)
        sizes = lengths[targets.clamp(min=0)] * (targets >= 0)  # (B, T)
        scored = int((sizes > 0).sum())
        if scored or reduce is not None:  # ranks that hold a part of the weights each must compute equally often
            nats += float(model(ids, targets.masked_fill(sizes == 0, -1))) * scored  # the model gives a mean
            count += int(sizes.sum())
    if reduce is not None:
        nats, count = reduce(torch.tensor([nats, count], dtype=torch.float64)).tolist()
    if not count:
        raise ValueError("bits per byte of 0 bytes; accepted: batches with at least one target that is text.")
    return nats / count / math.log(2)
