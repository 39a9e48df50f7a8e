"""The `gpt2` architecture: OpenAI's GPT-2 (Radford et al. 2019), to open what others have trained.

Legend: B rows in a batch, T tokens in a row, C model width, H heads, D head width, V vocabulary.

Learned positions instead of rotation, LayerNorm with weight and bias, biases everywhere, GELU, the head is the embedding.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from nutshell.model.attention import AttentionContext
from nutshell.model.config import ModelConfig
from nutshell.model.decoder import Decoder
from nutshell.model.loss import cross_entropy

LAYER_NORM_EPS = 1e-5


class LayerNorm(nn.Module):
    """Mean 0 and variance 1, times a weight and plus a bias for each channel (arXiv 1607.06450)."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.weight, self.bias = nn.Parameter(torch.ones(channels)), nn.Parameter(torch.zeros(channels))

    def forward(self, x: Tensor) -> Tensor:
        return F.layer_norm(x, x.shape[-1:], self.weight.to(x.dtype), self.bias.to(x.dtype), LAYER_NORM_EPS)


class Linear(nn.Linear):
    """A linear with bias, whose fp32 weights are used in the activation's dtype."""

    def forward(self, x: Tensor) -> Tensor:
        return F.linear(x, self.weight.to(x.dtype), self.bias.to(x.dtype))


class Attention(nn.Module):
    """Causal self-attention; every head has its own keys and values."""

    def __init__(self, config: ModelConfig, layer: int) -> None:
        super().__init__()
        self.head_dim, self.window, self.layer = config.head_dim, config.context, layer
        self.q, self.k, self.v, self.out = (Linear(config.width, config.width) for _ in range(4))

    def forward(self, x: Tensor, ctx: AttentionContext) -> Tensor:
        q, k, v = (linear(x).unflatten(-1, (-1, self.head_dim)) for linear in (self.q, self.k, self.v))
        y = ctx.attend(self.layer, self.window, q, k, v)  # (B, T, H, D)
        return self.out(y.flatten(2))


class MLP(nn.Module):
    """Up, GELU in its tanh form (arXiv 1606.08415), down."""

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        self.up, self.down = Linear(config.width, config.mlp_width), Linear(config.mlp_width, config.width)

    def forward(self, x: Tensor) -> Tensor:
        return self.down(F.gelu(self.up(x), approximate="tanh"))


class Block(nn.Module):
    def __init__(self, config: ModelConfig, layer: int) -> None:
        super().__init__()
        self.attention_norm, self.mlp_norm = LayerNorm(config.width), LayerNorm(config.width)
        self.attention, self.mlp = Attention(config, layer), MLP(config)

    def forward(self, x: Tensor, ctx: AttentionContext) -> Tensor:
        x = x + self.attention(self.attention_norm(x), ctx)
        return x + self.mlp(self.mlp_norm(x))


class GPT2(Decoder):
    """The `gpt2` architecture of `Decoder`."""

    def __init__(self, config: ModelConfig) -> None:
        super().__init__(config)
        self.embedding, self.positions = nn.Embedding(config.vocab_size, config.width), nn.Embedding(config.context, config.width)
        self.blocks = cast("Sequence[Block]", nn.ModuleList(Block(config, layer) for layer in range(config.depth)))
        self.final_norm = LayerNorm(config.width)
        self.initialize()

    def make_rotary_tables(self) -> None:
        """Nothing rotates here: tables without channels."""
        for name in ("cos", "sin"):
            self.register_buffer(name, torch.zeros(self.config.context, 1, 0), persistent=False)

    @torch.no_grad()
    def initialize(self, generator: torch.Generator | None = None) -> None:
        """Draw the initial weights as GPT-2's: deviation 0.02, what is added to the residual stream less by sqrt(2 depth)."""
        self.embedding.weight.normal_(0, 0.02, generator=generator)
        self.positions.weight.normal_(0, 0.02, generator=generator)
        for block in self.blocks:
            attention, mlp = block.attention, block.mlp
            for linear in (attention.q, attention.k, attention.v, mlp.up):
                linear.weight.normal_(0, 0.02, generator=generator)
            for linear in (attention.out, mlp.down):
                linear.weight.normal_(0, 0.02 / math.sqrt(2 * self.config.depth), generator=generator)
            for linear in (attention.q, attention.k, attention.v, attention.out, mlp.up, mlp.down):
                linear.bias.zero_()

    def hidden_states(self, ids: Tensor, ctx: AttentionContext, previous: Tensor | None = None) -> Tensor:
        """Embedding, all blocks and the last norm: (B, T, C). The token before a row's first does not matter here."""
        x = (self.embedding(ids) + self.positions(ctx.positions)).to(self.compute_dtype)
        for block in self.blocks:
            x = block(x, ctx)
        return self.final_norm(x)

    def head(self, hidden: Tensor) -> Tensor:
        """fp32 logits."""
        return F.linear(hidden, self.embedding.weight.to(hidden.dtype)).float()

    def loss(self, hidden: Tensor, targets: Tensor, weights: Tensor | None) -> Tensor:
        """Mean cross-entropy in nats of hidden states (N, C) at targets (N,)."""
        return cross_entropy(hidden, self.embedding.weight, targets, weights)
