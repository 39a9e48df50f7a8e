"""Attention by document boundaries: what the kernel is called with, by a reference that takes the same arguments."""

import sys
import types
import warnings

import pytest
import torch
import torch._dynamo
from hypothesis import given
from hypothesis import strategies as st
from test_attention import WINDOWS, dense, rows

from nutshell.model import flash, loss
from nutshell.model.attention import causal_attention, make_mask
from nutshell.model.config import ModelConfig
from nutshell.model.flash import document_offsets
from nutshell.model.fp8 import quantise_weights
from nutshell.model.gpt import GPT


def flash_attn_varlen_func(
    q, k, v, cu_seqlens_q, cu_seqlens_k, max_seqlen_q, max_seqlen_k, softmax_scale=None, causal=False, window_size=(-1, -1)
):
    """What FlashAttention-3's function promises, sequence by sequence in float64: causal means aligned to the last key."""
    assert cu_seqlens_q.dtype == cu_seqlens_k.dtype == torch.int32
    assert int(cu_seqlens_q[-1]) == q.size(0)
    y = torch.full_like(q, float("nan"), dtype=torch.float64)
    groups = q.size(1) // k.size(1)
    k, v = k.double().repeat_interleave(groups, 1), v.double().repeat_interleave(groups, 1)
    for start, end in zip(cu_seqlens_q[:-1].tolist(), cu_seqlens_q[1:].tolist(), strict=True):
        assert end - start <= min(max_seqlen_q, max_seqlen_k)
        scores = torch.einsum("qhd,khd->hqk", q[start:end].double(), k[start:end]) * q.size(-1) ** -0.5
        distance = torch.arange(end - start)[:, None] - torch.arange(end - start)[None]
        left, right = window_size
        if causal:
            right = 0
        hidden = (distance > (left if left >= 0 else end)) | (-distance > (right if right >= 0 else end))
        scores = scores.masked_fill(hidden, float("-inf"))
        y[start:end] = torch.einsum("hqk,khd->qhd", scores.softmax(-1), v[start:end])
    return y.to(q.dtype)


@pytest.fixture
def kernel(monkeypatch):
    module = types.ModuleType("flash_attn_interface")
    module.flash_attn_varlen_func = flash_attn_varlen_func
    monkeypatch.setitem(sys.modules, "flash_attn_interface", module)
    flash.load_kernel.cache_clear()
    yield module
    flash.load_kernel.cache_clear()


@pytest.mark.parametrize("window", WINDOWS)
def test_documents_and_windows_equal_the_dense_mask(kernel, window):
    q, k, v, documents = rows()
    y = causal_attention(q, k, v, make_mask(documents, window, "flash3", q.dtype))
    assert torch.allclose(y.double(), dense(q, k, v, documents, window), atol=1e-5)


def test_a_build_that_also_returns_the_log_sum_exp(kernel):
    kernel.flash_attn_varlen_func = lambda *q, **named: (flash_attn_varlen_func(*q, **named), None)
    q, k, v, documents = rows()
    y = causal_attention(q, k, v, make_mask(documents, 5, "flash3", q.dtype))
    assert torch.allclose(y.double(), dense(q, k, v, documents, 5), atol=1e-5)


@given(st.lists(st.lists(st.booleans(), min_size=6, max_size=6), min_size=1, max_size=5))
def test_offsets_are_the_documents_and_then_empty_ones(starts):
    documents = torch.tensor(starts).cumsum(1)
    offsets = document_offsets(documents).tolist()
    numbers = [(row, int(n)) for row, line in enumerate(documents) for n in line]
    changes = [i for i in range(len(numbers)) if i == 0 or numbers[i] != numbers[i - 1]]
    assert offsets[: len(changes)] == changes
    assert set(offsets[len(changes) :]) == {documents.numel()}
    assert (len(offsets) - 1).bit_count() == 1


def test_a_model_by_documents_equals_one_by_blocks(kernel):
    torch.manual_seed(0)
    model = GPT(ModelConfig(vocab_size=64, depth=3, width=32, heads=4, kv_heads=2, head_dim=8, context=32))
    with torch.no_grad():
        for p in model.parameters():
            p.add_(0.1 * torch.randn_like(p))
    ids = torch.randint(0, 8, (3, 33))  # many documents, rows that begin in the middle of one
    results = []
    for name in ("blocked", "flash3"):
        model.set_precision(torch.float32, name).zero_grad()
        loss = model(ids[:, :-1], ids[:, 1:])
        loss.backward()
        results.append([loss.detach(), *(p.grad.clone() for p in model.parameters())])
    for blocked, by_documents in zip(*results, strict=True):
        assert torch.allclose(blocked, by_documents, atol=1e-5, rtol=1e-4)


def test_given_offsets_are_taken(kernel):
    model = GPT(ModelConfig(vocab_size=64, depth=2, width=32, heads=2, kv_heads=2, head_dim=16, context=16))
    model.blocks[0].attention.out.weight.data.normal_()
    model.set_precision(torch.float32, "flash3")
    ids = torch.randint(1, 64, (1, 16))
    two = torch.tensor([0, 7, 16], dtype=torch.int32)
    assert not torch.equal(model(ids), model(ids, offsets=two))


def tiny(dtype, kernel_name, **more) -> GPT:
    torch.manual_seed(0)
    model = GPT(ModelConfig(vocab_size=64, depth=2, width=32, heads=2, kv_heads=1, head_dim=16, context=32))
    return model.set_precision(dtype, kernel_name, **more)


@pytest.mark.slow
@pytest.mark.parametrize(("kernel_name", "fp8"), [("blocked", False), ("blocked", True), ("varlen", True), ("flex", False)])
def test_the_compiled_step_is_one_graph(kernel_name, fp8, monkeypatch):
    """A graph break is a wait for Python and a write of everything to memory."""
    monkeypatch.setattr(loss, "_fused", lambda device: loss.loss_and_grad)  # what a GPU runs
    model = tiny(torch.bfloat16, kernel_name, fp8=fp8)
    ids = torch.randint(0, 64, (2, 33))
    offsets = document_offsets((ids[:, :-1] == 0).cumsum(1))
    graphs = []
    torch._dynamo.reset()
    with warnings.catch_warnings(), torch.set_grad_enabled(kernel_name != "flex"):  # which has no backward on CPU
        warnings.simplefilter("ignore")
        # Traced, not run: torch's kernel for documents needs a GPU.
        compiled = torch.compile(
            model, backend=lambda graph, _: graphs.append(graph) or (lambda *_: [torch.zeros(())]), fullgraph=True
        )
        compiled(ids[:, :-1], ids[:, 1:], offsets=offsets)
    assert len(graphs) == 1


@pytest.mark.slow
def test_other_batches_and_weights_are_not_compiled_for_again(kernel):
    """The documents' number changes from batch to batch: it is compiled for once, and then once for any number."""
    graphs = []
    reference = torch.library.custom_op("nutshell_test::attend", mutates_args=())(_reference)
    reference.register_fake(lambda q, *_: torch.empty_like(q))
    reference.register_autograd(lambda _, grad: (grad, None, None, None, None, None))
    kernel.flash_attn_varlen_func = lambda q, k, v, *, cu_seqlens_q, max_seqlen_q, window_size, **_: reference(
        q, k, v, cu_seqlens_q, max_seqlen_q, window_size[0]
    )
    torch._dynamo.reset()
    model = tiny(torch.float32, "flash3", fp8=True)
    compiled = torch.compile(model, backend=lambda graph, _: graphs.append(graph) or graph.forward, fullgraph=True)
    sizes = set()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        for vocabulary in (64, 8, 4, 32, 2, 16):
            ids = torch.randint(0, vocabulary, (2, 33), generator=torch.Generator().manual_seed(vocabulary))
            offsets = document_offsets((ids[:, :-1] == 0).cumsum(1))
            sizes.add(len(offsets))
            loss_value = compiled(ids[:, :-1], ids[:, 1:], offsets=offsets)
            loss_value.backward()
            quantise_weights(model)
            model.zero_grad()
            assert loss_value.item() == pytest.approx(model(ids[:, :-1], ids[:, 1:]).item(), rel=1e-4)
    assert len(sizes) > 3
    assert len(graphs) <= 2


def _reference(q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, offsets: torch.Tensor, longest: int, left: int) -> torch.Tensor:
    return flash_attn_varlen_func(q, k, v, offsets, offsets, longest, longest, causal=True, window_size=(left, 0))
