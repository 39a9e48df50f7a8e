"""The machine and the code that a report was written with."""

from __future__ import annotations

import os
import platform
import re
import subprocess
from pathlib import Path
from typing import Any


def gather_provenance() -> dict[str, Any]:
    """Versions and hardware of this machine; None for what is not known."""
    import torch

    memory = None
    if hasattr(os, "sysconf") and "SC_PHYS_PAGES" in os.sysconf_names:
        memory = round(os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 2**30, 1)
    return {
        "python": platform.python_version(),
        "torch": torch.__version__,
        "system": f"{platform.system()} {platform.release()}",
        "cpu": processor(),
        "cores": os.cpu_count(),
        "memory_gib": memory,
        "gpus": [torch.cuda.get_device_name(index) for index in range(torch.cuda.device_count())],
        "git_commit": _git_commit(),
    }


def processor() -> str:
    """The CPU's name, and whether it multiplies bf16 itself (AVX512-BF16), which decides how quick training is."""
    try:
        info = Path("/proc/cpuinfo").read_text("utf-8")
    except OSError:
        return platform.processor() or platform.machine()
    name = re.search(r"(?m)^model name\s*:\s*(.+)$", info)
    flags = " with AVX512-BF16" if "avx512_bf16" in info else " without AVX512-BF16" if "avx" in info else ""
    return (name[1].strip() if name else platform.machine()) + flags


def _git_commit() -> str | None:
    """The commit of this code, and whether it was changed since; None where it lies in no checkout of its own."""

    def git(*words: str) -> str:
        command = ["git", "-C", str(Path(__file__).parent), *words]
        return subprocess.run(command, capture_output=True, text=True, timeout=10, check=True).stdout.strip()

    try:
        git("ls-files", "--error-unmatch", Path(__file__).name)  # an installed copy may lie below somebody else's checkout
        changed = git("status", "--porcelain", "--untracked-files=no", "..")
        return git("rev-parse", "--short", "HEAD") + (f" with {len(changed.splitlines())} changed files" if changed else "")
    except (OSError, subprocess.SubprocessError):
        return None
