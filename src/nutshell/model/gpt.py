"""The `speed` architecture: a GPT that learns as much as possible per second.

Legend: B rows in a batch, T tokens in a row, C model width, H query heads, K key/value heads, D head width, V vocabulary.

Every idea names its source in `docs/design.md`; the formulas are in one place each:
weightless RMSNorm, RoPE then QK-norm, relu^2 MLP, value embeddings, smear, per-layer residual scales, backout, softcap.
"""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from nutshell.model.attention import Mask, causal_attention, decode_attention
from nutshell.model.config import SMEAR_CHANNELS, VALUE_GATE_CHANNELS, ModelConfig
from nutshell.model.decoder import Decoder
from nutshell.model.elementwise import relu_squared, rms_norm, rotate
from nutshell.model.fp8 import Fp8Weight
from nutshell.model.kv_cache import Place
from nutshell.model.loss import SOFTCAP, softcap_cross_entropy

QK_SCALE = 1.2


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
        self.window = config.windows()[layer]
        self.layer = layer
        self.q = Linear(config.width, config.heads * config.head_dim)
        self.k = Linear(config.width, config.kv_heads * config.head_dim)
        self.v = Linear(config.width, config.kv_heads * config.head_dim)
        self.out = Linear(config.heads * config.head_dim, config.width)
        self.value_gate = Linear(VALUE_GATE_CHANNELS, config.kv_heads) if config.has_value_embedding(layer) else None

    def qkv(self, x: Tensor, value_embedding: Tensor | None, rotary: tuple[Tensor, Tensor]) -> tuple[Tensor, ...]:
        """Queries (B, T, H, D), keys and values (B, T, K, D)."""
        B, T, _ = x.shape
        # One product for queries and keys: both get the same rotation and norm afterwards.
        if self.q.fp8 is not None and torch.is_grad_enabled():  # and for values: the input is quantised once
            qk, v = self.q.fp8(x).split([(self.heads + self.kv_heads) * self.head_dim, self.kv_heads * self.head_dim], dim=-1)
        else:
            qk, v = F.linear(x, torch.cat([self.q.weight, self.k.weight]).to(x.dtype)), self.v(x)
        qk = qk.view(B, T, self.heads + self.kv_heads, self.head_dim)
        qk = rms_norm(rotate(qk, *rotary), QK_SCALE)
        q, k = qk.split([self.heads, self.kv_heads], dim=2)
        v = v.view(B, T, self.kv_heads, self.head_dim)
        if self.value_gate is not None and value_embedding is not None:
            gate = 3 * torch.sigmoid(self.value_gate(x[..., :VALUE_GATE_CHANNELS]))  # (B, T, K)
            v = v + gate.unsqueeze(-1) * value_embedding.view(B, T, self.kv_heads, self.head_dim)
        return q, k, v

    def forward(self, x: Tensor, value_embedding: Tensor | None, rotary: tuple[Tensor, Tensor], mask: Mask) -> Tensor:
        q, k, v = self.qkv(x, value_embedding, rotary)
        y = causal_attention(q, k, v, mask)  # (B, T, H, D)
        return self.out(y.flatten(2))

    def decode(self, x: Tensor, value_embedding: Tensor | None, rotary: tuple[Tensor, Tensor], place: Place) -> Tensor:
        q, k, v = self.qkv(x, value_embedding, rotary)
        keys, values = place.append(self.layer, k, v)
        y = decode_attention(q, keys, values, place.start, self.window)
        return self.out(y.flatten(2))


class MLP(nn.Module):
    """Up to 4C, relu squared, down."""

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        self.up = Linear(config.width, 4 * config.width)
        self.down = Linear(4 * config.width, config.width)

    def forward(self, x: Tensor) -> Tensor:
        return self.down(relu_squared(self.up(x)))


class Block(nn.Module):
    def __init__(self, config: ModelConfig, layer: int) -> None:
        super().__init__()
        self.attention = Attention(config, layer)
        self.mlp = MLP(config)

    def forward(self, x: Tensor, attend) -> Tensor:
        x = x + attend(self.attention, rms_norm(x))
        return x + self.mlp(rms_norm(x))


class GPT(Decoder):
    """The `speed` architecture of `Decoder`."""

    def __init__(self, config: ModelConfig) -> None:
        super().__init__(config)
        kv_width = config.kv_heads * config.head_dim
        self.embedding = nn.Embedding(config.vocab_size, config.width)
        self.value_embeddings = nn.ModuleDict(
            {str(i): nn.Embedding(config.vocab_size, kv_width) for i in range(config.depth) if config.has_value_embedding(i)}
        )
        self.blocks = nn.ModuleList(Block(config, layer) for layer in range(config.depth))
        self.lm_head = Linear(config.width, config.vocab_size)
        self.residual_scale = nn.Parameter(torch.empty(config.depth))  # r
        self.embedding_scale = nn.Parameter(torch.empty(config.depth))  # a
        self.smear_gate = Linear(SMEAR_CHANNELS, 1)
        self.smear_lambda = nn.Parameter(torch.empty(1))
        self.backout = nn.Parameter(torch.empty(1))
        self.initialize()

    @torch.no_grad()
    def initialize(self, generator: torch.Generator | None = None) -> None:
        """Draw the initial weights (RECIPE: zero output projections make the first loss exactly ln V)."""
        config = self.config

        def uniform(weight: Tensor, std: float) -> None:
            bound = math.sqrt(3) * std
            weight.uniform_(-bound, bound, generator=generator)

        self.embedding.weight.normal_(0, 0.8, generator=generator)
        self.lm_head.weight.normal_(0, 0.001, generator=generator)
        std = config.width**-0.5
        for embedding in self.value_embeddings.values():
            uniform(embedding.weight, std)
        for block in self.blocks:
            for linear in (block.attention.q, block.attention.k, block.attention.v):
                uniform(linear.weight, std)
            uniform(block.mlp.up.weight, 0.4 * std)
            block.attention.out.weight.zero_()
            block.mlp.down.weight.zero_()
            if block.attention.value_gate is not None:
                block.attention.value_gate.weight.uniform_(0, 0.02, generator=generator)
        self.smear_gate.weight.uniform_(0, 0.02, generator=generator)
        self.smear_lambda.zero_()
        self.backout.fill_(0.2)
        self.residual_scale.copy_(torch.linspace(1.15, 1.05, config.depth))
        self.embedding_scale.copy_(torch.linspace(0.20, 0.05, config.depth))

    def embed(self, ids: Tensor, previous: Tensor | None = None) -> Tensor:
        """Normed token embeddings (B, T, C), each smeared with its predecessor's unless it starts a document.

        `previous` (B,) is the token before the first of each row, -1 where there is none.
        """
        x = rms_norm(self.embedding(ids).to(self.compute_dtype))
        if previous is None:
            first = torch.zeros_like(x[:, :1])
        else:
            first = rms_norm(self.embedding(previous.clamp(min=0)).to(x.dtype)) * (previous >= 0).unsqueeze(-1)
            first = first.unsqueeze(1)
        before = torch.cat([first, x[:, :-1]], dim=1)
        gate = self.smear_lambda.to(x.dtype) * torch.sigmoid(self.smear_gate(x[..., :SMEAR_CHANNELS]))  # (B, T, 1)
        return x + gate * (ids != self.config.bos_id).unsqueeze(-1) * before

    def trunk(self, ids: Tensor, x: Tensor, attend) -> Tensor:
        """All blocks and the last norm, from embeddings to the hidden states the head reads: (B, T, C)."""
        x0 = x
        middle = self.config.depth // 2
        backout = x
        for layer, block in enumerate(self.blocks):
            x = self.residual_scale[layer].to(x.dtype) * x + self.embedding_scale[layer].to(x.dtype) * x0
            table = self.value_embeddings[str(layer)] if str(layer) in self.value_embeddings else None
            value_embedding = None if table is None else table(ids).to(x.dtype)
            x = block(x, lambda attention, y, ve=value_embedding: attend(attention, y, ve))
            if layer == middle:
                backout = x
        return rms_norm(x - self.backout.to(x.dtype) * backout)

    def head(self, hidden: Tensor) -> Tensor:
        """fp32 logits, capped smoothly to +-15."""
        return SOFTCAP * torch.tanh(self.lm_head(hidden).float() / SOFTCAP)

    def loss(self, hidden: Tensor, targets: Tensor, weights: Tensor | None) -> Tensor:
        """Mean cross-entropy in nats of hidden states (N, C) at targets (N,)."""
        return softcap_cross_entropy(hidden, self.lm_head.weight, targets, weights)
