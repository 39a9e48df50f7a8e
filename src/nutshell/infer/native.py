"""Decoding on CPU in one native call per step for all rows and layers (`rust/src/decode`): weights and cache for it.

Every sequence's logits are the same bits alone and in a full batch, in every dtype.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from functools import cache
from typing import Any, cast

import torch
from torch import Tensor, nn

from nutshell.infer.blocks import Chunk
from nutshell.model.elementwise import RMS_EPS
from nutshell.model.gpt import GPT
from nutshell.model.kv_cache import KVCache
from nutshell.model.qwen3 import Qwen3

try:
    from nutshell.tokenizer._bpe import Decoder, instructions
except ImportError:  # an extension that was built before it had a decoder
    Decoder = None  # type: ignore[assignment, misc]

KINDS = {torch.float32: "float32", torch.bfloat16: "bfloat16"}

Weights = dict[str, Sequence[Tensor]]
"""Tensors by the names of `rust/src/decode/model.rs`; several are one below the other."""


def why_not(model: Any) -> str | None:
    """Why this model cannot be decoded natively; None where it can."""
    if Decoder is None:
        return "the extension was built without it: run `make setup` again"
    if type(model) not in (GPT, Qwen3):
        return f"it knows GPT and Qwen3, and this is a {type(model).__name__}"
    if not model.config.qk_norm or model.config.norm_eps != RMS_EPS:
        return "it norms queries and keys, with an epsilon of 1e-6"
    if next(model.parameters()).device.type != "cpu":
        return "the model is not on the CPU"
    if model.compute_dtype not in KINDS:
        return f"it computes in float32 and bfloat16, not in {str(model.compute_dtype).removeprefix('torch.')}"
    return None


@cache
def free_threads(most: int) -> int:
    """A thread for each core that nobody uses when this is first asked, at most `most`. Threads meet five times a layer: where
    other programs hold the cores, two of them took 12 times as long as one (two busy cores, one row)."""
    if most == 1 or not hasattr(os, "getloadavg"):  # Windows
        return most
    return max(1, min(most, round((os.cpu_count() or 1) - os.getloadavg()[0])))


def kind_of(model: Any, int8: bool) -> str:
    """How weights are stored."""
    return "int8" if int8 else KINDS[model.compute_dtype]


def describe(model: Any, int8: bool) -> str:
    """What a `NativeRunner` computes with, for people."""
    kind, threads = kind_of(model, int8), free_threads(torch.get_num_threads())
    return f"native ({kind}, {instructions(kind)}, {threads} thread{'s' * (threads > 1)})"


class NativeRunner:
    """The `Runner` of models on CPU. Matrices are copied in the kind they are multiplied in, embeddings are read where the model
    has them: after changing it call `take_weights`."""

    def __init__(
        self, model: Any, vocab_size: int, rows: int, context: int, blocks: int | None = None, *, int8: bool = False
    ) -> None:
        self.model, self.vocab_size, self.int8 = model, vocab_size, int8
        self.cache = KVCache(model.config, rows, context, dtype=model.compute_dtype, blocks=blocks)
        self.logits = torch.zeros(rows, -(-vocab_size // 16) * 16)
        self.take_weights()

    def take_weights(self) -> None:
        model = self.model
        weights = named_weights(model, self.vocab_size)
        self.tables = {name: parts[0].detach() for name, parts in weights.items() if name.endswith("embedding")}
        self.decoder = Decoder(
            native_shape(model, self.vocab_size),
            lambda name: torch.cat([part.detach().float().flatten() for part in weights[name]]).numpy().tobytes(),
            lambda name: (*lent(self.tables[name]), self.tables[name].dtype == torch.bfloat16),
            kind=kind_of(model, self.int8), threads=free_threads(torch.get_num_threads()),
            blocks=self.cache.keys.size(1), bf16=model.compute_dtype == torch.bfloat16,
            keys=lent(self.cache.keys), values=lent(self.cache.values), logits=lent(self.logits),
        )  # fmt: skip

    def forward(self, chunks: Sequence[Chunk]) -> tuple[Tensor, list[int]]:
        best = self.decoder.step([(chunk.blocks, chunk.start, chunk.previous, chunk.ids) for chunk in chunks])
        return self.logits[: len(chunks), : self.vocab_size], best


def lent(tensor: Tensor) -> tuple[int, int]:
    """Address and numbers of a tensor, for native code that reads and writes it in place."""
    assert tensor.is_contiguous()
    return tensor.data_ptr(), tensor.numel()


def native_shape(model: Any, vocab_size: int) -> dict[str, Any]:
    """The fields of `Shape` in `rust/src/decode/model.rs`."""
    config, speed = model.config, isinstance(model, GPT)
    return {
        "vocab_size": vocab_size,
        "width": config.width,
        "heads": config.heads,
        "kv_heads": config.kv_heads,
        "head_dim": config.head_dim,
        "mlp_width": 4 * config.width if speed else config.mlp_width,
        "context": config.context,
        "windows": config.windows(),
        "bos_id": config.bos_id,
        "softcap": config.softcap if speed else 0.0,
        "normed_embedding": speed,
        "gated_mlp": not speed,
        "smear": speed and config.smear,
        "backout": speed and config.has_backout,
        "value_embeddings": [speed and config.has_value_embedding(layer) for layer in range(config.depth)],
    }


def named_weights(model: Any, vocab_size: int) -> Weights:
    """The weights of either architecture, under the names that the native side asks for."""
    tables: Weights = {"cos": [model.cos], "sin": [model.sin]}
    return tables | (_speed(model, vocab_size) if isinstance(model, GPT) else _portable(model, vocab_size))


def _speed(model: GPT, vocab_size: int) -> Weights:
    """`speed` has norms without weights; those of queries and keys are `qk_scale`."""
    config = model.config
    ones, qk_norm = torch.ones(config.width), torch.full((config.head_dim,), config.qk_scale)
    weights: Weights = {
        "embedding": [model.embedding.weight[:vocab_size]],
        "head": [model.lm_head.weight[:vocab_size]],
        "final_norm": [ones],
    }
    if config.smear:
        weights |= {"smear_gate": [model.smear_gate.weight], "smear_lambda": [model.smear_lambda]}
    if config.has_backout:
        weights["backout"] = [model.backout]
    for i, block in enumerate(model.blocks):
        attention, mlp = block.attention, block.mlp
        scales = [model.residual_scale[i : i + 1], model.embedding_scale[i : i + 1]] if config.residual_scales else None
        layer: Weights = {
            "scales": scales or [torch.tensor([1.0, 0.0])],
            "attention_norm": [ones],
            "qkv": [attention.q.weight, attention.k.weight, attention.v.weight],
            "query_norm": [qk_norm],
            "key_norm": [qk_norm],
            "out": [attention.out.weight],
            "mlp_norm": [ones],
            "up": [mlp.up.weight],
            "down": [mlp.down.weight],
        }
        if attention.value_gate is not None:
            table = cast(nn.Embedding, model.value_embeddings[str(i)])
            layer |= {"value_embedding": [table.weight[:vocab_size]], "value_gate": [attention.value_gate.weight]}
        weights |= {f"{i}.{name}": tensors for name, tensors in layer.items()}
    return weights


def _portable(model: Qwen3, vocab_size: int) -> Weights:
    weights: Weights = {
        "embedding": [model.model.embed_tokens.weight[:vocab_size]],
        "head": [model.head_weight[:vocab_size]],
        "final_norm": [model.model.norm.weight],
    }
    for i, block in enumerate(model.model.layers):
        attention, mlp = block.self_attn, block.mlp
        layer: Weights = {
            "scales": [torch.tensor([1.0, 0.0])],
            "attention_norm": [block.input_layernorm.weight],
            "qkv": [attention.q_proj.weight, attention.k_proj.weight, attention.v_proj.weight],
            "query_norm": [attention.q_norm.weight],
            "key_norm": [attention.k_norm.weight],
            "out": [attention.o_proj.weight],
            "mlp_norm": [block.post_attention_layernorm.weight],
            "gate": [mlp.gate_proj.weight],
            "up": [mlp.up_proj.weight],
            "down": [mlp.down_proj.weight],
        }
        weights |= {f"{i}.{name}": tensors for name, tensors in layer.items()}
    return weights
