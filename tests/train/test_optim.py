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


def test_adamw_equals_its_formula_in_float64():
    net = model()
    group = next(
        g for g in group_parameters(net, OptimizerConfig(), width=32, tokens_per_step=4096) if g.names == ["lm_head.weight"]
    )
    optimizer = MuonAdamW([group])
    p = group.parameters[0].detach().double().clone()
    first = second = torch.zeros_like(p)
    for step in range(1, 6):
        gradient = torch.randn(p.shape, generator=torch.Generator().manual_seed(step))
        group.parameters[0].grad = gradient.clone()
        optimizer.step(lr=0.5, momentum=0.9, decay=1.0)
        lr, (b1, b2), g = group.lr * 0.5, group.row.betas, gradient.double()
        p = p * (1 - lr * group.weight_decay)
        first, second = b1 * first + (1 - b1) * g, b2 * second + (1 - b2) * g * g
        p = p - lr * (first / (1 - b1**step)) / ((second / (1 - b2**step)).sqrt() + 1e-10)
    assert torch.allclose(group.parameters[0].double(), p, atol=1e-6)


def test_weight_decay_is_cautious():
    net = model()
    groups = [g for g in group_parameters(net, OptimizerConfig(), width=32, tokens_per_step=4096) if g.rule == "muon"]
    group = groups[0]
    before = [p.detach().clone() for p in group.parameters]
    plain = []
    for decay in (0.0, 0.5):
        for p, old in zip(group.parameters, before, strict=True):
            p.data.copy_(old)
            p.grad = torch.randn(p.shape, generator=torch.Generator().manual_seed(7))
        group.weight_decay = decay
        MuonAdamW([group]).step(lr=1.0, momentum=0.9, decay=1.0)
        plain.append([p.detach().clone() for p in group.parameters])
    for old, without, with_decay in zip(before, *plain, strict=True):
        update = old - without
        same_sign = update * old > 0
        assert torch.equal((with_decay != without) & (old != 0), same_sign & (old != 0))


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
