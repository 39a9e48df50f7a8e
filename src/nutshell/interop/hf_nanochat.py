"""Between a `speed` model and transformers' `NanoChatForCausalLM`, for models without the switches that the class lacks.

The class is nanochat as of October 2025: normed embedding, rotation then QK-norm, relu squared, softcap, and nothing of what came
later.
"""

from __future__ import annotations

import re
from typing import Any

from torch import Tensor

from nutshell.model.config import ModelConfig
from nutshell.model.elementwise import RMS_EPS

LACKED = {
    "smear": (False, "--no-smear"),
    "backout": (False, "--no-backout"),
    "value_embeddings": (False, "--no-value-embeddings"),
    "residual_scales": (False, "--no-residual-scales"),
    "qk_scale": (1.0, "--qk-scale 1"),
    "window_pattern": ("L", "--window-pattern L"),
}
"""Switches of `speed`, the only value that the class supports, and the flag to train with it."""
FIELDS = {
    "vocab_size": "vocab_size", "depth": "num_hidden_layers", "width": "hidden_size", "heads": "num_attention_heads",
    "kv_heads": "num_key_value_heads", "head_dim": "head_dim", "context": "max_position_embeddings", "bos_id": "bos_token_id",
}  # fmt: skip
"""Our fields, and their names in `NanoChatConfig`."""
NAMES = {
    "embedding": "model.embed_tokens",
    **{f"blocks.{{}}.attention.{name}": f"model.layers.{{}}.self_attn.{name}_proj" for name in "qkv"},
    "blocks.{}.attention.out": "model.layers.{}.self_attn.o_proj",
    "blocks.{}.mlp.up": "model.layers.{}.mlp.fc1",
    "blocks.{}.mlp.down": "model.layers.{}.mlp.fc2",
}
"""Our names of tensors to theirs, {} for the layer. `lm_head` is the same in both."""
FIXED = {
    "hidden_act": "relu2", "attention_bias": False, "attention_dropout": 0.0, "rms_norm_eps": RMS_EPS,
    "tie_word_embeddings": False,
}  # fmt: skip
"""Other settings of theirs, with the value that matches `speed`."""


def config_to_nanochat(config: ModelConfig) -> dict[str, Any]:
    """`config.json` for transformers. ValueError names the switches that the class lacks, and how to train without them."""
    if config.architecture != "speed":
        raise ValueError(f"--nanochat is for speed; the model is of the architecture {config.architecture}. Leave it out.")
    values = {name: getattr(config, name) for name in LACKED}
    values |= {"backout": config.has_backout, "window_pattern": "L" if set(config.windows()) == {config.context} else "S"}
    if inside := [name for name, (accepted, _) in LACKED.items() if values[name] != accepted]:
        raise ValueError(
            f"transformers' NanoChatForCausalLM lacks {', '.join(inside)}, which the model has. Accepted: a model trained with "
            f"{' '.join(LACKED[name][1] for name in inside)}. Or leave out --nanochat: the folder then brings its own code."
        )
    return {
        "architectures": ["NanoChatForCausalLM"], "model_type": "nanochat",
        **{theirs: getattr(config, ours) for ours, theirs in FIELDS.items()}, **FIXED,
        "intermediate_size": 4 * config.width, "rope_parameters": {"rope_type": "default", "rope_theta": config.rotary_base},
        "final_logit_softcapping": config.softcap or None, "pad_token_id": config.bos_id,
    }  # fmt: skip


def config_from_nanochat(values: dict[str, Any], bos_id: int) -> ModelConfig:
    """The shape in their `config.json`. ValueError names a setting that ours does not support."""
    rope = values.get("rope_parameters") or {}
    width, heads = values.get("hidden_size", 0), values.get("num_attention_heads", 1)
    found = {"intermediate_size": 4 * width, **FIXED, "rope_type": "default", **values, **rope}
    for key, accepted in {"intermediate_size": 4 * width, **FIXED, "rope_type": "default"}.items():
        if found[key] != accepted:
            raise ValueError(f"{key} is {found[key]!r}; accepted: {accepted!r}. Such a NanoChat is not supported.")
    values = {"num_key_value_heads": heads, "head_dim": width // heads, **values, "bos_token_id": bos_id}
    if missing := [theirs for theirs in FIELDS.values() if theirs not in values]:
        raise ValueError(f"{', '.join(missing)} missing")
    switches: dict[str, Any] = {name: accepted for name, (accepted, _) in LACKED.items()}
    softcap = values.get("final_logit_softcapping", 15.0) or 0.0
    return ModelConfig(
        **{ours: values[theirs] for ours, theirs in FIELDS.items()}, **switches,
        rotary_base=rope.get("rope_theta", values.get("rope_theta", 10_000.0)), softcap=softcap,
    )  # fmt: skip


def weights_to_nanochat(ours: dict[str, Tensor]) -> dict[str, Tensor]:
    """Our tensors as theirs."""
    return {renamed(name, NAMES): tensor for name, tensor in ours.items()}


def weights_from_nanochat(theirs: dict[str, Tensor]) -> dict[str, Tensor]:
    """Their tensors as ours; unknown ones keep their names."""
    names = {name: ours for ours, name in NAMES.items()}
    return {renamed(name, names): tensor for name, tensor in theirs.items()}


def renamed(tensor: str, names: dict[str, str]) -> str:
    """The name of a tensor by a table of names, with {} for the layer; one that is not in the table keeps its own.

    >>> renamed("blocks.3.mlp.up.weight", {"blocks.{}.mlp.up": "h.{}.fc"})
    'h.3.fc.weight'
    """
    module = tensor.removesuffix(".weight")
    layer = re.search(r"(?<=\.)\d+", module)
    template = module.replace(f".{layer[0]}", ".{}", 1) if layer else module
    return names.get(template, template).replace("{}", layer[0] if layer else "") + tensor[len(module) :]
