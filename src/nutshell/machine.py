"""What can be known of a machine without torch, which takes seconds to import."""

from __future__ import annotations

import contextlib
import ctypes
import os
import signal
import sys
from pathlib import Path

GPU_DEVICES = ("/dev/nvidiactl", "/dev/dxg", "/dev/kfd")
"""What the drivers of NVIDIA's cards (of Windows' under WSL) and of AMD's make in Linux."""

CGROUP = Path("/sys/fs/cgroup")
MEMORY_LIMITS = ("memory.max", "memory.limit_in_bytes")  # of a control group's versions 2 and 1


def die_with_torchrun() -> None:
    """Let Linux end this rank, if it is one, when the torchrun that started it is killed: it would wait for the others, and hold
    the run's lock and its GPU. Called as early as can be, since a torchrun that is gone already is not noticed."""
    if "TORCHELASTIC_RUN_ID" in os.environ:
        with contextlib.suppress(OSError, AttributeError, TypeError):  # not Linux
            ctypes.CDLL(None).prctl(1, signal.SIGKILL)  # PR_SET_PDEATHSIG


def may_have_gpu() -> bool:
    """Whether torch could find an accelerator here. Other systems than Linux don't say it this easily."""
    return sys.platform != "linux" or any(os.path.exists(device) for device in GPU_DEVICES)


def visible_gpus() -> list[str]:
    """The cards of NVIDIA that this process may use, as CUDA_VISIBLE_DEVICES names them. Other cards: what that variable says."""
    asked = os.environ.get("CUDA_VISIBLE_DEVICES")
    if asked is not None:
        return [name.strip() for name in asked.split(",") if name.strip() not in ("", "-1")]
    return [str(number) for number, _ in enumerate(Path("/dev").glob("nvidia[0-9]*"))]


def cpu_dtype() -> str:
    """bfloat16 where the processor multiplies it in hardware, else float32. By its flags, not by the clock: two starts on a busy
    machine must choose alike. Without them bf16 products are emulated (a training step takes thirty times as long on AVX2)."""
    try:
        flags = set(Path("/proc/cpuinfo").read_text(encoding="utf-8", errors="replace").split())
    except OSError:  # not Linux
        return "float32"
    return "bfloat16" if flags & {"avx512_bf16", "amx_bf16"} else "float32"


def cores() -> int:
    """Cores that this process may use: not their hyper-threads, which share what decoding is bound by. OMP_NUM_THREADS says
    otherwise, as it does to torch."""
    asked = os.environ.get("OMP_NUM_THREADS", "").split(",")[0]
    if asked.isdecimal() and int(asked) > 0:
        return int(asked)
    if not hasattr(os, "sched_getaffinity"):
        return min(os.cpu_count() or 1, cpu_quota())
    siblings = set()
    for cpu in os.sched_getaffinity(0):
        path = Path(f"/sys/devices/system/cpu/cpu{cpu}/topology/thread_siblings_list")
        siblings.add(path.read_text(encoding="utf-8") if path.exists() else str(cpu))
    return min(len(siblings), cpu_quota())


def cpu_quota() -> int:
    """Whole cores' worth of time that control groups allow (`docker run --cpus`, a pod's limit); a large number without a limit.
    More threads than that spend most of their time stopped."""
    quotas = [sys.maxsize]
    for folder in control_groups("cpu"):
        for files in (("cpu.max",), ("cpu.cfs_quota_us", "cpu.cfs_period_us")):  # version 2, version 1
            with contextlib.suppress(OSError, ValueError):  # not there, or "max"
                quota, period = (int(number) for file in files for number in (folder / file).read_text().split())
                if quota > 0:  # version 1 has -1 for none
                    quotas.append(max(1, quota // period))
    return min(quotas)


def memory_bytes() -> int:
    """Memory that this process may fill: the machine's, or what a control group (a container) leaves of it. 0 where unknown."""
    if not hasattr(os, "sysconf") or "SC_PHYS_PAGES" not in os.sysconf_names:
        return 0
    limits = [os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")]
    for file in (folder / name for folder in control_groups("memory") for name in MEMORY_LIMITS):
        with contextlib.suppress(OSError, ValueError):  # not there, or "max"
            limits.append(int(file.read_text()))
    return min(limits)


def control_groups(of: str) -> list[Path]:
    """This process's control groups of "memory" or "cpu" with all above them; in a container the root is its own."""
    try:
        lines = Path("/proc/self/cgroup").read_text().splitlines()
    except OSError:
        return []
    folders = {CGROUP, CGROUP / of}
    for line in lines:
        _, kinds, path = line.split(":", 2)
        if not kinds or of in kinds.split(","):  # version 2 has no kinds
            own = CGROUP / (of if kinds else "") / path.lstrip("/")
            folders |= {own, *(parent for parent in own.parents if CGROUP in parent.parents)}
    return sorted(folders)
