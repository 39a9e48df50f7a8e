"""The chunked loss against the formula written out in float64: in place, as a CPU computes it, and fused, as a GPU does."""

import pytest
import torch
import torch.nn.functional as F
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from nutshell.model import loss
from nutshell.model.elementwise import relu_squared_linear, rms_norm
from nutshell.model.loss import cross_entropy, loss_and_grad

SOFTCAP = 15.0


@pytest.fixture(params=["in place", "fused"])
def form(request, monkeypatch):
    if request.param == "fused":
        monkeypatch.setattr(loss, "_fused", lambda device: loss_and_grad)


def problem(N=23, C=16, V=50, dtype=torch.float32, scale=2.0):
    g = torch.Generator().manual_seed(0)
    hidden = (scale * torch.randn(N, C, generator=g)).to(dtype)
    weight = torch.randn(V, C, generator=g).to(dtype).float()
    targets = torch.randint(0, V, (N,), generator=g)
    targets[::5] = -1
    return hidden.requires_grad_(), weight.requires_grad_(), targets, torch.randn(N, generator=g)


def exact(hidden, weight, targets, weights=None, softcap=SOFTCAP):
    """Loss and gradients in float64, by autograd."""
    h, w = hidden.detach().double().requires_grad_(), weight.detach().double().requires_grad_()
    logits = h @ w.t()
    logits = softcap * torch.tanh(logits / softcap) if softcap else logits
    terms = F.cross_entropy(logits, targets, ignore_index=-1, reduction="none")
    value = (terms if weights is None else terms * weights).sum() / max(1, int((targets >= 0).sum()))
    return value.item(), torch.autograd.grad(value, [h, w])


def close(found, expected, tolerance):
    return float((found.double() - expected).norm() / expected.norm()) < tolerance


@pytest.mark.parametrize("softcap", [SOFTCAP, 0.0])
@pytest.mark.parametrize("weighted", [False, True])
@pytest.mark.parametrize(("chunk", "piece"), [(1024, 1 << 19), (7, 150), (8, 100), (23, 1), (5, 10_000)])
def test_loss_and_gradients_equal_float64_whatever_the_chunks(form, chunk, piece, weighted, softcap, monkeypatch):
    for name, size in (("CHUNK_ROWS", chunk), ("CUDA_CHUNK_ROWS", chunk), ("PIECE_ELEMENTS", piece)):
        monkeypatch.setattr(loss, name, size)
    hidden, weight, targets, weights = problem()
    weights = weights if weighted else None
    value = cross_entropy(hidden, weight, targets, weights, softcap=softcap)
    (3 * value).backward()  # what comes from above is passed on
    expected, gradients = exact(hidden, weight, targets, weights, softcap)
    assert value.item() == pytest.approx(expected, rel=1e-5)
    for got, want in zip((hidden.grad, weight.grad), gradients, strict=True):
        assert torch.allclose(got.double(), 3 * want, atol=2e-6, rtol=1e-4)
    with torch.no_grad():
        assert cross_entropy(hidden, weight, targets, weights, softcap=softcap).item() == value.item()


def test_bf16_gradients_are_as_close_to_float64_as_bf16_is(monkeypatch):
    monkeypatch.setattr(loss, "CHUNK_ROWS", 64)
    hidden, weight, targets, _ = problem(N=300, C=64, V=512, dtype=torch.bfloat16, scale=0.3)
    value = cross_entropy(hidden, weight, targets, softcap=SOFTCAP)
    value.backward()
    expected, gradients = exact(hidden, weight, targets)
    assert hidden.grad.dtype == torch.bfloat16
    assert weight.grad.dtype == torch.float32
    assert value.item() == pytest.approx(expected, rel=2e-3)
    assert all(close(got, want, 0.01) for got, want in zip((hidden.grad, weight.grad), gradients, strict=True))


def test_logits_at_the_cap_and_no_targets_at_all_stay_finite(form):
    hidden, weight, targets, _ = problem(scale=1000.0)
    value = cross_entropy(hidden, weight, targets, softcap=SOFTCAP)
    value.backward()
    assert value.item() == pytest.approx(exact(hidden, weight, targets)[0], rel=1e-5)
    assert torch.isfinite(weight.grad).all()
    hidden.grad = weight.grad = None
    nothing = cross_entropy(hidden, weight, torch.full_like(targets, -1), softcap=SOFTCAP)
    nothing.backward()
    assert nothing.item() == 0
    assert not hidden.grad.any()
    assert not weight.grad.any()


def test_logits_without_a_cap_may_overflow_an_exponential(form):
    hidden = torch.tensor([[200.0], [-200.0]], requires_grad=True)
    value = cross_entropy(hidden, torch.tensor([[1.0], [-1.0]]), torch.tensor([0, 0]))
    value.backward()
    assert value.item() == 200.0  # (0 + 400) / 2
    assert hidden.grad.flatten().tolist() == [0.0, -1.0]


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


@pytest.mark.slow
@pytest.mark.parametrize("softcap", [SOFTCAP, 0.0])
def test_the_compiled_terms_are_the_same(softcap):
    generator = torch.Generator().manual_seed(0)
    logits, w = 20 * torch.randn(40, 70, generator=generator), torch.rand(40, 1, generator=generator)
    arguments = logits, torch.randint(0, 70, (40, 1), generator=generator), w, softcap
    for found, expected in zip(torch.compile(loss_and_grad)(*arguments), loss_and_grad(*arguments), strict=True):
        assert torch.allclose(found, expected, rtol=1e-4, atol=1e-6)


def test_fp16_keeps_the_gradients_of_a_long_batch(form):
    """A mean over many tokens divides each gradient by their number: in fp16 that would leave little of them."""
    hidden, weight, targets, _ = problem(N=20_000, C=32, V=70, dtype=torch.float16, scale=0.5)
    scale = 2.0**16
    (cross_entropy(hidden, weight, targets, softcap=SOFTCAP) * scale).backward()
    _, gradients = exact(hidden, weight, targets)
    assert all(close(got / scale, want, 0.01) for got, want in zip((hidden.grad, weight.grad), gradients, strict=True))


def test_fp16_does_not_overflow_where_all_tokens_are_alike(form):
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
