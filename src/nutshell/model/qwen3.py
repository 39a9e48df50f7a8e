"""The `portable` architecture: Qwen3's (arXiv 2505.09388) or Llama's (arXiv 2302.13971), which transformers opens.

Legend: B rows in a batch, T tokens in a row, C model width, H query heads, K key/value heads, D head width, V vocabulary.

Weighted RMSNorms, queries and keys normed by head before RoPE, grouped queries, SwiGLU; no biases, windows or softcap. Without
`qk_norm` it is Llama's. Modules have the names of transformers' `Qwen3ForCausalLM` and `LlamaForCausalLM`, so a saved tensor is
called there what it is called here.
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
from nutshell.model.elementwise import rms_norm, rotate
from nutshell.model.gpt import Linear
from nutshell.model.loss import cross_entropy


class RMSNorm(nn.Module):
    """Root mean square 1, times a weight for each channel."""

    def __init__(self, channels: int, eps: float) -> None:
        super().__init__()
        self.eps = eps
        self.weight = nn.Parameter(torch.ones(channels))

    def forward(self, x: Tensor) -> Tensor:
        return rms_norm(x, eps=self.eps) * self.weight.to(x.dtype)


class Attention(nn.Module):
    """Causal self-attention; H / K query heads share a key/value head."""

    def __init__(self, config: ModelConfig, layer: int) -> None:
        super().__init__()
        self.head_dim, self.window, self.layer = config.head_dim, config.context, layer
        self.q_proj = Linear(config.width, config.heads * config.head_dim)
        self.k_proj = Linear(config.width, config.kv_heads * config.head_dim)
        self.v_proj = Linear(config.width, config.kv_heads * config.head_dim)
        self.o_proj = Linear(config.heads * config.head_dim, config.width)
        self.normed = config.qk_norm
        if self.normed:
            self.q_norm, self.k_norm = RMSNorm(config.head_dim, config.norm_eps), RMSNorm(config.head_dim, config.norm_eps)

    def forward(self, x: Tensor, ctx: AttentionContext) -> Tensor:
        q, k, v = (projection(x).unflatten(-1, (-1, self.head_dim)) for projection in (self.q_proj, self.k_proj, self.v_proj))
        if self.normed:
            q, k = self.q_norm(q), self.k_norm(k)
        q, k = rotate(q, ctx.cos, ctx.sin), rotate(k, ctx.cos, ctx.sin)
        y = ctx.attend(self.layer, self.window, q, k, v)  # (B, T, H, D)
        return self.o_proj(y.flatten(2))


class MLP(nn.Module):
    """SwiGLU (arXiv 2002.05202)."""

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        self.gate_proj = Linear(config.width, config.mlp_width)
        self.up_proj = Linear(config.width, config.mlp_width)
        self.down_proj = Linear(config.mlp_width, config.width)

    def forward(self, x: Tensor) -> Tensor:
        return self.down_proj(F.silu(self.gate_proj(x)) * self.up_proj(x))


class Layer(nn.Module):
    def __init__(self, config: ModelConfig, layer: int) -> None:
        super().__init__()
        self.input_layernorm = RMSNorm(config.width, config.norm_eps)
        self.self_attn = Attention(config, layer)
        self.post_attention_layernorm = RMSNorm(config.width, config.norm_eps)
        self.mlp = MLP(config)

    def forward(self, x: Tensor, ctx: AttentionContext) -> Tensor:
        x = x + self.self_attn(self.input_layernorm(x), ctx)
        return x + self.mlp(self.post_attention_layernorm(x))


class Layers(nn.Module):
    """Embedding, layers and last norm, which transformers' names call `model`."""

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        self.embed_tokens = nn.Embedding(config.vocab_size, config.width)
        self.layers = cast("Sequence[Layer]", nn.ModuleList(Layer(config, layer) for layer in range(config.depth)))
        self.norm = RMSNorm(config.width, config.norm_eps)


class Qwen3(Decoder):
    """The `portable` architecture of `Decoder`."""

    def __init__(self, config: ModelConfig) -> None:
        super().__init__(config)
        self.model = Layers(config)
        self.lm_head = None if config.tied else Linear(config.width, config.vocab_size)
        self.initialize()

    def make_rotary_tables(self) -> None:
        super().make_rotary_tables()
        self.sin.neg_()  # transformers turns queries and keys by plus the angle, `rotate` by minus

    @property
    def head_weight(self) -> Tensor:
        """(V, C): the embedding where it is tied."""
        return self.model.embed_tokens.weight if self.lm_head is None else self.lm_head.weight

    @torch.no_grad()
    def initialize(self, generator: torch.Generator | None = None) -> None:
        """Draw the initial weights as `speed` does: output projections of zero make the first loss about ln V."""
        C = self.config.width
        for layer in self.model.layers:
            attention, mlp = layer.self_attn, layer.mlp
            for linear in (attention.q_proj, attention.k_proj, attention.v_proj, mlp.gate_proj, mlp.up_proj):
                linear.weight.uniform_(-math.sqrt(3 / C), math.sqrt(3 / C), generator=generator)  # standard deviation C^-1/2
            attention.o_proj.weight.zero_()
            mlp.down_proj.weight.zero_()
        embedding = self.model.embed_tokens.weight
        if self.lm_head is not None:
            embedding.normal_(0, 0.8, generator=generator)
            self.lm_head.weight.normal_(0, 0.001, generator=generator)
        else:
            # A token's normed embedding meets itself in the head, so its own logit begins at C times this: 3.
            embedding.normal_(0, 3 / C, generator=generator)

    def hidden_states(self, ids: Tensor, ctx: AttentionContext, previous: Tensor | None = None) -> Tensor:
        """Embedding, all layers and the last norm: (B, T, C). The token before a row's first does not matter here."""
        x = self.model.embed_tokens(ids).to(self.compute_dtype)
        for layer in self.model.layers:
            x = layer(x, ctx)
        return self.model.norm(x)

    def head(self, hidden: Tensor) -> Tensor:
        """fp32 logits."""
        return F.linear(hidden, self.head_weight.to(hidden.dtype)).float()

    def loss(self, hidden: Tensor, targets: Tensor, weights: Tensor | None) -> Tensor:
        """Mean cross-entropy in nats of hidden states (N, C) at targets (N,)."""
        return cross_entropy(hidden, self.head_weight, targets, weights)
