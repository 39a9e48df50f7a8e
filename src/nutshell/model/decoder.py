"""What both architectures do alike: whole rows in training, a cache of keys and values in decoding.

Legend: B rows in a batch, T tokens in a row, C model width, D head width, V vocabulary.
"""

from __future__ import annotations

from copy import deepcopy
from typing import TypeVar

import torch
from torch import Tensor, nn

from nutshell.model.attention import make_mask, rotary_tables
from nutshell.model.config import ModelConfig
from nutshell.model.fp8 import use_fp8
from nutshell.model.kv_cache import KVCache

Model = TypeVar("Model", bound="Decoder")


class Decoder(nn.Module):
    """A decoder-only language model. `model(ids)` gives logits, `model(ids, targets)` the mean loss.

    An architecture adds its weights and four methods: `embed(ids, previous)` makes the input of the first block (B, T, C);
    `trunk(ids, x, attend)` runs all blocks, `attend(attention, x, ...)` being whole-row or cached attention; `head(hidden)`
    gives fp32 logits; `loss(hidden, targets, weights)` is the mean cross-entropy of hidden states (N, C).
    """

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        self.config = config
        self.compute_dtype = torch.float32
        self.attention_kernel = "blocked"  # or another of `probe.py`; the runtime decides
        cos, sin = rotary_tables(config.context, config.head_dim, config.rotary_base)
        self.register_buffer("cos", cos, persistent=False)
        self.register_buffer("sin", sin, persistent=False)

    def use(self: Model, dtype: torch.dtype, attention_kernel: str = "blocked", *, fp8: bool = False) -> Model:
        """Compute in `dtype` with this attention kernel, blocks in fp8 while training (the weights stay as they are stored)."""
        self.compute_dtype, self.attention_kernel = dtype, attention_kernel
        use_fp8(self, fp8)
        return self

    @torch.no_grad()
    def for_inference(self: Model) -> Model:
        """A frozen copy whose weights are stored in the compute dtype, so that decoding casts nothing."""
        copy = deepcopy(self).use(self.compute_dtype, self.attention_kernel)
        for module in copy.modules():
            if isinstance(module, (nn.Linear, nn.Embedding)):
                module.to(self.compute_dtype)
        return copy.requires_grad_(False).eval()

    def hidden(self, ids: Tensor, offsets: Tensor | None = None) -> Tensor:
        """Hidden states of whole rows (B, T) that all start at position 0. `offsets`: see `forward`."""
        T = ids.size(1)
        if T > self.config.context:
            raise ValueError(f"a row has {T} tokens; the model's context is {self.config.context}. Shorten the row.")
        x = self.embed(ids)
        documents = (ids == self.config.bos_id).cumsum(1)
        masks = {w: make_mask(documents, w, self.attention_kernel, x.dtype, offsets) for w in set(self.config.windows())}
        rotary = (self.cos[:T].to(x.dtype), self.sin[:T].to(x.dtype))
        return self.trunk(ids, x, lambda attention, *inputs: attention(*inputs, rotary, masks[attention.window]))

    @torch.inference_mode()
    def decode(
        self, ids: Tensor, cache: KVCache, rows: Tensor, counts: Tensor | None = None, *, last_only: bool = False
    ) -> Tensor:
        """Append tokens ids (B, T) to the cache rows `rows` (B,), each at its own length: fp32 logits (B, T, V).

        Rows may be padded on the right: only the first counts[b] tokens of row b are real (all T where counts is None).
        With `last_only` just the logits of each row's last real token are computed: (B, 1, V). The caller keeps a row within
        the cache's capacity.
        """
        if counts is None:
            counts = torch.full((ids.size(0),), ids.size(1), device=ids.device)
        place = cache.place(rows, ids.size(1))
        x = self.embed(ids, cache.previous[rows])
        positions = place.positions.clamp(max=cache.capacity - 1)
        rotary = (self.cos[positions].to(x.dtype), self.sin[positions].to(x.dtype))  # (B, T, 1, D)
        x = self.trunk(ids, x, lambda attention, *inputs: attention.decode(*inputs, rotary, place))
        cache.advance(rows, ids, counts)
        if last_only:
            x = x[torch.arange(x.size(0), device=x.device), (counts - 1).clamp(min=0)].unsqueeze(1)
        return self.head(x)

    def forward(
        self, ids: Tensor, targets: Tensor | None = None, weights: Tensor | None = None, offsets: Tensor | None = None
    ) -> Tensor:
        """Logits (B, T, V) in fp32, or with `targets` (B, T; -1 = ignored) the mean cross-entropy in nats.

        `weights` (B, T) multiplies each target's term of the loss. `offsets` are the `document_offsets` of ids, for a kernel
        that takes them: given, the device need not be waited for to find them.
        """
        hidden = self.hidden(ids, offsets)
        if targets is None:
            return self.head(hidden)
        return self.loss(hidden.flatten(0, 1), targets.flatten(), None if weights is None else weights.flatten())
