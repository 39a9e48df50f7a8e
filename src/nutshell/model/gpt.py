"""The `speed` architecture: a GPT that learns as much as possible per second.

Legend: B rows in a batch, T tokens in a row, C model width, H query heads, K key/value heads, D head width, V vocabulary.

Every idea names its source in `docs/design.md`; the formulas are in one place each:
weightless RMSNorm, RoPE then QK-norm, relu^2 MLP, value embeddings, smear, per-layer residual scales, backout, softcap.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from nutshell.model.attention import AttentionContext
from nutshell.model.config import SMEAR_CHANNELS, VALUE_GATE_CHANNELS, ModelConfig
from nutshell.model.decoder import Decoder
from nutshell.model.elementwise import relu_squared_linear, rms_norm, rotate
from nutshell.model.fp8 import Fp8Weight
from nutshell.model.loss import cross_entropy


class Linear(nn.Linear):
    """A bias-free linear whose fp32 master weight is used in the activation's dtype, or in fp8 while training."""

    fp8: Fp8Weight | None = None

    def __init__(self, inputs: int, outputs: int) -> None:
        super().__init__(inputs, outputs, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        if self.fp8 is not None and torch.is_grad_enabled():
            return self.fp8(x)
        return F.linear(x, self.weight.to(x.dtype))


class Attention(nn.Module):
    """Causal self-attention over a window, with RoPE, QK-norm and gated value embeddings."""

    def __init__(self, config: ModelConfig, layer: int) -> None:
        super().__init__()
        self.heads, self.kv_heads, self.head_dim = config.heads, config.kv_heads, config.head_dim
        self.qk_scale, self.window, self.layer = config.qk_scale, config.windows()[layer], layer
        self.q = Linear(config.width, config.heads * config.head_dim)
        self.k = Linear(config.width, config.kv_heads * config.head_dim)
        self.v = Linear(config.width, config.kv_heads * config.head_dim)
        self.out = Linear(config.heads * config.head_dim, config.width)
        self.value_gate = Linear(VALUE_GATE_CHANNELS, config.kv_heads) if config.has_value_embedding(layer) else None

    def qkv(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """Queries and keys side by side (B, T, H + K, D), values (B, T, K, D)."""
        qk_width, v_width = (self.heads + self.kv_heads) * self.head_dim, self.kv_heads * self.head_dim
        if self.q.fp8 is not None and torch.is_grad_enabled():  # all three at once: the input is quantised once
            qk, v = self.q.fp8(x).split([qk_width, v_width], dim=-1)
        else:
            qk, v = torch.cat([self.q(x), self.k(x)], dim=-1), self.v(x)
        return qk.unflatten(-1, (-1, self.head_dim)), v.unflatten(-1, (-1, self.head_dim))

    def forward(self, x: Tensor, ctx: AttentionContext, value_embedding: Tensor | None) -> Tensor:
        qk, v = self.qkv(x)
        qk = rms_norm(rotate(qk, ctx.cos, ctx.sin), self.qk_scale)  # both get the same rotation and norm
        q, k = qk.split([self.heads, self.kv_heads], dim=2)
        if self.value_gate is not None and value_embedding is not None:
            gate = 3 * torch.sigmoid(self.value_gate(x[..., :VALUE_GATE_CHANNELS]))  # (B, T, K)
            v = v + gate.unsqueeze(-1) * value_embedding.view(v.shape)
        y = ctx.attend(self.layer, self.window, q, k, v)  # (B, T, H, D)
        return self.out(y.flatten(2))


class MLP(nn.Module):
    """Up to 4C, relu squared, down."""

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        self.up = Linear(config.width, 4 * config.width)
        self.down = Linear(4 * config.width, config.width)

    def forward(self, x: Tensor) -> Tensor:
        if self.down.fp8 is not None and torch.is_grad_enabled():
            return self.down.fp8(F.relu(self.up(x)).square())
        return relu_squared_linear(self.up(x), self.down.weight.to(x.dtype))


class Block(nn.Module):
    def __init__(self, config: ModelConfig, layer: int) -> None:
        super().__init__()
        self.attention = Attention(config, layer)
        self.mlp = MLP(config)

    def forward(self, x: Tensor, ctx: AttentionContext, value_embedding: Tensor | None = None) -> Tensor:
        x = x + self.attention(rms_norm(x), ctx, value_embedding)
        return x + self.mlp(rms_norm(x))


class GPT(Decoder):
    """The `speed` architecture of `Decoder`."""

    def __init__(self, config: ModelConfig) -> None:
        super().__init__(config)
        kv_width = config.kv_heads * config.head_dim
        self.embedding = nn.Embedding(config.vocab_size, config.width)
        gated = [str(layer) for layer in range(config.depth) if config.has_value_embedding(layer)]
        self.value_embeddings = nn.ModuleDict({layer: nn.Embedding(config.vocab_size, kv_width) for layer in gated})
        self.blocks = cast("Sequence[Block]", nn.ModuleList(Block(config, layer) for layer in range(config.depth)))
        self.lm_head = Linear(config.width, config.vocab_size)
        if config.residual_scales:
            self.residual_scale = nn.Parameter(torch.empty(config.depth))  # r
            self.embedding_scale = nn.Parameter(torch.empty(config.depth))  # a
        if config.smear:
            self.smear_gate = Linear(SMEAR_CHANNELS, 1)
            self.smear_lambda = nn.Parameter(torch.empty(1))
        if config.has_backout:
            self.backout = nn.Parameter(torch.empty(1))
        self.initialize()

    @torch.no_grad()
    def initialize(self, generator: torch.Generator | None = None) -> None:
        """Draw the initial weights. Output projections of zero make the first loss exactly ln V."""
        config = self.config

        def uniform(weight: Tensor, std: float) -> None:
            bound = math.sqrt(3) * std
            weight.uniform_(-bound, bound, generator=generator)

        self.embedding.weight.normal_(0, 0.8, generator=generator)
        self.lm_head.weight.normal_(0, 0.001, generator=generator)
        std = config.width**-0.5
        for embedding in self.value_embeddings.values():
            uniform(cast(nn.Embedding, embedding).weight, std)
        for block in self.blocks:
            for linear in (block.attention.q, block.attention.k, block.attention.v):
                uniform(linear.weight, std)
            uniform(block.mlp.up.weight, 0.4 * std)
            block.attention.out.weight.zero_()
            block.mlp.down.weight.zero_()
            if block.attention.value_gate is not None:
                block.attention.value_gate.weight.uniform_(0, 0.02, generator=generator)
        if config.smear:
            self.smear_gate.weight.uniform_(0, 0.02, generator=generator)
            self.smear_lambda.zero_()
        if config.has_backout:
            self.backout.fill_(0.2)
        if config.residual_scales:
            self.residual_scale.copy_(torch.linspace(1.15, 1.05, config.depth))
            self.embedding_scale.copy_(torch.linspace(0.20, 0.05, config.depth))

    def embed(self, ids: Tensor, previous: Tensor | None = None) -> Tensor:
        """Normed token embeddings (B, T, C), each smeared with its predecessor's unless it starts a document."""
        x = rms_norm(self.embedding(ids).to(self.compute_dtype))
        if not self.config.smear:
            return x
        first = torch.zeros_like(x[:, :1])
        if previous is not None:
            known = rms_norm(self.embedding(previous.clamp(min=0)).to(x.dtype)) * (previous >= 0).unsqueeze(-1)
            first = known.unsqueeze(1)
        before = torch.cat([first, x[:, :-1]], dim=1)
        gate = self.smear_lambda.to(x.dtype) * torch.sigmoid(self.smear_gate(x[..., :SMEAR_CHANNELS]))  # (B, T, 1)
        return x + gate * (ids != self.config.bos_id).unsqueeze(-1) * before

    def hidden_states(self, ids: Tensor, ctx: AttentionContext, previous: Tensor | None = None) -> Tensor:
        """Embedding, all blocks and the last norm: (B, T, C)."""
        x = x0 = self.embed(ids, previous)
        middle = x
        for layer, block in enumerate(self.blocks):
            if self.config.residual_scales:
                x = self.residual_scale[layer].to(x.dtype) * x + self.embedding_scale[layer].to(x.dtype) * x0
            value_embedding = None
            if self.config.has_value_embedding(layer):
                value_embedding = self.value_embeddings[str(layer)](ids).to(x.dtype)
            x = block(x, ctx, value_embedding)
            if layer == self.config.depth // 2:
                middle = x
        if self.config.has_backout:
            x = x - self.backout.to(x.dtype) * middle
        return rms_norm(x)

    def head(self, hidden: Tensor) -> Tensor:
        """fp32 logits, with `softcap` c capped smoothly to +-c."""
        logits, cap = self.lm_head(hidden).float(), self.config.softcap
        return cap * torch.tanh(logits / cap) if cap else logits

    def loss(self, hidden: Tensor, targets: Tensor, weights: Tensor | None) -> Tensor:
        """Mean cross-entropy in nats of hidden states (N, C) at targets (N,)."""
        return cross_entropy(hidden, self.lm_head.weight, targets, weights, softcap=self.config.softcap)
