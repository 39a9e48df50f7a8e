"""A model's shape to `config.json` and back."""

from __future__ import annotations

from typing import Any

from nutshell.model.config import ModelConfig

QWEN3_NAMES = {
    "vocab_size": "vocab_size",
    "depth": "num_hidden_layers",
    "width": "hidden_size",
    "heads": "num_attention_heads",
    "kv_heads": "num_key_value_heads",
    "head_dim": "head_dim",
    "mlp_width": "intermediate_size",
    "context": "max_position_embeddings",
    "rotary_base": "rope_theta",
    "tied": "tie_word_embeddings",
    "bos_id": "bos_token_id",
    "norm_eps": "rms_norm_eps",
}
"""What transformers' `Qwen3Config` and `LlamaConfig` call the fields of ours."""
QWEN3_FIXED = {
    "hidden_act": "silu",
    "attention_bias": False,
    "attention_dropout": 0.0,
    "use_sliding_window": False,
    "rope_scaling": None,
}
"""Other settings of Qwen3 and the one value that `portable` supports."""
LLAMA_FIXED = {"hidden_act": "silu", "attention_bias": False, "mlp_bias": False, "attention_dropout": 0.0, "rope_scaling": None}
"""The same of Llama."""


def config_to_json(config: ModelConfig, eos_id: int | None) -> dict[str, Any]:
    """Content of `config.json`: of `portable` what transformers reads. `eos_id` is the token that ends a reply."""
    if config.architecture != "portable":
        return config.to_dict()
    shape = {theirs: getattr(config, ours) for ours, theirs in QWEN3_NAMES.items()}
    name, kind, fixed = ("Qwen3", "qwen3", QWEN3_FIXED) if config.qk_norm else ("Llama", "llama", LLAMA_FIXED)
    return {"architectures": [f"{name}ForCausalLM"], "model_type": kind, **shape, **fixed, "eos_token_id": eos_id}


def config_from_json(values: dict[str, Any]) -> ModelConfig:
    """The shape in a `config.json`. ValueError or TypeError where it is none of our models."""
    kind = values.get("model_type")
    if kind not in ("qwen3", "llama"):
        return ModelConfig(**values)
    rope = dict(values.get("rope_parameters") or {})  # where transformers 5 keeps the base
    if kind == "llama":  # what older files leave out
        heads = values.get("num_attention_heads", 1)
        values = {"num_key_value_heads": heads, "rope_theta": 1e4, "rms_norm_eps": 1e-6, **values}
        values["head_dim"] = values.get("head_dim") or values.get("hidden_size", 0) // heads
    values = {"tie_word_embeddings": False, **values, **{key: rope[key] for key in rope if key == "rope_theta"}}
    for key, accepted in {**(QWEN3_FIXED if kind == "qwen3" else LLAMA_FIXED), "rope_type": "default"}.items():
        found = {**values, **rope}.get(key, accepted)
        if found != accepted:
            raise ValueError(f"{key} is {found!r}; accepted: {accepted!r}. Such a {kind} model is not supported.")
    if missing := [theirs for theirs in QWEN3_NAMES.values() if theirs not in values]:
        raise ValueError(f"{', '.join(missing)} missing")
    shape = {ours: values[theirs] for ours, theirs in QWEN3_NAMES.items()}
    if shape["bos_id"] is None:
        shape["bos_id"] = -1  # no token begins a document
    return ModelConfig(**shape, architecture="portable", window_pattern="L", qk_norm=kind == "qwen3")
