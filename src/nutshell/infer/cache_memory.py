"""How much memory the KV cache takes."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

from nutshell.infer.native import dtype_of
from nutshell.infer.weights import StoredModel
from nutshell.machine import MEMORY_LIMITS, control_groups
from nutshell.model.config import ModelConfig
from nutshell.model.kv_blocks import BLOCK, blocks_of

SHARE = 0.25  # of the free memory, where nobody says how much: other models and programs want some too
MOST = 0.5  # of it, where one whole context needs more than that share

USAGES = ("memory.current", "memory.usage_in_bytes")  # beside each of MEMORY_LIMITS


def bytes_per_token(config: ModelConfig, dtype: str) -> int:
    """Keys and values of all layers."""
    return 2 * config.depth * config.kv_heads * config.head_dim * (4 if dtype == "float32" else 2)


def cache_blocks(model: Any, context: int, max_rows: int, limit_bytes: int | None) -> tuple[int, int]:
    """(blocks, bytes) of a cache of at most `limit_bytes`; where that is None, of `SHARE` of the free memory or of one whole
    context, whichever is more. More than `max_rows` whole contexts are never taken. ValueError or MemoryError where one does
    not fit."""
    block = BLOCK * bytes_per_token(model.config, dtype_of(model))
    least, wanted = blocks_of(context) * block, blocks_of(context) * max_rows * block
    device = "cpu" if isinstance(model, StoredModel) else str(next(model.parameters()).device)
    room = limit_bytes
    if room is None:
        free = free_memory(device)
        room = wanted if free is None else max(int(SHARE * free), min(least, int(MOST * free)))
    if room < least:
        if limit_bytes is None:
            raise MemoryError(
                f"no memory for the KV cache: one reply of {context} tokens needs {least / 2**20:.0f} MiB, and {MOST:.0%} of "
                f"the free memory are {room / 2**20:.0f} MiB."
            )
        raise ValueError(
            f"the KV cache may take {limit_bytes} bytes, and one reply of {context} tokens needs {least}; accepted: at least "
            "that many. Give it more, or make the context shorter."
        )
    blocks = min(room, wanted) // block
    return blocks, blocks * block


def describe_cache(model: Any, tokens: int) -> str:
    """Its size in words."""
    each = bytes_per_token(model.config, dtype_of(model))
    return f"{tokens:,} tokens of {each:,} bytes, {tokens * each / 2**20:,.0f} MiB"


def free_memory(device: str) -> int | None:
    """Bytes that can still be taken: of the GPU, else of the machine and of the control group that this process is in (a
    container's). None where that cannot be asked."""
    if device.startswith("cuda"):
        import torch

        return torch.cuda.mem_get_info(device)[0]
    if device != "cpu":
        return None
    found = [_available(), _left_in_group()]
    return min((number for number in found if number is not None), default=None)


def _available() -> int | None:
    try:
        lines = Path("/proc/meminfo").read_text().splitlines()
        return 1024 * int(next(line for line in lines if line.startswith("MemAvailable:")).split()[1])
    except (OSError, StopIteration):
        pass
    try:
        return os.sysconf("SC_AVPHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    except (AttributeError, ValueError, OSError):  # Windows, macOS
        return None


def _left_in_group() -> int | None:
    """The limit less what is used and cannot be dropped; of the tightest group that can be seen."""
    found = []
    for folder in control_groups("memory"):
        for limit_name, usage_name in zip(MEMORY_LIMITS, USAGES, strict=True):
            try:
                limit, usage = (folder / limit_name).read_text().strip(), int((folder / usage_name).read_text())
                stat = dict(line.split() for line in (folder / "memory.stat").read_text().splitlines())
            except (OSError, ValueError):
                continue
            if limit != "max":
                dropped = int(stat.get("total_inactive_file", stat.get("inactive_file", 0)))
                found.append(max(0, int(limit) - usage + dropped))
    return min(found, default=None)
