"""Where a run computes: device, dtype, threads and ranks. One object, made in `cli` and passed in."""

from __future__ import annotations

import contextlib
import os
import re
import sys
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TypeVar

import torch
import torch.distributed as dist

from nutshell.machine import cpu_dtype, cpu_quota, die_with_torchrun, memory_bytes
from nutshell.ranks import Meeting, join_ranks, torchrun_ranks

T = TypeVar("T")


@dataclass(frozen=True, kw_only=True)
class Runtime:
    """Device, dtype, kernels and ranks, chosen once at start."""

    device: torch.device
    dtype: torch.dtype  # matrix products and activations; master weights stay fp32
    threads: int = 0
    rank: int = 0
    world_size: int = 1
    peak_flops: float | None = None
    """Of one rank: from the table on a GPU, a measured matrix product on CPU, None where unknown."""
    memory_bytes: int = 0  # of this rank's GPU, or its part of the machine's memory; 0 where unknown
    compiled: bool = False  # training steps go through torch.compile
    attention: str = "blocked"  # kernel of whole rows, one of `model/probe.py`
    fp8: bool = False  # block matrices are multiplied in fp8 while training (`model/fp8.py`)
    meeting: Meeting | None = None  # where several ranks wait for each other; None on one

    @property
    def is_main(self) -> bool:
        return self.rank == 0

    @property
    def dtype_name(self) -> str:
        return str(self.dtype).removeprefix("torch.")

    def synchronize(self) -> None:
        """Wait for the device, so that a clock that is read afterwards has measured its work."""
        if self.device.type == "cuda":
            torch.cuda.synchronize(self.device)
        elif self.device.type == "mps":
            torch.mps.synchronize()

    @property
    def wire(self) -> torch.device:
        """The device of tensors that ranks exchange: NCCL takes those of the GPU, gloo those of the CPU (MPS has no float64)."""
        return self.device if self.device.type == "cuda" else torch.device("cpu")

    def barrier(self) -> None:
        """Wait for all ranks, however long one of them takes."""
        if self.meeting:
            self.meeting.barrier()

    def agree(self, value: T) -> T:
        """Rank 0's value (anything that JSON holds) on every rank, however long rank 0 takes. Clocks and machines differ, so
        whatever ranks branch on goes through here."""
        return self.meeting.agree(value) if self.meeting else value

    def gather(self, value: object) -> list:
        """The values of all ranks in their order, on every rank."""
        if self.world_size == 1:
            return [value]
        gathered: list = [None] * self.world_size
        dist.all_gather_object(gathered, value)
        return gathered

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
        return int(re.findall(r"VmHWM:\s+(\d+) kB", status.read_text(encoding="utf-8"))[0]) * 1024
    try:
        import resource
    except ImportError:  # Windows
        return None
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024)


def gpu_readings(device: torch.device) -> dict[str, float]:
    """`gpu_utilisation` (0 to 1), `gpu_memory_gib` and `gpu_power_watts` of a CUDA device, where its driver has them."""
    if device.type != "cuda":
        return {}
    readings: dict[str, Callable[[], float]] = {
        "gpu_utilisation": lambda: torch.cuda.utilization(device) / 100,
        "gpu_memory_gib": lambda: (total - free) / 2**30,
        "gpu_power_watts": lambda: torch.cuda.power_draw(device) / 1000,
    }
    free, total = torch.cuda.mem_get_info(device)
    found = {}
    for name, read in readings.items():
        with contextlib.suppress(Exception):  # no NVML; MIG slices and some cards lack a reading
            found[name] = read()
    return found


def device_memory_bytes(device: torch.device, ranks: int) -> int:
    """Memory that one rank may fill: its GPU's, or an equal part of the machine's or container's; 0 where unknown."""
    if device.type == "cuda":
        return torch.cuda.get_device_properties(device).total_memory
    return memory_bytes() // ranks


DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}


def matmul_flops(device: torch.device, dtype: torch.dtype, size: int = 1024, seconds: float = 0.15) -> float:
    """FLOP/s of a square matrix product: the best of repeated runs within `seconds`."""
    clock = Runtime(device=device, dtype=dtype)
    a, b = torch.randn(size, size, device=device).to(dtype), torch.randn(size, size, device=device).to(dtype)
    a @ b
    best, start = float("inf"), time.perf_counter()
    while time.perf_counter() - start < seconds:
        clock.synchronize()
        t = time.perf_counter()
        a @ b
        clock.synchronize()
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


def gpu_dtype(capability: tuple[int, int] | None) -> str:
    """bfloat16 from Ampere on, float16 on Volta and Turing, else float32; float32 on MPS too (`capability` None)."""
    if capability is None or capability < (7, 0):
        return "float32"
    return "bfloat16" if capability >= (8, 0) else "float16"


def start_runtime(
    *,
    device: str = "auto",
    dtype: str = "auto",
    auto_dtype: Mapping[str, str] | None = None,
    threads: int = 0,
    fp8: bool = False,
    ranks: bool = False,
    choose_attention: Callable[[torch.device, torch.dtype], tuple[str, str]] | None = None,
    gpu_peak_flops: Callable[[str], float | None] | None = None,
) -> Runtime:
    """Choose device, dtype and ranks.

    dtype "auto": what `auto_dtype` has for that type of device, else `cpu_dtype` or `gpu_dtype`. With `ranks` it joins the
    process group that the environment asks for; training and eval do, all else is one process whatever RANK and WORLD_SIZE say.
    `choose_attention` gives the kernel and a line that says why; without it attention is plain products. `gpu_peak_flops` gives
    the peak of the GPU of that name; without it MFU is not known there.
    Raises ValueError for a device, dtype or fp8 that this machine does not have.
    """
    rank, world, local = torchrun_ranks() if ranks else (0, 1, 0)
    if ranks:
        die_with_torchrun()
    set_threads(threads)
    chosen = choose_device(device, local)
    capability = torch.cuda.get_device_capability(chosen) if chosen.type == "cuda" else None
    dtype = choose_dtype(dtype, chosen, capability, auto_dtype or {})
    if fp8:
        refuse_fp8(chosen, capability, dtype)
    if capability:
        torch.cuda.set_device(chosen)
        torch.set_float32_matmul_precision("high")
    if chosen.type == "cpu":
        keep_freed_memory()
    meeting = join_ranks(rank, world, "nccl" if chosen.type == "cuda" else "gloo") if world > 1 else None
    peak = _peak_flops(chosen, dtype, gpu_peak_flops) if choose_attention else None  # MFU is of training
    attention, why = choose_attention(chosen, DTYPES[dtype]) if choose_attention else ("blocked", "plain products in blocks")
    memory = device_memory_bytes(chosen, int(os.environ.get("LOCAL_WORLD_SIZE", world)) if ranks else 1)
    if meeting:  # every rank computes alike, whatever it found itself
        own = attention
        dtype, attention = meeting.agree(dtype), meeting.agree(attention)
        peak, memory = meeting.agree(peak), meeting.agree(memory)
        if own != attention:
            print(f"rank {rank} found attention {own} ({why}); it takes {attention}, as rank 0 does.", file=sys.stderr)
    if chosen.type == "cuda" and choose_attention and (rank == 0 or attention == "blocked"):
        print(f"{torch.cuda.get_device_name(chosen)}, {dtype}{', fp8' * fp8}. Attention: {why}.", file=sys.stderr)
    return Runtime(
        device=chosen,
        dtype=DTYPES[dtype],
        threads=torch.get_num_threads(),
        rank=rank,
        world_size=world,
        peak_flops=peak,
        memory_bytes=memory,
        compiled=chosen.type == "cuda",
        attention=attention,
        fp8=fp8,
        meeting=meeting,
    )


def _peak_flops(device: torch.device, dtype: str, of_gpu: Callable[[str], float | None] | None) -> float | None:
    """Measured on a CPU, from the table on a GPU, which has no float32; None where that is not known."""
    if device.type == "cpu":
        return matmul_flops(device, DTYPES[dtype])
    return of_gpu(torch.cuda.get_device_name(device)) if device.type == "cuda" and of_gpu and dtype != "float32" else None


def choose_device(name: str, local_rank: int) -> torch.device:
    """The device of that name; auto is a GPU where there is one. ValueError for one that this machine does not have."""
    available = ["cpu"] + ["cuda"] * torch.cuda.is_available() + ["mps"] * torch.backends.mps.is_available()
    name = available[-1] if name == "auto" else name
    if name.split(":")[0] not in available:
        raise ValueError(f"--device is {name!r}; this machine has: {', '.join(available)} (or auto).")
    return torch.device(f"cuda:{local_rank}" if name == "cuda" else name)


def leave_ranks(runtime: Runtime) -> None:
    """Close the process group that `start_runtime` joined. Not for a rank that fails: the others may wait for it."""
    if runtime.meeting:
        runtime.barrier()
        runtime.meeting.close()
        dist.barrier()  # nobody leaves, and takes the store along, while another still looks at it
        dist.destroy_process_group()


def set_threads(threads: int) -> None:
    """As many as asked for; for 0 as torch takes, or fewer where a container may not use the time of so many cores."""
    if threads < 0:
        raise ValueError(f"--threads is {threads}; accepted: 0 (all cores) or more.")
    if not threads and "OMP_NUM_THREADS" not in os.environ and cpu_quota() < torch.get_num_threads():
        threads = cpu_quota()
    if threads:
        torch.set_num_threads(threads)


def choose_dtype(dtype: str, device: torch.device, capability: tuple[int, int] | None, auto: Mapping[str, str]) -> str:
    """Of matrix products, by name. "auto": what `auto` has for this type of device, else what the device is fast in."""
    if dtype != "auto" and dtype not in DTYPES:
        raise ValueError(f"--dtype is {dtype!r}; accepted: auto, {', '.join(DTYPES)}.")
    if dtype == "auto":
        dtype = auto.get(device.type, "auto")
    if dtype == "auto":
        dtype = cpu_dtype() if device.type == "cpu" else gpu_dtype(capability)
    return dtype


def refuse_fp8(device: torch.device, capability: tuple[int, int] | None, dtype: str) -> None:
    """ValueError where fp8 products do not run or do not fit the dtype that is asked for."""
    if capability is None or capability < (8, 9) or torch.version.hip:
        found = device.type if capability is None else f"a GPU of compute capability {capability[0]}.{capability[1]}"
        raise ValueError(f"--fp8 needs an NVIDIA GPU of compute capability 8.9 or later; this run would be on {found}.")
    if dtype not in ("auto", "bfloat16"):
        raise ValueError(f"--fp8 computes beside bfloat16; --dtype is {dtype!r}. Leave one of the two out.")
