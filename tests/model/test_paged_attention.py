"""Kernels in Triton without a GPU: interpreted on the CPU, and compiled for cards that are not here."""

import os
import re
import subprocess
import sys
import tempfile
from pathlib import Path

import pytest

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


@pytest.mark.slow
@pytest.mark.skipif(not (BINARIES / "cuobjdump").exists(), reason="this Triton has no tools for NVIDIA cards")
@pytest.mark.parametrize("card", [80, 86, 89, 90, 100, 120])
@pytest.mark.parametrize("dtype", ["bf16", "fp16", "fp32"])
def test_compiled_for_cards_nothing_spills_and_16_bytes_are_loaded_at_once(card, dtype):
    """Registers that spill into memory would make it several times slower, and so would loads of single numbers."""
    from triton.backends.compiler import GPUTarget
    from triton.compiler import ASTSource

    from nutshell.model.paged_attention import TILE_KEYS, _attend, options

    names = _attend.arg_names[:14]
    pointers = dict.fromkeys(names[:3], f"*{dtype}") | dict.fromkeys(names[3:5], "*i64") | dict.fromkeys(names[5:7], "*fp32")
    numbers = dict.fromkeys(names[7:10], "i32") | {"scale": "fp32"} | dict.fromkeys(names[11:13], "i32")
    aligned = {(names.index(name),): [["tt.divisibility", 16]] for name in [*pointers, "part", "block_stride"]}
    for dim, group, queries in [
        (128, 1, 16),
        (64, 1, 16),
        (64, 4, 16),
        *([] if dtype == "fp32" else [(128, 1, 64), (64, 1, 64)]),
    ]:
        sizes = {"GROUP": group, "D": dim, "WIDE": dim, "BLOCK": 16, "QUERIES": queries, "KEYS": TILE_KEYS}
        source = ASTSource(_attend, pointers | numbers, sizes, attrs=aligned)
        compiled = triton.compile(source, target=GPUTarget("cuda", card, 32), options=options(4 if dtype == "fp32" else 2))
        assert compiled.metadata.shared < 99 << 10, "the least that these cards have"
        with tempfile.NamedTemporaryFile(suffix=".cubin") as file:
            Path(file.name).write_bytes(compiled.asm["cubin"])
            command = [BINARIES / "cuobjdump", "-res-usage", file.name]
            used = subprocess.run(command, capture_output=True, text=True, check=True).stdout
        assert int(re.findall(r"STACK:(\d+)", used)[0]) <= 8, (dim, group, queries, used)
        assert len(re.findall(r"cp\.async\.c[ag]\.shared\.global [^;]*, 0x10", compiled.asm["ptx"])) >= 8, (dim, group, queries)
