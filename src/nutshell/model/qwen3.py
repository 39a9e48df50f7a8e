"""The `portable` architecture: Qwen3's, so that transformers opens what is saved (arXiv 2505.09388).

Legend: B rows in a batch, T tokens in a row, C model width, H query heads, K key/value heads, D head width, V vocabulary.

Weighted RMSNorms, queries and keys normed by head before RoPE, grouped queries, SwiGLU; no biases, windows or softcap. Modules
have the names of transformers' `Qwen3ForCausalLM`, so a saved tensor is called there what it is called here.
"""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from nutshell.model.attention import Mask, causal_attention, decode_attention
from nutshell.model.config import ModelConfig
from nutshell.model.decoder import Decoder
from nutshell.model.elementwise import rms_norm, rotate
from nutshell.model.gpt import Linear
from nutshell.model.kv_cache import Place
from nutshell.model.loss import cross_entropy


class RMSNorm(nn.Module):
    """Root mean square 1, times a weight for each channel."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(channels))

    def forward(self, x: Tensor) -> Tensor:
        return rms_norm(x) * self.weight.to(x.dtype)


class Attention(nn.Module):
    """Causal self-attention; H / K query heads share a key/value head."""

    def __init__(self, config: ModelConfig, layer: int) -> None:
        super().__init__()
        self.head_dim, self.window, self.layer = config.head_dim, config.context, layer
        self.q_proj = Linear(config.width, config.heads * config.head_dim)
        self.k_proj = Linear(config.width, config.kv_heads * config.head_dim)
        self.v_proj = Linear(config.width, config.kv_heads * config.head_dim)
        self.o_proj = Linear(config.heads * config.head_dim, config.width)
        self.q_norm, self.k_norm = RMSNorm(config.head_dim), RMSNorm(config.head_dim)

    def qkv(self, x: Tensor, rotary: tuple[Tensor, Tensor]) -> tuple[Tensor, ...]:
        """Queries (B, T, H, D), keys and values (B, T, K, D)."""
        q, k, v = (projection(x).unflatten(-1, (-1, self.head_dim)) for projection in (self.q_proj, self.k_proj, self.v_proj))
        return rotate(self.q_norm(q), *rotary), rotate(self.k_norm(k), *rotary), v

    def forward(self, x: Tensor, rotary: tuple[Tensor, Tensor], mask: Mask) -> Tensor:
        return self.o_proj(causal_attention(*self.qkv(x, rotary), mask).flatten(2))

    def decode(self, x: Tensor, rotary: tuple[Tensor, Tensor], place: Place) -> Tensor:
        q, k, v = self.qkv(x, rotary)
        keys, values = place.append(self.layer, k, v)
        return self.o_proj(decode_attention(q, keys, values, place.start, self.window).flatten(2))


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
        self.input_layernorm = RMSNorm(config.width)
        self.self_attn = Attention(config, layer)
        self.post_attention_layernorm = RMSNorm(config.width)
        self.mlp = MLP(config)

    def forward(self, x: Tensor, attend) -> Tensor:
        x = x + attend(self.self_attn, self.input_layernorm(x))
        return x + self.mlp(self.post_attention_layernorm(x))


class PortableGPT(Decoder):
    """The `portable` architecture of `Decoder`."""

    def __init__(self, config: ModelConfig) -> None:
        super().__init__(config)
        self.sin.neg_()  # transformers turns queries and keys by plus the angle, `rotate` by minus
        layers = nn.ModuleList(Layer(config, layer) for layer in range(config.depth))
        embedding = nn.Embedding(config.vocab_size, config.width)
        self.model = nn.ModuleDict({"embed_tokens": embedding, "layers": layers, "norm": RMSNorm(config.width)})
        self.lm_head = None if config.tied else Linear(config.width, config.vocab_size)
        self.initialize()

    @property
    def head_weight(self) -> Tensor:
        """(V, C): the embedding where it is tied."""
        return self.model["embed_tokens"].weight if self.lm_head is None else self.lm_head.weight

    @torch.no_grad()
    def initialize(self, generator: torch.Generator | None = None) -> None:
        """Draw the initial weights as `speed` does: output projections of zero make the first loss about ln V."""
        C = self.config.width
        for layer in self.model["layers"]:
            attention, mlp = layer.self_attn, layer.mlp
            for linear in (attention.q_proj, attention.k_proj, attention.v_proj, mlp.gate_proj, mlp.up_proj):
                linear.weight.uniform_(-math.sqrt(3 / C), math.sqrt(3 / C), generator=generator)  # standard deviation C^-1/2
            attention.o_proj.weight.zero_()
            mlp.down_proj.weight.zero_()
        embedding = self.model["embed_tokens"].weight
        if self.lm_head is not None:
            embedding.normal_(0, 0.8, generator=generator)
            self.lm_head.weight.normal_(0, 0.001, generator=generator)
        else:
            # A token's normed embedding meets itself in the head, so its own logit begins at C times this: 3.
            embedding.normal_(0, 3 / C, generator=generator)

    def embed(self, ids: Tensor, previous: Tensor | None = None) -> Tensor:
        """Token embeddings (B, T, C); the token before a row's first does not matter here."""
        return self.model["embed_tokens"](ids).to(self.compute_dtype)

    def trunk(self, ids: Tensor, x: Tensor, attend) -> Tensor:
        """All layers and the last norm: (B, T, C)."""
        for layer in self.model["layers"]:
            x = layer(x, attend)
        return self.model["norm"](x)

    def head(self, hidden: Tensor) -> Tensor:
        """fp32 logits."""
        return F.linear(hidden, self.head_weight.to(hidden.dtype)).float()

    def loss(self, hidden: Tensor, targets: Tensor, weights: Tensor | None) -> Tensor:
        """Mean cross-entropy in nats of hidden states (N, C) at targets (N,)."""
        return cross_entropy(hidden, self.head_weight, targets, weights)
