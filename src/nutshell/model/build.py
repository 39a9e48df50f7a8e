"""A model from its shape."""

from __future__ import annotations

from nutshell.model.config import ModelConfig
from nutshell.model.decoder import Decoder, WithoutWeights
from nutshell.model.gpt import GPT
from nutshell.model.gpt2 import GPT2
from nutshell.model.qwen3 import Qwen3


def build_model(config: ModelConfig, *, initialize: bool = True) -> Decoder:
    """A model of this shape. Without `initialize` no weight is drawn: they are on the meta device until
    `load_state_dict(weights, assign=True)` gives them."""
    architecture = {"speed": GPT, "portable": Qwen3, "gpt2": GPT2}[config.architecture]
    if initialize:
        return architecture(config)
    with WithoutWeights():
        return architecture(config)
