"""What all architectures do alike: whole rows in training, slots of a KV cache in decoding.

Legend: B rows in a batch, T tokens in a row, C model width, D head width, V vocabulary.
"""

from __future__ import annotations

from typing import Any, TypeVar

import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

from nutshell.model.attention import AttentionContext, make_mask, rotary_tables
from nutshell.model.config import ModelConfig
from nutshell.model.fp8 import use_fp8
from nutshell.model.kv_cache import KVCache

Model = TypeVar("Model", bound="Decoder")


class WithoutWeights(TorchFunctionMode):
    """In this context a model is built with its parameters on the meta device, and no initial weights are drawn.

    Not `torch.device("meta")`: a draw, a linspace or a negation there imports torch's compiler, half of the time that loading
    took.
    """

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: dict[str, Any] | None = None) -> Any:
        kwargs = kwargs or {}
        if func is torch.empty:
            return func(*args, **{**kwargs, "device": "meta"})
        target = args[0] if args else kwargs.get("tensor")  # torch.nn.init names it
        in_place = func.__name__.endswith("_") and not func.__name__.endswith("__")
        return target if in_place and isinstance(target, Tensor) and target.is_meta else func(*args, **kwargs)


class Decoder(nn.Module):
    """A decoder-only language model. `model(ids)` gives logits, `model(ids, targets)` the mean loss.

    An architecture adds its weights and three methods: `hidden_states(ids, ctx, previous)` runs embedding and blocks,
    `head(hidden)` gives fp32 logits, `loss(hidden, targets, weights)` is the mean cross-entropy of hidden states (N, C).
    """

    cos: Tensor
    sin: Tensor

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        self.config = config
        self.compute_dtype = torch.float32
        self.attention_kernel = "blocked"  # or another of `probe.py`; the runtime decides
        self.make_rotary_tables()

    def make_rotary_tables(self) -> None:
        """Cosines and sines for every position; they follow from the configuration and are not saved."""
        cos, sin = rotary_tables(self.config.context, self.config.head_dim, self.config.rotary_base)
        self.register_buffer("cos", cos, persistent=False)
        self.register_buffer("sin", sin, persistent=False)

    def hidden_states(self, ids: Tensor, ctx: AttentionContext, previous: Tensor | None = None) -> Tensor:
        """What the head reads, (B, T, C). `previous` (B,): in decoding, the token before each row's first, -1 for none."""
        raise NotImplementedError

    def head(self, hidden: Tensor) -> Tensor:
        raise NotImplementedError

    def loss(self, hidden: Tensor, targets: Tensor, weights: Tensor | None) -> Tensor:
        raise NotImplementedError

    def set_precision(self: Model, dtype: torch.dtype, attention_kernel: str = "blocked", *, fp8: bool = False) -> Model:
        """Compute in `dtype` with this attention kernel, blocks in fp8 while training (the weights stay as they are stored)."""
        self.compute_dtype, self.attention_kernel = dtype, attention_kernel
        use_fp8(self, fp8)
        return self

    @torch.no_grad()
    def for_inference(self: Model) -> Model:
        """A frozen model whose matrices are stored in the compute dtype, so that decoding need not cast them.

        Tensors that are in that dtype already are shared with this model, not copied: do not train it meanwhile.
        """
        with WithoutWeights():
            frozen = type(self)(self.config).set_precision(self.compute_dtype, self.attention_kernel)
        for name, module in self.named_modules():
            dtype = self.compute_dtype if isinstance(module, (nn.Linear, nn.Embedding)) else None
            theirs = frozen.get_submodule(name)
            for key, p in module.named_parameters(recurse=False):
                setattr(theirs, key, nn.Parameter(p.detach().to(dtype or p.dtype), requires_grad=False))
        frozen.cos, frozen.sin = self.cos, self.sin
        return frozen.eval()

    @torch.no_grad()
    def follow(self, model: Decoder) -> None:
        """Take over another model's weights, in place. Those that `for_inference` shares with it are there already."""
        for own, other in zip(self.parameters(), model.parameters(), strict=True):
            if own.data_ptr() != other.data_ptr():
                own.copy_(other)

    def rows_context(self, ids: Tensor, offsets: Tensor | None = None) -> AttentionContext:
        """For whole rows (B, T) that start at position 0: each token sees its own document, within its layer's window."""
        T = ids.size(1)
        if T > self.config.context:
            raise ValueError(f"a row has {T} tokens; the model's context is {self.config.context}. Shorten the row.")
        dtype, documents = self.compute_dtype, (ids == self.config.bos_id).cumsum(1)
        masks = {w: make_mask(documents, w, self.attention_kernel, dtype, offsets) for w in set(self.config.windows())}
        positions = torch.arange(T, device=ids.device)
        return AttentionContext(positions=positions, cos=self.cos[:T].to(dtype), sin=self.sin[:T].to(dtype), masks=masks)

    def forward(
        self, ids: Tensor, targets: Tensor | None = None, weights: Tensor | None = None, offsets: Tensor | None = None
    ) -> Tensor:
        """Logits (B, T, V) in fp32, or with `targets` (B, T; -1 = ignored) the mean cross-entropy in nats.

        `weights` (B, T) multiplies each target's term of the loss. `offsets` are the `document_offsets` of ids, for a kernel
        that takes them; where they are given, the CPU need not wait for the device to find them.
        """
        hidden = self.hidden_states(ids, self.rows_context(ids, offsets))
        if targets is None:
            return self.head(hidden)
        return self.loss(hidden.flatten(0, 1), targets.flatten(), None if weights is None else weights.flatten())

    @torch.no_grad()  # not inference_mode: what it makes of parameters, torch.compile cannot trace
    def decode(
        self, ids: Tensor, cache: KVCache, tables: Tensor, start: Tensor, previous: Tensor, *, last_only: bool = False
    ) -> Tensor:
        """Tokens ids (B, T) of rows that hold `start` (B,) tokens, written into the rows' blocks: fp32 logits (B, T, V).

        tables (B, n) names each row's blocks, the new tokens' included. previous (B,) is the token before each row's first new
        one, -1 where there is none. With `last_only` just the logits of each row's last token are computed: (B, 1, V).
        """
        slots = cache.slots(tables, start, ids.size(1))
        cos, sin = (table[slots.positions].to(self.compute_dtype) for table in (self.cos, self.sin))  # (B, T, 1, D)
        x = self.hidden_states(ids, AttentionContext(positions=slots.positions, cos=cos, sin=sin, slots=slots), previous)
        return self.head(x[:, -1:] if last_only else x)
