"""Where a run computes: device, dtype, threads and ranks. One object, made in `cli` and passed in."""

from __future__ import annotations

import os
import sys
import time
from dataclasses import dataclass

import torch
import torch.distributed as dist

# Dense bf16 peaks in FLOP/s of cards that users have (vendors' data sheets); elsewhere MFU is "n/a".
PEAK_FLOPS = {
    "H200": 989e12, "H100 PCIe": 756e12, "H100": 989e12, "GH200": 989e12, "B200": 2250e12, "A100": 312e12, "A10G": 70e12,
    "L40S": 362e12, "L4": 121e12, "RTX 4090": 165e12, "RTX 3090": 71e12, "RTX 5090": 209e12,
}  # fmt: skip


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
    """Kernel of whole rows: "flex" where FlexAttention launches, else plain products of blocks."""

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

    def barrier(self) -> None:
        if self.world_size > 1:
            dist.barrier()

    def agree(self, value: float) -> float:
        """Rank 0's value on every rank."""
        if self.world_size == 1:
            return value
        tensor = torch.tensor([value], dtype=torch.float64, device=self.device)
        dist.broadcast(tensor, 0)
        return float(tensor.item())

    def mean(self, value: float) -> float:
        """The mean of a number over all ranks."""
        if self.world_size == 1:
            return value
        tensor = torch.tensor([value], dtype=torch.float32, device=self.device)
        dist.all_reduce(tensor)
        return float(tensor.item()) / self.world_size

    def total(self, values: torch.Tensor) -> torch.Tensor:
        """The sum of a tensor over all ranks."""
        if self.world_size > 1:
            values = values.to(self.device)
            dist.all_reduce(values)
        return values


def peak_memory_bytes(device: torch.device) -> int | None:
    """Most memory this process has held: of the GPU where it computes on one, else resident; None where unknown."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device)
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


DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16}


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


def _flex_launches(device: torch.device) -> bool:
    """Whether FlexAttention compiles and runs here, found out by running it: importing proves nothing."""
    from torch.nn.attention.flex_attention import create_block_mask, flex_attention

    try:
        mask = create_block_mask(lambda b, h, q, k: q >= k, 1, None, 128, 128, device=device)
        x = torch.randn(1, 1, 128, 64, device=device, dtype=torch.bfloat16, requires_grad=True)
        torch.compile(flex_attention)(x, x, x, block_mask=mask).sum().backward()
        torch.cuda.synchronize(device)
    except Exception as error:  # whatever a broken compiler or driver raises, the fallback works
        print(
            f"FlexAttention does not run here ({type(error).__name__}); attention uses blocks of plain products.", file=sys.stderr
        )
        return False
    return True


def keep_freed_memory() -> None:
    """Let glibc keep what tensors free instead of returning it: a CPU step otherwise pays for 70 MB of fresh pages (3% of it)."""
    import ctypes

    try:
        mallopt = ctypes.CDLL(None).mallopt
    except (OSError, AttributeError, TypeError):  # not glibc
        return
    mallopt(-3, 1 << 30)  # M_MMAP_THRESHOLD: tensors come from the heap
    mallopt(-1, 1 << 30)  # M_TRIM_THRESHOLD: and a gigabyte of it stays


def start_runtime(*, device: str = "auto", dtype: str = "auto", threads: int = 0) -> Runtime:
    """Choose device, dtype and ranks; joins the process group when torchrun started us.

    dtype "auto": bf16 on GPUs that have it, on CPU where a measured product is at least 1.3x as fast, else fp32.
    Raises ValueError for a device or dtype this machine does not have.
    """
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
    if threads:
        torch.set_num_threads(threads)
    chosen = torch.device(f"cuda:{local}" if device == "cuda" else device)
    if chosen.type == "cuda":
        torch.cuda.set_device(chosen)
        torch.set_float32_matmul_precision("high")
    if world > 1 and not dist.is_initialized():
        dist.init_process_group("nccl" if chosen.type == "cuda" else "gloo")
    on_gpu = chosen.type == "cuda"
    peak: float | None = None
    if chosen.type == "cpu":
        keep_freed_memory()
        rates = {name: matmul_flops(chosen, DTYPES[name]) for name in DTYPES}
        if dtype == "auto":
            dtype = "bfloat16" if rates["bfloat16"] > 1.3 * rates["float32"] else "float32"
        peak = rates[dtype]
    elif chosen.type == "cuda":
        if dtype == "auto":
            dtype = "bfloat16" if torch.cuda.get_device_capability(chosen) >= (8, 0) else "float32"
        name = torch.cuda.get_device_name(chosen)
        peak = next((flops for key, flops in PEAK_FLOPS.items() if key in name), None) if dtype == "bfloat16" else None
    elif dtype == "auto":
        dtype = "float32"
    runtime = Runtime(
        device=chosen, dtype=DTYPES[dtype], threads=torch.get_num_threads(), rank=rank, world_size=world, local_rank=local,
        peak_flops=peak, memory_bytes=device_memory_bytes(chosen, int(os.environ.get("LOCAL_WORLD_SIZE", world))),
        compiled=on_gpu, attention="flex" if on_gpu and _flex_launches(chosen) else "blocked",
    )  # fmt: skip
    if world > 1:  # every rank computes alike, whatever its own measurement said
        same = runtime.agree(float(runtime.dtype == torch.bfloat16))
        if bool(same) != (runtime.dtype == torch.bfloat16):
            runtime = Runtime(**{**vars(runtime), "dtype": torch.bfloat16 if same else torch.float32})
    return runtime
