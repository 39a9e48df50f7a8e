"""Small models of the `portable` architecture whose every weight matters, and what transformers makes of them."""

import pytest
import torch

from nutshell.model.build import build_model
from nutshell.model.config import ModelConfig
from nutshell.model.qwen3 import Qwen3

SHAPES = [
    pytest.param({}, id="grouped queries"),
    pytest.param({"tied": True}, id="tied"),
    pytest.param(
        {"kv_heads": 4, "head_dim": 6, "depth": 1, "rotary_base": 1e6}, id="one depth, no groups, heads narrower than width"
    ),
]


def portable_config(**changes) -> ModelConfig:
    settings = {
        "vocab_size": 300,
        "depth": 3,
        "width": 32,
        "heads": 4,
        "kv_heads": 2,
        "head_dim": 16,
        "mlp_width": 64,
        "context": 64,
    }
    return ModelConfig(**{**settings, "architecture": "portable", "window_pattern": "L", **changes})


def portable(**changes) -> Qwen3:
    """Drawn weights and noise: output projections of zero would hide attention and MLP, norm weights of 1 themselves."""
    torch.manual_seed(0)
    model = build_model(portable_config(**changes))
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.15 * torch.randn(parameter.shape, generator=generator))
    return model


def row(T: int, seed: int = 2, vocab_size: int = 300) -> torch.Tensor:
    """One document: BOS (0) and T - 1 other tokens."""
    ids = torch.randint(1, vocab_size, (T,), generator=torch.Generator().manual_seed(seed))
    ids[0] = 0
    return ids
