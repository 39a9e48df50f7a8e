"""The probe of attention kernels: broken ones are found out by running them, and it is said what runs instead."""

import sys
import types

import pytest
import torch
from test_flash import flash_attn_varlen_func

from nutshell.model import flash
from nutshell.model.attention import causal_attention, make_mask
from nutshell.model.probe import choose_attention, first_that_runs

CPU = torch.device("cpu")
FIRST = ("flash3", "blocked")


@pytest.fixture
def installed(monkeypatch):
    """installed(function): a module flash_attn_interface that has it; None: no such module."""

    def install(function):
        module = None
        if function is not None:
            module = types.ModuleType("flash_attn_interface")
            module.flash_attn_varlen_func = function
        monkeypatch.setitem(sys.modules, "flash_attn_interface", module)
        flash.load_kernel.cache_clear()

    yield install
    flash.load_kernel.cache_clear()


def choose(dtype=torch.float32, kernels=FIRST):
    return first_that_runs(kernels, CPU, dtype, compiled=False)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_a_kernel_that_runs_is_taken(installed, dtype):
    installed(flash_attn_varlen_func)
    assert choose(dtype) == ("flash3", "flash3")


def test_a_kernel_that_is_not_there(installed):
    installed(None)
    assert choose() == ("blocked", "blocked; flash3 is not installed")


def test_a_kernel_that_imports_but_cannot_launch(installed):
    """nanochat 820: the module imports, every call fails."""

    def broken(*_, **__):
        raise RuntimeError("CUDA error: no kernel image is available for execution on the device\nand a second line")

    installed(broken)
    kernel, why = choose()
    assert kernel == "blocked"
    assert why == (
        "blocked; flash3 does not run here (RuntimeError: CUDA error: no kernel image is available for execution on the device)"
    )
    q = torch.randn(1, 40, 2, 16)
    assert causal_attention(q, q, q, make_mask(torch.zeros(1, 40, dtype=torch.long), 8, kernel, q.dtype)).shape == q.shape


def test_a_kernel_without_a_backward_pass(installed):
    installed(lambda *q, **named: flash_attn_varlen_func(*q, **named).detach())
    assert choose()[1].startswith("blocked; flash3 does not run here (RuntimeError")


@pytest.mark.parametrize(
    "wrong",
    [
        lambda *q, **named: flash_attn_varlen_func(*q, **{**named, "window_size": (-1, 0)}),
        lambda *q, **named: flash_attn_varlen_func(*q, **named) * float("nan"),
        lambda q, *kv, cu_seqlens_q, **named: flash_attn_varlen_func(
            q, *kv, **{**named, "cu_seqlens_q": cu_seqlens_q[[0, -1]], "cu_seqlens_k": cu_seqlens_q[[0, -1]],
                       "max_seqlen_q": 512, "max_seqlen_k": 512},
        ),
    ],
    ids=["ignores the window", "nan", "ignores documents"],
)  # fmt: skip
def test_a_kernel_that_computes_something_else(installed, wrong):
    installed(wrong)
    kernel, why = choose()
    assert kernel == "blocked"
    assert "its results differ from those of plain products by" in why


@pytest.mark.slow
def test_every_kernel_may_fail(installed):
    """On CPU FlexAttention has no backward pass and torch's kernel for documents does not exist."""
    installed(None)
    kernel, why = choose(kernels=("flash3", "flex", "varlen", "blocked"))
    assert kernel == "blocked"
    assert [part.split(" ")[0] for part in why.split("; ")] == ["blocked", "flash3", "flex", "varlen"]


def test_elsewhere_than_on_cuda_nothing_is_tried(installed):
    installed(lambda *_, **__: pytest.fail("it was called"))
    for device in ("cpu", "mps"):
        assert choose_attention(torch.device(device), torch.bfloat16)[0] == "blocked"


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
def test_on_cuda_a_compiled_kernel_is_found():
    kernel, why = choose_attention(torch.device("cuda"), torch.bfloat16)
    assert kernel != "blocked", why
