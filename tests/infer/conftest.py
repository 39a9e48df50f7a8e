"""A tiny model with random weights, and one that says what the test wants at chosen positions."""

import pytest
import torch

from nutshell.model.config import ModelConfig
from nutshell.model.gpt import GPT
from nutshell.tokenizer import Tokenizer


def randomize(model: GPT, seed: int = 0) -> GPT:
    """Every matrix counts: the initial weights alone would give nearly equal logits."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.dim() == 2:
                parameter.normal_(0, 1.5 * parameter.size(1) ** -0.5, generator=generator)
        model.smear_lambda.fill_(0.5)
    return model.eval().requires_grad_(False)


def make_config(tok, context: int = 64) -> ModelConfig:
    """Short windows, so that decoding past them is tested: 16 of 64 tokens."""
    return ModelConfig(
        vocab_size=tok.vocab_size,
        depth=3,
        width=32,
        heads=4,
        kv_heads=2,
        head_dim=8,
        context=context,
        window_pattern="SL",
        bos_id=tok.bos_id,
    )


class ScriptedGPT(GPT):
    """A real model that says script[n] as token n of the whole row, and whose calls are recorded."""

    def __init__(self, config: ModelConfig) -> None:
        super().__init__(config)
        self.script: dict[int, int] = {}
        self.calls: list[tuple[int, int]] = []  # (rows, tokens per row)

    def decode(self, ids, cache, tables, start, previous, *, last_only=False):
        logits = super().decode(ids, cache, tables, start, previous).clone()
        self.calls.append(tuple(ids.shape))
        for row, position in enumerate(start.tolist()):
            for t in range(ids.size(1)):
                if position + t + 1 in self.script:
                    logits[row, t, self.script[position + t + 1]] += 1000
        return logits[:, -1:] if last_only else logits

    def say(self, start: int, tokens: list[int]) -> None:
        self.script = {start + i: token for i, token in enumerate(tokens)}


@pytest.fixture(scope="session")
def tok():
    return Tokenizer.train(["the cat sat on the mat and 12 + 30 = 42, naïve café ☃ 日本語 "] * 4, vocab_size=300)


@pytest.fixture(scope="session")
def model(tok):
    return randomize(GPT(make_config(tok)))


@pytest.fixture
def scripted(tok):
    return randomize(ScriptedGPT(make_config(tok, context=128)))


@pytest.fixture
def long_model(tok):
    return randomize(GPT(make_config(tok, context=256)))
