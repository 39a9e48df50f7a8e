"""A model's weights under the names that native code asks for (rust/src/decode): of a model in torch, or of a folder."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from nutshell.model.config import ModelConfig

Numbers = Any
"""A tensor of torch's or an array: fp32, or bf16 (in arrays as uint16)."""
Weights = dict[str, Sequence[Numbers]]
"""Several are one below the other."""


@dataclass(frozen=True)
class StoredModel:
    """A model folder from which native code takes its weights."""

    folder: Path
    config: ModelConfig
    compute_dtype: str

    def weights(self) -> dict[str, Numbers]:
        """By parameter name, mapped from the file; ValueError where they are not fp32. Matrices are rounded to bf16 where that
        is what is computed in, as `Decoder.for_inference` does, when they are taken (`taken`)."""
        path = self.folder / "model.safetensors"
        whole = np.memmap(path, np.uint8, "r")
        size = int(whole[:8].view("<u8")[0])
        header = json.loads(whole[8 : 8 + size].tobytes())
        found = {}
        for name, entry in header.items():
            if name == "__metadata__":
                continue
            if entry["dtype"] != "F32":
                raise ValueError(f"{path} has {entry['dtype']} for {name}; accepted: F32, as nutshell saves weights.")
            start, end = (8 + size + offset for offset in entry["data_offsets"])
            found[name] = whole[start:end].view("<f4").reshape(entry["shape"])
        return found

    def taken(self, numbers: Numbers) -> Numbers:
        """What native code is handed for one of `weights`."""
        return to_bf16(numbers) if numbers.ndim == 2 and self.compute_dtype == "bfloat16" else np.array(numbers)


def to_bf16(numbers: Numbers) -> Numbers:
    """Rounded to nearest, ties to even."""
    bits = np.ascontiguousarray(numbers, np.float32).view(np.uint32)
    return ((bits + (0x7FFF + ((bits >> 16) & 1))) >> 16).astype(np.uint16)


def named_weights(config: ModelConfig, of: dict[str, Numbers], vocab_size: int) -> Weights:
    """The weights `of` a model by parameter name, under the names that the native side asks for."""
    make = {"speed": _speed, "portable": _portable}[config.architecture]
    return rotary_tables(config) | make(config, of, vocab_size)


def rotary_tables(config: ModelConfig) -> Weights:
    """Cosines and signed sines (context, D), those of `model/attention.py`; `portable` turns the other way."""
    frequency = config.rotary_base ** (-np.arange(0, config.head_dim, 2) / config.head_dim)
    angle = np.outer(np.arange(config.context), frequency)
    cos, sin = np.cos(angle).astype(np.float32), np.sin(angle).astype(np.float32)
    if config.architecture == "portable":
        sin = -sin
    return {"cos": [np.concatenate([cos, cos], 1).ravel()], "sin": [np.concatenate([sin, -sin], 1).ravel()]}


def _speed(config: ModelConfig, of: dict[str, Numbers], vocab_size: int) -> Weights:
    """`speed` has norms without weights; those of queries and keys are `qk_scale`."""
    ones, qk_norm = np.ones(config.width, np.float32), np.full(config.head_dim, config.qk_scale, np.float32)
    weights: Weights = {
        "embedding": [of["embedding.weight"][:vocab_size]],
        "head": [of["lm_head.weight"][:vocab_size]],
        "final_norm": [ones],
    }
    if config.smear:
        weights |= {"smear_gate": [of["smear_gate.weight"]], "smear_lambda": [of["smear_lambda"]]}
    if config.has_backout:
        weights["backout"] = [of["backout"]]
    for i in range(config.depth):
        block = f"blocks.{i}"
        scales = [of["residual_scale"][i : i + 1], of["embedding_scale"][i : i + 1]] if config.residual_scales else None
        layer: Weights = {
            "scales": scales or [np.array([1, 0], np.float32)],
            "attention_norm": [ones],
            "qkv": [of[f"{block}.attention.{name}.weight"] for name in "qkv"],
            "query_norm": [qk_norm],
            "key_norm": [qk_norm],
            "out": [of[f"{block}.attention.out.weight"]],
            "mlp_norm": [ones],
            "up": [of[f"{block}.mlp.up.weight"]],
            "down": [of[f"{block}.mlp.down.weight"]],
        }
        if config.has_value_embedding(i):
            layer["value_embedding"] = [of[f"value_embeddings.{i}.weight"][:vocab_size]]
            layer["value_gate"] = [of[f"{block}.attention.value_gate.weight"]]
        weights |= {f"{i}.{name}": parts for name, parts in layer.items()}
    return weights


def _portable(config: ModelConfig, of: dict[str, Numbers], vocab_size: int) -> Weights:
    weights: Weights = {
        "embedding": [of["model.embed_tokens.weight"][:vocab_size]],
        "head": [of["model.embed_tokens.weight" if config.tied else "lm_head.weight"][:vocab_size]],
        "final_norm": [of["model.norm.weight"]],
    }
    for i in range(config.depth):
        block = f"model.layers.{i}"
        layer: Weights = {
            "scales": [np.array([1, 0], np.float32)],
            "attention_norm": [of[f"{block}.input_layernorm.weight"]],
            "qkv": [of[f"{block}.self_attn.{name}_proj.weight"] for name in "qkv"],
            "query_norm": [of[f"{block}.self_attn.q_norm.weight"]],
            "key_norm": [of[f"{block}.self_attn.k_norm.weight"]],
            "out": [of[f"{block}.self_attn.o_proj.weight"]],
            "mlp_norm": [of[f"{block}.post_attention_layernorm.weight"]],
            **{name: [of[f"{block}.mlp.{name}_proj.weight"]] for name in ("gate", "up", "down")},
        }
        weights |= {f"{i}.{name}": parts for name, parts in layer.items()}
    return weights
