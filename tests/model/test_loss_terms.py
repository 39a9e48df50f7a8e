"""The loss as a GPU computes it, in one pass a compiler can fuse, against the one in place and against float64; and in fp16."""

import pytest
import torch

from nutshell.model import loss
from nutshell.model.elementwise import relu_squared_linear, rms_norm
from nutshell.model.loss import cross_entropy, loss_and_grad

SOFTCAP = 15.0


def problem(N=300, C=32, V=70, dtype=torch.float32, scale=3.0):
    generator = torch.Generator().manual_seed(0)
    hidden = torch.randn(N, C, generator=generator).to(dtype).requires_grad_()
    weight = (scale * torch.randn(V, C, generator=generator) / C**0.5).requires_grad_()
    targets = torch.randint(-1, V, (N,), generator=generator)
    weights = torch.randn(N, generator=generator)
    return hidden, weight, targets, weights


def exact(hidden, weight, targets, weights):
    h, w = hidden.detach().double().requires_grad_(), weight.detach().double().requires_grad_()
    logits = SOFTCAP * torch.tanh(h @ w.t() / SOFTCAP)
    terms = torch.nn.functional.cross_entropy(logits, targets.clamp(min=0), reduction="none") * (targets >= 0)
    total = (terms if weights is None else terms * weights).sum() / (targets >= 0).sum()
    total.backward()
    return total.detach(), h.grad, w.grad


def close(found, expected, tolerance):
    return float((found.double() - expected).norm() / expected.norm()) < tolerance


@pytest.mark.parametrize("weighted", [False, True])
@pytest.mark.parametrize("fused", [False, True])
def test_both_forms_equal_float64(fused, weighted, monkeypatch):
    monkeypatch.setattr(loss, "CHUNK_ROWS", 128)  # three chunks, the last one ragged
    if fused:
        monkeypatch.setattr(loss, "_fused", lambda device: loss_and_grad)
    hidden, weight, targets, weights = problem()
    weights = weights if weighted else None
    value = cross_entropy(hidden, weight, targets, weights, softcap=SOFTCAP)
    (value * 0.5).backward()  # what comes from above is passed on
    expected, grad_hidden, grad_weight = exact(hidden, weight, targets, weights)
    assert value.item() == pytest.approx(expected.item(), rel=1e-5)
    assert close(2 * hidden.grad, grad_hidden, 1e-5)
    assert close(2 * weight.grad, grad_weight, 1e-5)


def test_without_a_single_target_loss_and_gradients_are_zero(monkeypatch):
    for fused in (None, loss_and_grad):
        monkeypatch.setattr(loss, "_fused", lambda device, fused=fused: fused)
        hidden, weight, targets, _ = problem()
        value = cross_entropy(hidden, weight, torch.full_like(targets, -1), softcap=SOFTCAP)
        value.backward()
        assert value.item() == 0
        assert not hidden.grad.any()
        assert not weight.grad.any()


@pytest.mark.slow
@pytest.mark.parametrize("softcap", [15.0, 0.0])
def test_the_compiled_terms_are_the_same(softcap):
    generator = torch.Generator().manual_seed(0)
    logits, w = 20 * torch.randn(40, 70, generator=generator), torch.rand(40, 1, generator=generator)
    index = torch.randint(0, 70, (40, 1), generator=generator)
    arguments = logits, index, w, softcap
    for found, expected in zip(torch.compile(loss_and_grad)(*arguments), loss_and_grad(*arguments), strict=True):
        assert torch.allclose(found, expected, rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("fused", [False, True])
def test_fp16_keeps_the_gradients_of_a_long_batch(fused, monkeypatch):
    """A mean over many tokens divides each gradient by their number: in fp16 that would leave little of them."""
    if fused:
        monkeypatch.setattr(loss, "_fused", lambda device: loss_and_grad)
    hidden, weight, targets, _ = problem(N=20_000, dtype=torch.float16)
    scale = 2.0**16
    (cross_entropy(hidden, weight, targets, softcap=SOFTCAP) * scale).backward()
    _, grad_hidden, grad_weight = exact(hidden, weight, targets, None)
    assert close(hidden.grad / scale, grad_hidden, 0.01)
    assert close(weight.grad / scale, grad_weight, 0.01)


@pytest.mark.parametrize("fused", [False, True])
def test_fp16_does_not_overflow_where_all_tokens_are_alike(fused, monkeypatch):
    if fused:
        monkeypatch.setattr(loss, "_fused", lambda device: loss_and_grad)
    hidden = torch.full((8192, 32), 10.0, dtype=torch.float16, requires_grad=True)
    weight = torch.full((70, 32), 100.0).requires_grad_()  # logits of 32,000, half of what fp16 holds
    value = cross_entropy(hidden, weight, torch.zeros(8192, dtype=torch.long), softcap=SOFTCAP)
    value.backward()
    assert all(torch.isfinite(t).all() for t in (value, hidden.grad, weight.grad))
    weight.data.zero_()
    weight.grad = None
    cross_entropy(hidden, weight, torch.zeros(8192, dtype=torch.long), softcap=SOFTCAP).backward()
    assert float(weight.grad[0, 0]) == pytest.approx(-10 * 69 / 70, rel=0.01)


@pytest.mark.parametrize("grad", [False, True])
def test_norms_in_fp16_square_in_fp32(grad):
    x = torch.full((2, 64), 60_000.0, dtype=torch.float16, requires_grad=grad)
    y = rms_norm(x, 1.2)
    assert torch.allclose(y.float(), torch.full((2, 64), 1.2), rtol=2e-3)
    small = torch.full((2, 64), 1e-2, dtype=torch.float16, requires_grad=grad)
    assert torch.allclose(rms_norm(small).float(), torch.full((2, 64), 1e-2 / (1e-4 + 1e-6) ** 0.5), rtol=2e-3)
    if grad:
        y.sum().backward()
        assert torch.isfinite(x.grad).all()
        assert torch.isfinite(
            relu_squared_linear(torch.tensor([200.0], dtype=torch.float16), torch.ones(1, 1, dtype=torch.float16))
        )
