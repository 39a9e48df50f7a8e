"""The kernels of whole-row attention against each other, and the model under torch.compile."""

import warnings

import pytest
import torch

from nutshell.model import attention
from nutshell.model.attention import causal_attention, make_mask
from nutshell.model.config import ModelConfig
from nutshell.model.gpt import GPT

WINDOWS = [1, 5, 16, 64]


def rows(B=2, T=40, H=4, K=2, D=8):
    generator = torch.Generator().manual_seed(0)
    q, k, v = (torch.randn(B, T, heads, D, generator=generator) for heads in (H, K, K))
    documents = (torch.rand(B, T, generator=generator) < 0.1).cumsum(1)
    return q, k, v, documents


def dense(q, k, v, documents, window):
    T, groups = q.size(1), q.size(2) // k.size(2)
    q, k, v = (x.double().transpose(1, 2) for x in (q, k.repeat_interleave(groups, 2), v.repeat_interleave(groups, 2)))
    position = torch.arange(T)
    seen = (position[None] <= position[:, None]) & (position[None] > position[:, None] - window)
    seen = seen & (documents[:, :, None] == documents[:, None, :])
    scores = (q @ k.transpose(2, 3) * q.size(-1) ** -0.5).masked_fill(~seen[:, None], float("-inf"))
    return (scores.softmax(-1) @ v).transpose(1, 2)


@pytest.mark.parametrize("window", WINDOWS)
def test_blocks_equal_dense_float64(window, monkeypatch):
    monkeypatch.setattr(attention, "QUERY_BLOCK", 7)  # several blocks, the last one ragged
    q, k, v, documents = rows()
    y = causal_attention(q, k, v, make_mask(documents, window, "blocked", q.dtype))
    assert torch.allclose(y.double(), dense(q, k, v, documents, window), atol=1e-5)


@pytest.mark.parametrize("window", WINDOWS)
def test_flex_masks_equal_dense_float64(window, monkeypatch):
    # The kernel itself needs a GPU; its mask and layout are checked through the uncompiled reference of torch.
    from torch.nn.attention import flex_attention

    monkeypatch.setattr(attention, "_compiled_flex", lambda name: getattr(flex_attention, name))
    q, k, v, documents = rows()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # torch warns that the reference is slow
        y = causal_attention(q, k, v, make_mask(documents, window, "flex", q.dtype))
    assert torch.allclose(y.double(), dense(q, k, v, documents, window), atol=1e-5)


def test_blocks_score_no_key_outside_the_window():
    # karpathy/nanochat 475: a window must save work, not only mask it.
    T, window = 512, 64
    pieces = make_mask(torch.zeros(1, T, dtype=torch.long), window, "blocked", torch.float32)
    scored = sum(bias.size(2) * bias.size(3) for *_, bias in pieces)
    assert scored <= 2 * T * window


@pytest.mark.slow
def test_a_compiled_model_gives_the_same_loss_and_gradients():
    torch.manual_seed(0)
    model = GPT(ModelConfig(vocab_size=64, depth=2, width=32, heads=2, kv_heads=1, head_dim=16, context=32))
    with torch.no_grad():
        for p in model.parameters():
            p.add_(0.1 * torch.randn_like(p))
    ids = torch.randint(1, 64, (2, 33))
    ids[:, 0] = 0
    results = []
    for step_model in (model, torch.compile(model)):
        model.zero_grad()
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            loss = step_model(ids[:, :-1], ids[:, 1:])
            loss.backward()
        results.append((loss.item(), {n: p.grad.clone() for n, p in model.named_parameters()}))
    (eager, eager_grads), (compiled, compiled_grads) = results
    assert compiled == pytest.approx(eager, rel=1e-5)
    for name, grad in eager_grads.items():
        assert torch.allclose(grad, compiled_grads[name], atol=1e-5, rtol=1e-3), name
