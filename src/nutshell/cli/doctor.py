"""The verb `doctor`: what this machine has, what is missing, and how to mend it."""

from __future__ import annotations

import importlib.metadata
import importlib.util
import os
import platform
import shutil
import socket
import subprocess
import sys
from collections.abc import Callable
from typing import Any

from nutshell.cli.arguments import parse_arguments

Finding = tuple[str, str]  # what was found, and advice where something is amiss
EXTRAS = {
    "transformers": "eval of other models", "llguidance": "JSON mode", "pypdf": "import of PDFs", "py3langid": "--language",
    "onnxscript": "export onnx", "datatrove": "data at the scale of the web", "wandb": "--loggers",
    "tensorboard": "--loggers",
}  # fmt: skip


def python() -> Finding:
    advice = "" if sys.version_info >= (3, 10) else "Python 3.10 or newer is needed: uv python install 3.12"
    return f"{platform.python_version()} in {sys.prefix}", advice


def torch() -> Finding:
    import torch

    built = f"CUDA {torch.version.cuda}" if torch.version.cuda else f"ROCm {torch.version.hip}" if torch.version.hip else "CPU"
    return f"{torch.__version__}, built for {built}", ""


def device() -> Finding:
    """What training will run on, and a GPU of this machine that torch does not see."""
    import torch

    from nutshell.machine import cpu_dtype, cpu_quota
    from nutshell.report.provenance import processor
    from nutshell.runtime import gpu_dtype

    if torch.cuda.is_available():
        names = [torch.cuda.get_device_name(number) for number in range(torch.cuda.device_count())]
        return f"{len(names)} x {names[0]}, {gpu_dtype(torch.cuda.get_device_capability(0))}", ""
    limited = f", {cpu_quota()} of them for this container" * (cpu_quota() < (os.cpu_count() or 1))
    cpu = f"{processor()}, {os.cpu_count()} cores{limited}, {cpu_dtype()}"
    if gpus := nvidia_gpus():
        return cpu, (
            f"the driver has {len(gpus)} GPU(s) ({gpus[0]}), which this torch cannot use (CUDA {torch.version.cuda}): install a "
            "build of torch for the CUDA version in the corner of nvidia-smi's table"
        )
    return f"Apple MPS, beside {cpu}" if torch.backends.mps.is_available() else cpu, ""


def nvidia_gpus() -> list[str]:
    """The GPUs that NVIDIA's driver tells of, whatever torch sees."""
    try:
        listed = subprocess.run(["nvidia-smi", "-L"], capture_output=True, text=True, timeout=20).stdout
    except (OSError, subprocess.TimeoutExpired):
        return []
    return [line.split(":", 1)[1].split("(")[0].strip() for line in listed.splitlines() if line.startswith("GPU")]


def memory() -> Finding:
    import torch

    from nutshell.infer.cache_memory import free_memory

    place = "cuda" if torch.cuda.is_available() else "cpu"
    free = (free_memory(place) or 0) / 2**30
    return f"{free:.1f} GiB free{' on the first GPU' * (place == 'cuda')}", "the demo needs 2.5 GiB" if free < 2.5 else ""


def load() -> Finding:
    """Other programs on the same cores: budgets are kept by training less."""
    if not hasattr(os, "getloadavg"):
        return "unknown", ""
    load, cores = os.getloadavg()[0], os.cpu_count() or 1
    advice = "other programs keep the cores busy: a budget then buys a smaller model" if load > 0.7 * cores else ""
    return f"{load:.1f} busy of {cores} cores", advice


def disk() -> Finding:
    free = shutil.disk_usage(".").free / 2**30
    return f"{free:.1f} GiB free in this folder", "the demo needs 1 GiB; the $100 tier 100 GiB" if free < 1 else ""


def rust() -> Finding:
    from nutshell.tokenizer._bpe import instructions

    return f"tokenizer, and decoder with {instructions('bfloat16')}", ""


def sandbox() -> Finding:
    from nutshell.infer.sandbox import Sandbox

    return Sandbox.open().level, ""


def network() -> Finding:
    """The settings of downloads and servers. Nothing is sent."""
    set_ = [f"{name}={os.environ[name]}" for name in ("HF_ENDPOINT", "HF_HUB_OFFLINE", "HTTPS_PROXY") if name in os.environ]
    with socket.socket() as probe:
        taken = probe.connect_ex(("127.0.0.1", 8000)) == 0
    return ", ".join(set_) or "no mirror, no proxy", "port 8000 is taken: nutshell serve --port 8001" if taken else ""


def variables() -> Finding:
    """Variables that change how a run behaves and are easily forgotten."""
    from nutshell.ranks import RANK_DEFAULTS

    ranks = [f"{name}={os.environ[name]}" for name in RANK_DEFAULTS if name in os.environ]
    advice = f"training would wait for other ranks; for one process: unset {' '.join(RANK_DEFAULTS)}" if ranks else ""
    if sys.flags.utf8_mode == 0 and sys.getfilesystemencoding().lower() not in ("utf-8", "utf8"):
        advice = "file names are not UTF-8 here: set PYTHONUTF8=1"
    threads = [f"{name}={os.environ[name]}" for name in ("OMP_NUM_THREADS", "CUDA_VISIBLE_DEVICES") if name in os.environ]
    return ", ".join(ranks + threads) or "nothing that changes a run", advice


def extras() -> Finding:
    have = [f"{name} {importlib.metadata.version(name)}" for name in EXTRAS if importlib.util.find_spec(name)]
    lack = [f"{name} ({use})" for name, use in EXTRAS.items() if not importlib.util.find_spec(name)]
    return ", ".join([*have, *([f"without {', '.join(lack)}"] if lack else [])]), ""


CHECKS: dict[str, Callable[[], Finding]] = {
    check.__name__: check
    for check in (python, torch, device, memory, load, disk, rust, sandbox, network, variables, extras)
}  # fmt: skip
NEEDED = ("python", "torch", "device", "disk", "rust")  # without these nothing is trained, or not where it should be


def doctor(arguments: list[str]) -> Any:
    """Say what this machine has, what is missing, and how to mend it."""
    parse_arguments("doctor", arguments, f"{doctor.__doc__} Exit code 1 where something that training needs is missing.")
    findings = {}
    for name, check in CHECKS.items():
        try:
            found, advice = check()
        except Exception as error:  # what is broken is what this verb is for
            found, advice = "does not work", f"{error}" if name == "sandbox" else f"{error!r}. Install again: make setup"
        findings[name] = {"found": found, "advice": advice, "needed": name in NEEDED}
        mark = "ok" if not advice else "MISSING" if name in NEEDED else "note"
        print(f"{mark:8} {name:12} {found}{f'{chr(10):<23}-> {advice}' if advice else ''}")
    ill = [name for name in NEEDED if findings[name]["advice"]]
    print(f"\nTo be mended first: {', '.join(ill)}." if ill else "\nReady: nutshell demo")
    return {"findings": findings, "exit_code": int(bool(ill))}
