"""GPT-2's config and weights: between transformers' `GPT2LMHeadModel` and our `model/gpt2.py`.

Theirs has queries, keys and values in one matrix, and matrices stored as (inputs, outputs), as its `Conv1D` needs them.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from nutshell.model.config import ModelConfig
from nutshell.model.gpt2 import LAYER_NORM_EPS

FIELDS = {"vocab_size": "vocab_size", "depth": "n_layer", "width": "n_embd", "heads": "n_head", "context": "n_positions"}
"""Our fields, and their names in `GPT2Config`."""
FIXED = {
    "activation_function": ("gelu_new", "gelu_pytorch_tanh"),
    "layer_norm_epsilon": (LAYER_NORM_EPS,),
    "scale_attn_weights": (True,),
    "scale_attn_by_inverse_layer_idx": (False,),
    "add_cross_attention": (False,),
    "tie_word_embeddings": (True,),
}
"""Other settings of theirs, with the values that our GPT-2 matches; the first one is written."""
BLOCK = {
    "ln_1": "attention_norm", "attn.c_proj": "attention.out", "ln_2": "mlp_norm", "mlp.c_fc": "mlp.up", "mlp.c_proj": "mlp.down",
}  # fmt: skip
ENDS = {"wte.weight": "embedding.weight", "wpe.weight": "positions.weight", "ln_f.weight": "final_norm.weight",
        "ln_f.bias": "final_norm.bias"}  # fmt: skip


def config_from_gpt2(values: dict[str, Any], bos_id: int) -> ModelConfig:
    """The shape in a GPT-2's `config.json`. ValueError names a setting that ours does not support."""
    for key, accepted in FIXED.items():
        if values.get(key, accepted[0]) not in accepted:
            raise ValueError(
                f"{key} is {values[key]!r}; accepted: {' or '.join(map(repr, accepted))}. Such a GPT-2 is not supported."
            )
    if missing := [theirs for theirs in FIELDS.values() if theirs not in values]:
        raise ValueError(f"{', '.join(missing)} missing")
    shape = {ours: values[theirs] for ours, theirs in FIELDS.items()}
    width, heads = shape["width"], shape["heads"]
    return ModelConfig(
        **shape, kv_heads=heads, head_dim=width // heads, mlp_width=values.get("n_inner") or 4 * width, tied=True, bos_id=bos_id,
        architecture="gpt2", window_pattern="L",
    )  # fmt: skip


def config_to_gpt2(config: ModelConfig) -> dict[str, Any]:
    """`config.json` for transformers."""
    shape = {theirs: getattr(config, ours) for ours, theirs in FIELDS.items()}
    fixed = {key: values[0] for key, values in FIXED.items()}
    return {
        "architectures": ["GPT2LMHeadModel"], "model_type": "gpt2", **shape, **fixed, "n_inner": config.mlp_width,
        "bos_token_id": config.bos_id, "eos_token_id": config.bos_id,
    }  # fmt: skip


def weights_from_gpt2(theirs: dict[str, Tensor], depth: int) -> dict[str, Tensor]:
    """Their tensors as ours. Unknown ones keep their names, and the causal masks in old files are dropped. KeyError names a
    missing tensor."""
    theirs = {name.removeprefix("transformer."): tensor for name, tensor in theirs.items()}
    theirs = {name: tensor for name, tensor in theirs.items() if not name.endswith((".attn.bias", ".attn.masked_bias"))}
    ours = {new: theirs.pop(old) for old, new in ENDS.items()}
    for layer in range(depth):
        here, there = f"blocks.{layer}.", f"h.{layer}."
        for kind in ("weight", "bias"):
            for old, new in BLOCK.items():
                ours[f"{here}{new}.{kind}"] = _turn(theirs.pop(f"{there}{old}.{kind}"))
            parts = _turn(theirs.pop(f"{there}attn.c_attn.{kind}")).chunk(3)
            ours |= {f"{here}attention.{name}.{kind}": part for name, part in zip("qkv", parts, strict=True)}
    return {**ours, **theirs}


def weights_to_gpt2(ours: dict[str, Tensor], depth: int) -> dict[str, Tensor]:
    """Our tensors as theirs."""
    theirs = {old: ours[new] for old, new in ENDS.items()}
    for layer in range(depth):
        here, there = f"blocks.{layer}.", f"h.{layer}."
        for kind in ("weight", "bias"):
            for old, new in BLOCK.items():
                theirs[f"{there}{old}.{kind}"] = _turn(ours[f"{here}{new}.{kind}"])
            theirs[f"{there}attn.c_attn.{kind}"] = _turn(torch.cat([ours[f"{here}attention.{name}.{kind}"] for name in "qkv"]))
    return {f"transformer.{name}": tensor.contiguous() for name, tensor in theirs.items()}


def _turn(tensor: Tensor) -> Tensor:
    """Transpose a matrix; leave a vector as it is."""
    return tensor.T if tensor.ndim == 2 else tensor
