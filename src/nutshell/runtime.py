"""Where a run computes: device, dtype, threads and ranks. One object, made in `cli` and passed in."""

from __future__ import annotations

import contextlib
import os
import re
import signal
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from datetime import timedelta
from pathlib import Path

import torch
import torch.distributed as dist


@dataclass(frozen=True, kw_only=True)
class Runtime:
    """The decisions that all code reads and none repeats."""

    device: torch.device
    dtype: torch.dtype
    """Matrix products and activations; master weights stay fp32."""
    threads: int = 0
    rank: int = 0
    world_size: int = 1
    local_rank: int = 0
    peak_flops: float | None = None
    """Of one rank: from the table on a GPU, a measured matrix product on CPU, None where unknown."""
    memory_bytes: int = 0
    """Of this rank's GPU, or its part of the machine's memory; 0 where unknown."""
    compiled: bool = False
    """Training steps go through torch.compile."""
    attention: str = "blocked"
    """Kernel of whole rows, one of `model/probe.py`."""
    fp8: bool = False
    """Block matrices are multiplied in fp8 while training (`model/fp8.py`)."""

    @property
    def is_main(self) -> bool:
        return self.rank == 0

    @property
    def dtype_name(self) -> str:
        return str(self.dtype).removeprefix("torch.")

    def synchronize(self) -> None:
        """Wait for the device, so that a clock read afterwards is true."""
        if self.device.type == "cuda":
            torch.cuda.synchronize(self.device)
        elif self.device.type == "mps":
            torch.mps.synchronize()

    @property
    def wire(self) -> torch.device:
        """Where tensors are that ranks exchange: NCCL takes those of the GPU, gloo those of the CPU (MPS has no float64)."""
        return self.device if self.device.type == "cuda" else torch.device("cpu")

    def barrier(self) -> None:
        if self.world_size > 1:
            dist.barrier()

    def agree(self, value: float) -> float:
        """Rank 0's value on every rank."""
        if self.world_size == 1:
            return value
        tensor = torch.tensor([value], dtype=torch.float64, device=self.wire)
        dist.broadcast(tensor, 0)
        return float(tensor.item())

    def mean(self, value: float) -> float:
        """The mean of a number over all ranks."""
        if self.world_size == 1:
            return value
        tensor = torch.tensor([value], dtype=torch.float32, device=self.wire)
        dist.all_reduce(tensor)
        return float(tensor.item()) / self.world_size

    def total(self, values: torch.Tensor) -> torch.Tensor:
        """The sum of a tensor over all ranks."""
        if self.world_size > 1:
            values = values.to(self.wire)
            dist.all_reduce(values)
        return values


def peak_memory_bytes(device: torch.device) -> int | None:
    """Most memory this process has held: of the GPU where it computes on one, else resident; None where unknown."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device)
    status = Path("/proc/self/status")
    if status.exists():  # Linux, where getrusage's figure is inherited from the process that started this one
        found = re.search(r"VmHWM:\s+(\d+) kB", status.read_text(encoding="utf-8"))
        if found:
            return int(found[1]) * 1024
    try:
        import resource
    except ImportError:  # Windows
        return None
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else peak * 1024


def device_memory_bytes(device: torch.device, ranks: int) -> int:
    """Memory that one rank may fill: its GPU's, or an equal part of the machine's; 0 where unknown."""
    if device.type == "cuda":
        return torch.cuda.get_device_properties(device).total_memory
    if hasattr(os, "sysconf") and "SC_PHYS_PAGES" in os.sysconf_names:
        return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") // ranks
    return 0


COLLECTIVE_TIMEOUT = timedelta(minutes=30)
"""Longer than any evaluation on rank 0 that the others wait for. It ends only what hangs: a rank that dies closes its connections
or, where that goes unnoticed, is missed by torchrun's heartbeats."""


def die_with_agent() -> None:
    """Let Linux end this rank when its torchrun agent is killed: it would hold the run's lock and its GPU otherwise."""
    import ctypes

    with contextlib.suppress(OSError, AttributeError, TypeError):  # not Linux
        ctypes.CDLL(None).prctl(1, signal.SIGKILL)  # PR_SET_PDEATHSIG


DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}


def matmul_flops(device: torch.device, dtype: torch.dtype, size: int = 1024, seconds: float = 0.15) -> float:
    """FLOP/s of a square matrix product: the best of repeated runs within `seconds`."""
    a, b = torch.randn(size, size, device=device).to(dtype), torch.randn(size, size, device=device).to(dtype)
    a @ b
    best, start = float("inf"), time.perf_counter()
    while time.perf_counter() - start < seconds:
        if device.type == "cuda":
            torch.cuda.synchronize(device)
        t = time.perf_counter()
        a @ b
        if device.type == "cuda":
            torch.cuda.synchronize(device)
        best = min(best, time.perf_counter() - t)
    return 2 * size**3 / best


def keep_freed_memory() -> None:
    """Let glibc keep what tensors free instead of returning it: a CPU step otherwise pays for 70 MB of fresh pages (3% of it)."""
    import ctypes

    try:
        mallopt = ctypes.CDLL(None).mallopt
    except (OSError, AttributeError, TypeError):  # not glibc
        return
    mallopt(-3, 1 << 30)  # M_MMAP_THRESHOLD: tensors come from the heap
    mallopt(-1, 1 << 30)  # M_TRIM_THRESHOLD: and a gigabyte of it stays


def start_runtime(
    *,
    device: str = "auto",
    dtype: str = "auto",
    threads: int = 0,
    fp8: bool = False,
    choose_attention: Callable[[torch.device, torch.dtype], tuple[str, str]] | None = None,
    gpu_peak_flops: Callable[[str], float | None] | None = None,
) -> Runtime:
    """Choose device, dtype and ranks; joins the process group when torchrun started us.

    dtype "auto": on GPUs bf16, fp16 on those before Ampere; on CPU bf16 where a measured product is at least 1.3x as fast as in
    fp32. `choose_attention` gives the kernel and a line that says why; without it attention is plain products.
    `gpu_peak_flops` gives the peak of the GPU of that name; without it MFU is not known there.
    Raises ValueError for a device, dtype or fp8 that this machine does not have.
    """
    if dist.is_torchelastic_launched():
        die_with_agent()
    rank, world, local = (int(os.environ.get(k, d)) for k, d in (("RANK", 0), ("WORLD_SIZE", 1), ("LOCAL_RANK", 0)))
    available = ["cpu"] + ["cuda"] * torch.cuda.is_available() + ["mps"] * torch.backends.mps.is_available()
    if device == "auto":
        device = available[-1]
    if device.split(":")[0] not in available:
        raise ValueError(f"--device is {device!r}; this machine has: {', '.join(available)} (or auto).")
    if dtype != "auto" and dtype not in DTYPES:
        raise ValueError(f"--dtype is {dtype!r}; accepted: auto, {', '.join(DTYPES)}.")
    if threads < 0:
        raise ValueError(f"--threads is {threads}; accepted: 0 (all cores) or more.")
    chosen = torch.device(f"cuda:{local}" if device == "cuda" else device)
    capability = torch.cuda.get_device_capability(chosen) if chosen.type == "cuda" else None
    if fp8:
        refuse_fp8(chosen, capability, dtype)
    if threads:
        torch.set_num_threads(threads)
    if chosen.type == "cuda":
        torch.cuda.set_device(chosen)
        torch.set_float32_matmul_precision("high")
    if world > 1 and not dist.is_initialized():
        dist.init_process_group("nccl" if chosen.type == "cuda" else "gloo", timeout=COLLECTIVE_TIMEOUT)
    peak: float | None = None
    if chosen.type == "cpu":
        keep_freed_memory()
        rates = {name: matmul_flops(chosen, DTYPES[name]) for name in ("float32", "bfloat16")}
        if dtype == "auto":
            dtype = "bfloat16" if rates["bfloat16"] > 1.3 * rates["float32"] else "float32"
        peak = rates.get(dtype)
    elif capability:
        if dtype == "auto":
            dtype = "bfloat16" if capability >= (8, 0) else "float16" if capability >= (7, 0) else "float32"
        if gpu_peak_flops and dtype != "float32":
            peak = gpu_peak_flops(torch.cuda.get_device_name(chosen))
    elif dtype == "auto":
        dtype = "float32"
    attention, why = choose_attention(chosen, DTYPES[dtype]) if choose_attention else ("blocked", "plain products in blocks")
    runtime = Runtime(
        device=chosen, dtype=DTYPES[dtype], threads=torch.get_num_threads(), rank=rank, world_size=world, local_rank=local,
        peak_flops=peak, memory_bytes=device_memory_bytes(chosen, int(os.environ.get("LOCAL_WORLD_SIZE", world))),
        compiled=chosen.type == "cuda", attention=attention, fp8=fp8,
    )  # fmt: skip
    if world > 1:  # every rank computes alike, whatever its own measurement said
        names = list(DTYPES)
        runtime = replace(runtime, dtype=DTYPES[names[int(runtime.agree(names.index(dtype)))]])
    if chosen.type == "cuda" and choose_attention and (runtime.is_main or attention == "blocked"):
        print(f"{torch.cuda.get_device_name(chosen)}, {runtime.dtype_name}{', fp8' * fp8}. Attention: {why}.", file=sys.stderr)
    return runtime


def leave_ranks() -> None:
    """Close the process group that `start_runtime` joined. Not for a rank that fails: the others may wait for it."""
    if dist.is_initialized():
        dist.barrier()  # nobody leaves while another still sends
        dist.destroy_process_group()


def refuse_fp8(device: torch.device, capability: tuple[int, int] | None, dtype: str) -> None:
    """ValueError where fp8 products do not run or do not fit the dtype that is asked for."""
    if capability is None or capability < (8, 9) or torch.version.hip:
        found = device.type if capability is None else f"a GPU of compute capability {capability[0]}.{capability[1]}"
        raise ValueError(
            "--fp8 needs an NVIDIA GPU of compute capability 8.9 or later (Ada, Hopper, Blackwell); "
            f"this run would be on {found}. Leave --fp8 out."
        )
    if dtype not in ("auto", "bfloat16"):
        raise ValueError(f"--fp8 computes beside bfloat16; --dtype is {dtype!r}. Leave one of the two out.")
