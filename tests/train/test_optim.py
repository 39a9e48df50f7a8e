"""Muon and AdamW against float64 computations of their formulas."""

import pytest
import torch

from nutshell.model.config import ModelConfig
from nutshell.model.gpt import GPT
from nutshell.plan.recipe import OptimizerConfig
from nutshell.train.optim import MuonAdamW, group_parameters, muon_direction, polar


def model() -> GPT:
    torch.manual_seed(0)
    return GPT(ModelConfig(vocab_size=64, depth=2, width=32, heads=2, kv_heads=2, head_dim=16, context=16))


def test_every_parameter_is_in_exactly_one_group():
    net = model()
    groups = group_parameters(net, OptimizerConfig(), width=32, tokens_per_step=4096)
    names = [name for group in groups for name in group.names]
    assert sorted(names) == sorted(name for name, _ in net.named_parameters())
    assert len(names) == len(set(names))
    kinds = {name: group.rule for group in groups for name in group.names}
    assert kinds["blocks.0.mlp.up.weight"] == "muon"
    assert kinds["lm_head.weight"] == kinds["smear_gate.weight"] == "adamw"


def test_an_unknown_parameter_is_refused_not_forgotten():
    net = model()
    net.extra = torch.nn.Parameter(torch.zeros(3))
    with pytest.raises(ValueError, match="extra"):
        group_parameters(net, OptimizerConfig(), width=32, tokens_per_step=4096)


@pytest.mark.parametrize("shape", [(3, 16, 16), (2, 8, 32), (2, 32, 8)])
def test_polar_is_near_the_orthogonal_factor(shape):
    x = torch.randn(shape, generator=torch.Generator().manual_seed(1))
    u, _, vh = torch.linalg.svd(x.double(), full_matrices=False)
    exact, got = u @ vh, polar(x, torch.float32).double()
    cosine = (exact * got).sum((-2, -1)) / (exact.norm(dim=(-2, -1)) * got.norm(dim=(-2, -1)))
    assert cosine.min() > 0.97


def test_the_direction_keeps_the_norm_of_a_semi_orthogonal_matrix_whatever_the_gradients_scale():
    gradient = torch.randn(2, 8, 24, generator=torch.Generator().manual_seed(2))
    for scale in (1e-12, 1.0, 1e6):
        update = muon_direction(gradient * scale, torch.zeros(2, 1, 24), torch.float32)
        assert torch.allclose(update.norm(dim=(-2, -1)), torch.full((2,), 8**0.5), rtol=1e-3)


def test_a_zero_gradient_changes_nothing():
    update = muon_direction(torch.zeros(1, 4, 6), torch.zeros(1, 1, 6), torch.float32)
    assert torch.equal(update, torch.zeros(1, 4, 6))


def test_the_state_returns_by_name_and_a_wrong_one_is_named():
    net = model()
    groups = group_parameters(net, OptimizerConfig(), width=32, tokens_per_step=4096)
    for p in net.parameters():
        p.grad = torch.randn(p.shape)
    a = MuonAdamW(groups)
    a.step(lr=1.0, momentum=0.9, decay=1.0)
    b = MuonAdamW(groups)
    b.load_state_dict({k: v.clone() for k, v in a.state_dict().items()}, a.steps)
    assert b.steps == 1
    assert all(torch.equal(a.state[k], b.state[k]) for k in a.state)
    wrong = dict(a.state_dict())
    wrong["lm_head.weight.momentum"] = torch.zeros(2)
    with pytest.raises(ValueError, match="lm_head"):
        b.load_state_dict(wrong, 1)
