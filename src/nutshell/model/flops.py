"""Parameters by group, and floating-point operations per token with the real windows."""

from __future__ import annotations

from nutshell.model.config import SMEAR_CHANNELS, VALUE_GATE_CHANNELS, ModelConfig


def parameters_by_group(config: ModelConfig) -> dict[str, int]:
    """How many numbers each part of the model holds; the sum is the model's parameter count."""
    C, V, D = config.width, config.vocab_size, config.head_dim
    if config.architecture == "portable":
        return {
            "embedding": V * C,
            "attention": config.depth * C * D * (2 * config.heads + 2 * config.kv_heads),
            "mlp": config.depth * 3 * C * config.mlp_width,
            "lm_head": 0 if config.tied else V * C,
            "norms": config.depth * (2 * C + 2 * D * config.qk_norm) + C,
        }
    if config.architecture == "gpt2":
        return {
            "embedding": (V + config.context) * C,
            "attention": config.depth * 4 * C * C,
            "mlp": config.depth * 2 * C * config.mlp_width,
            "norms": (2 * config.depth + 1) * C,
            "biases": config.depth * (7 * C + config.mlp_width) + C,
        }
    gated = sum(config.has_value_embedding(layer) for layer in range(config.depth))
    return {
        "embedding": V * C,
        "value embeddings": gated * V * config.kv_heads * D,
        "attention": config.depth * C * D * (2 * config.heads + 2 * config.kv_heads)
        + gated * VALUE_GATE_CHANNELS * config.kv_heads,
        "mlp": config.depth * 8 * C * C,
        "lm_head": V * C,
        "residual scales": config.depth * config.residual_scales,
        "embedding scales": config.depth * config.residual_scales,
        "smear, backout": (SMEAR_CHANNELS + 1) * config.smear + config.has_backout,
    }


def matrix_parameters(config: ModelConfig) -> int:
    """P of the scaling rules: block matrices and the head (tied or not), the parameters that every token is multiplied with."""
    groups = parameters_by_group(config)
    return groups["attention"] + groups["mlp"] + config.vocab_size * config.width


def flops_per_token(config: ModelConfig, row_tokens: int) -> float:
    """Forward and backward FLOPs of one training token in rows of `row_tokens`.

    6 per matrix parameter (2 forward, 4 backward), and 12 C for each key a query sees on average: about half the window's
    keys while the row is filling it, all of them afterwards.
    """
    T = row_tokens
    keys_seen = 0.0
    for window in config.windows():
        W = min(window, T)
        keys_seen += (W * (W + 1) / 2 + (T - W) * W) / T
    return 6 * matrix_parameters(config) + 12 * config.heads * config.head_dim * keys_seen
