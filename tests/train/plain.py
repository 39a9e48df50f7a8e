"""What RL and DPO are compared with: a tiny model with random matrices, and log-probabilities one row at a time in float64."""

import torch

from nutshell.model.config import ModelConfig
from nutshell.model.gpt import GPT

CONFIG = ModelConfig(vocab_size=24, depth=2, width=32, heads=2, kv_heads=2, head_dim=16, context=16)


def random_model(seed: int) -> GPT:
    torch.manual_seed(seed)
    model = GPT(CONFIG)
    with torch.no_grad():
        for p in model.parameters():
            if p.dim() == 2:
                p.normal_(0, 0.3)
    return model


def in_float64(model: GPT) -> GPT:
    plain = GPT(CONFIG).set_precision(torch.float64).double()
    plain.load_state_dict({name: value.double() for name, value in model.state_dict().items()})
    return plain


def logprobs_of(model: GPT, tokens: list[int]) -> torch.Tensor:
    """(T, V): of what follows each of the tokens."""
    ids = torch.tensor([tokens])
    logits = model.hidden_states(ids, model.rows_context(ids))[0] @ model.lm_head.weight.T
    return (15 * torch.tanh(logits / 15)).log_softmax(-1)


def assert_same_gradient(model: GPT, plain: GPT) -> None:
    for (name, ours), theirs in zip(model.named_parameters(), plain.parameters(), strict=True):
        if theirs.grad is None:
            assert ours.grad is None or ours.grad.abs().max() == 0, name
        else:
            assert torch.allclose(ours.grad.double(), theirs.grad, rtol=1e-3, atol=1e-6), name
