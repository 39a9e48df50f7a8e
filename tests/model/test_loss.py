"""The chunked loss against the formula written out in float64."""

import pytest
import torch
import torch.nn.functional as F
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from nutshell.model import loss
from nutshell.model.loss import cross_entropy

SOFTCAP = 15.0


def problem(N=23, C=16, V=50, dtype=torch.float32, scale=2.0):
    g = torch.Generator().manual_seed(0)
    hidden = (scale * torch.randn(N, C, generator=g)).to(dtype)
    weight = torch.randn(V, C, generator=g).to(dtype).float()
    targets = torch.randint(0, V, (N,), generator=g)
    targets[::5] = -1
    return hidden.requires_grad_(), weight.requires_grad_(), targets, torch.randn(N, generator=g)


def exact(hidden, weight, targets, weights=None):
    """Loss and gradients in float64, by autograd."""
    h, w = hidden.detach().double().requires_grad_(), weight.detach().double().requires_grad_()
    terms = F.cross_entropy(SOFTCAP * torch.tanh(h @ w.t() / SOFTCAP), targets, ignore_index=-1, reduction="none")
    value = (terms if weights is None else terms * weights).sum() / max(1, int((targets >= 0).sum()))
    return value.item(), torch.autograd.grad(value, [h, w])


@pytest.mark.parametrize("weighted", [False, True])
@pytest.mark.parametrize(("chunk", "piece"), [(1024, 1 << 19), (7, 150), (8, 100), (23, 1), (5, 10_000)])
def test_loss_and_gradients_equal_float64_whatever_the_chunks(chunk, piece, weighted, monkeypatch):
    monkeypatch.setattr(loss, "CHUNK_ROWS", chunk)
    monkeypatch.setattr(loss, "PIECE_ELEMENTS", piece)
    hidden, weight, targets, weights = problem()
    weights = weights if weighted else None
    value = cross_entropy(hidden, weight, targets, weights, softcap=SOFTCAP)
    (3 * value).backward()
    expected, gradients = exact(hidden, weight, targets, weights)
    assert value.item() == pytest.approx(expected, rel=1e-5)
    for got, want in zip((hidden.grad, weight.grad), gradients, strict=True):
        assert torch.allclose(got.double(), 3 * want, atol=1e-6, rtol=1e-4)
    with torch.no_grad():
        assert cross_entropy(hidden, weight, targets, weights, softcap=SOFTCAP).item() == value.item()


def test_bf16_gradients_are_as_close_to_float64_as_bf16_is(monkeypatch):
    monkeypatch.setattr(loss, "CHUNK_ROWS", 64)
    hidden, weight, targets, _ = problem(N=300, C=64, V=512, dtype=torch.bfloat16, scale=0.3)
    value = cross_entropy(hidden, weight, targets, softcap=SOFTCAP)
    value.backward()
    expected, gradients = exact(hidden, weight, targets)
    assert hidden.grad.dtype == torch.bfloat16
    assert weight.grad.dtype == torch.float32
    assert value.item() == pytest.approx(expected, rel=2e-3)
    for got, want in zip((hidden.grad, weight.grad), gradients, strict=True):
        assert (got.double() - want).norm() < 0.01 * want.norm()


def test_logits_at_the_cap_and_no_targets_at_all_stay_finite():
    hidden, weight, targets, _ = problem(scale=1000.0)
    value = cross_entropy(hidden, weight, targets, softcap=SOFTCAP)
    value.backward()
    assert value.item() == pytest.approx(exact(hidden, weight, targets)[0], rel=1e-5)
    assert torch.isfinite(weight.grad).all()
    nothing = cross_entropy(hidden, weight, torch.full_like(targets, -1), softcap=SOFTCAP)
    nothing.backward()
    assert nothing.item() == 0


def test_no_tensor_is_larger_than_the_logits_of_a_chunk(monkeypatch):
    # The full fp32 logits would be the largest tensor of a step.
    monkeypatch.setattr(loss, "CHUNK_ROWS", 8)
    sizes = []

    class Watch(TorchDispatchMode):
        def __torch_dispatch__(self, function, types, args=(), kwargs=None):
            result = function(*args, **(kwargs or {}))
            sizes.extend(x.numel() for x in tree_leaves(result) if isinstance(x, torch.Tensor))
            return result

    hidden, weight, targets, _ = problem(N=64, C=4, V=200)
    with Watch():
        cross_entropy(hidden, weight, targets, softcap=SOFTCAP).backward()
    assert max(sizes) == 8 * 200
