"""A tiny model with random weights."""

import pytest
import torch

from nutshell.model.config import ModelConfig
from nutshell.model.gpt import GPT
from nutshell.tokenizer import Tokenizer


@pytest.fixture(scope="session")
def tok():
    return Tokenizer.train(["red blue green yellow cat dog what colour is the cat? naïve 日本 "] * 4, vocab_size=320)


@pytest.fixture(scope="session")
def model(tok):
    config = ModelConfig(
        vocab_size=tok.vocab_size, depth=2, width=32, heads=2, kv_heads=2, head_dim=16, context=64, bos_id=tok.bos_id
    )
    model = GPT(config).requires_grad_(False).eval()
    generator = torch.Generator().manual_seed(0)
    for parameter in model.parameters():
        if parameter.dim() == 2:
            parameter.normal_(0, parameter.size(1) ** -0.5, generator=generator)
    return model
