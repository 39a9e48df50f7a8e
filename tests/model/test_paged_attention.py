"""Kernels in Triton without a GPU: interpreted on the CPU, and compiled for cards that are not here."""

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from nutshell.model.kv_blocks import BLOCK

triton = pytest.importorskip("triton", reason="Triton is not installed")

BINARIES = Path(triton.__file__).parent / "backends" / "nvidia" / "bin"


@pytest.mark.parametrize("tests", ["probe", pytest.param("not probe", marks=pytest.mark.slow)])
def test_interpreted(tests):
    """In a process of its own, since Triton decides when it is first imported whether it interprets."""
    file = Path(__file__).with_name("interpreted_kernels.py")
    env = {**os.environ, "TRITON_INTERPRET": "1"}
    command = [sys.executable, "-m", "pytest", "-q", "-x", "-p", "no:cacheprovider", "-p", "no:xdist", str(file), "-k", tests]
    ended = subprocess.run(command, env=env, capture_output=True, text=True, timeout=300)
    assert ended.returncode == 0, ended.stdout + ended.stderr
    assert "skipped" not in ended.stdout


class Card:
    """What Triton asks a driver for, of a card that is not here."""

    def __init__(self, capability):
        self.capability = capability

    def get_current_target(self):
        from triton.backends.compiler import GPUTarget

        return GPUTarget("cuda", self.capability, 32)

    def get_current_device(self):
        return self.capability

    def get_current_stream(self, device):
        return 0


@pytest.mark.slow
@pytest.mark.skipif(not (BINARIES / "cuobjdump").exists(), reason="this Triton has no tools for NVIDIA cards")
@pytest.mark.parametrize("capability", [80, 86, 89, 90, 100, 120])
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float32])
def test_compiled_for_cards_nothing_spills_and_16_bytes_are_loaded_at_once(capability, dtype, monkeypatch, tmp_path):
    """Registers that spill into memory would make it several times slower, and so would loads of single numbers."""
    from triton.runtime.jit import JITFunction

    from nutshell.model.paged_attention import paged_attention

    compiled, run = [], JITFunction.run
    monkeypatch.setattr(triton.runtime.driver, "_active", Card(capability))
    monkeypatch.setattr(
        JITFunction, "run", lambda self, *args, **options: compiled.append(run(self, *args, **{**options, "warmup": True}))
    )
    for dim, heads, kv_heads, tokens in [(128, 10, 10, 1), (64, 4, 4, 1), (64, 8, 2, 1), (128, 10, 10, 100), (64, 8, 2, 100)]:
        compiled.clear()
        q = torch.zeros(2, tokens, heads, dim, dtype=dtype)
        keys, values = (torch.zeros(9, kv_heads, *shape, dtype=dtype) for shape in ((dim, BLOCK), (BLOCK, dim)))
        paged_attention(q, keys, values, torch.zeros(2, 128, dtype=torch.long), torch.zeros(2, dtype=torch.long), 2048)
        attend, combine = compiled
        assert attend.metadata.shared < 99 << 10, "the least that these cards have"
        for kernel in (attend, combine):
            file = tmp_path / "kernel.cubin"
            file.write_bytes(kernel.asm["cubin"])
            command = [BINARIES / "cuobjdump", "-res-usage", file]
            used = subprocess.run(command, capture_output=True, text=True, check=True).stdout
            assert int(re.findall(r"STACK:(\d+)", used)[0]) <= 8, (dim, heads, kv_heads, tokens, used)
        assert len(re.findall(r"cp\.async\.c[ag]\.shared\.global [^;]*, 0x10", attend.asm["ptx"])) >= 8
