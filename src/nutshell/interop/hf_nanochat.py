"""`speed` without the ideas that transformers' `NanoChatForCausalLM` lacks, as that class.

It is nanochat as of October 2025: normed embedding, rotation then QK-norm, relu squared, softcap, and nothing of what came later.
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
"""Switches of `speed` with the one value that the class has, and how to train with it."""
FIELDS = {
    "vocab_size": "vocab_size", "depth": "num_hidden_layers", "width": "hidden_size", "heads": "num_attention_heads",
    "kv_heads": "num_key_value_heads", "head_dim": "head_dim", "context": "max_position_embeddings", "bos_id": "bos_token_id",
}  # fmt: skip
"""What `NanoChatConfig` calls the fields of ours."""
NAMES = {
    r"embedding": "model.embed_tokens",
    r"blocks\.(\d+)\.attention\.([qkv])": r"model.layers.\1.self_attn.\2_proj",
    r"blocks\.(\d+)\.attention\.out": r"model.layers.\1.self_attn.o_proj",
    r"blocks\.(\d+)\.mlp\.up": r"model.layers.\1.mlp.fc1",
    r"blocks\.(\d+)\.mlp\.down": r"model.layers.\1.mlp.fc2",
}
"""Our names of tensors to theirs; the head has the same."""


def config_to_nanochat(config: ModelConfig) -> dict[str, Any]:
    """`config.json` for transformers. ValueError names the switches that stand in the way, and how to train without them."""
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
        **{theirs: getattr(config, ours) for ours, theirs in FIELDS.items()},
        "intermediate_size": 4 * config.width, "hidden_act": "relu2", "attention_bias": False, "attention_dropout": 0.0,
        "rms_norm_eps": RMS_EPS, "rope_parameters": {"rope_type": "default", "rope_theta": config.rotary_base},
        "final_logit_softcapping": config.softcap or None, "tie_word_embeddings": False, "pad_token_id": config.bos_id,
    }  # fmt: skip


def weights_to_nanochat(ours: dict[str, Tensor]) -> dict[str, Tensor]:
    """Their tensors of ours."""
    theirs = {}
    for name, tensor in ours.items():
        module, kind = name.rsplit(".", 1)
        pattern = next((pattern for pattern in NAMES if re.fullmatch(pattern, module)), None)
        theirs[f"{re.sub(pattern, NAMES[pattern], module) if pattern else module}.{kind}"] = tensor
    return theirs
