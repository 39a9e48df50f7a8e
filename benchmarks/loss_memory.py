"""Peak memory of the softcap cross-entropy, forward and backward, at vocabulary 32,768: naive, ours and the reduction.

    python benchmarks/loss_memory.py [--rows 8192 --width 768 --vocab-size 32768 --dtype bfloat16]

Naive is what one writes first, and what nanochat's model does: all logits in fp32 through tanh and F.cross_entropy. Each runs
in a process of its own; its figure is the largest resident size minus that after the inputs were made (Linux only: the
kernel's mark is set back in between). Both results, loss and gradients, are compared with those in float64 by chunks of rows.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import tempfile
import time
from functools import partial
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor

from nutshell.model.loss import cross_entropy
from nutshell.report.provenance import processor
from nutshell.runtime import DTYPES, peak_memory_bytes

SOFTCAP = 15.0
TARGET = 0.40
CPU = torch.device("cpu")


def naive(hidden: Tensor, weight: Tensor, targets: Tensor) -> Tensor:
    logits = (hidden @ weight.to(hidden.dtype).t()).float()
    return F.cross_entropy(SOFTCAP * torch.tanh(logits / SOFTCAP), targets, ignore_index=-1)


def inputs(rows: int, width: int, vocab_size: int, dtype: torch.dtype) -> tuple[Tensor, Tensor, Tensor]:
    """Hidden states (N, C) as after a norm, fp32 head weight (V, C) that gives logits around 10, targets (N,), some without."""
    torch.manual_seed(0)
    hidden = torch.randn(rows, width).to(dtype).requires_grad_()
    weight = torch.randn(vocab_size, width).mul_(10 / width**0.5).requires_grad_()
    targets = torch.randint(0, vocab_size, (rows,))
    targets[::17] = -1
    return hidden, weight, targets


def work(name: str, rows: int, width: int, vocab_size: int, dtype: torch.dtype, out: str) -> None:
    """One way of computing it, in this process: prints its memory and seconds, saves loss and gradients."""
    loss_of = {"naive": naive, "ours": partial(cross_entropy, softcap=SOFTCAP)}[name]
    loss_of(*inputs(256, width, 512, dtype)).backward()  # what libraries allocate once does not count
    hidden, weight, targets = inputs(rows, width, vocab_size, dtype)
    Path("/proc/self/clear_refs").write_text("5")  # the largest resident size is counted from here
    before, start = peak_memory_bytes(CPU), time.perf_counter()
    loss = loss_of(hidden, weight, targets)
    loss.backward()
    seconds = time.perf_counter() - start
    print(json.dumps({"bytes": (peak_memory_bytes(CPU) or 0) - (before or 0), "seconds": seconds}))
    torch.save([loss.detach(), hidden.grad, weight.grad], out)


def exact(rows: int, width: int, vocab_size: int, dtype: torch.dtype) -> list[Tensor]:
    """Loss and gradients of the same inputs in float64, by chunks of rows."""
    hidden, weight, targets = (x.detach() for x in inputs(rows, width, vocab_size, dtype))
    hidden, head = hidden.double(), weight.to(dtype).double().requires_grad_()
    total, grad_hidden, grad_head = torch.zeros((), dtype=torch.float64), torch.zeros_like(hidden), torch.zeros_like(head)
    for start in range(0, rows, 512):
        chunk = hidden[start : start + 512].requires_grad_()
        logits = SOFTCAP * torch.tanh(chunk @ head.t() / SOFTCAP)
        loss = F.cross_entropy(logits, targets[start : start + 512], ignore_index=-1, reduction="sum") / (targets >= 0).sum()
        total += loss.detach()
        grad_hidden[start : start + 512], more = torch.autograd.grad(loss, (chunk, head))
        grad_head += more
    return [total, grad_hidden, grad_head]


def difference(found: list[Tensor], true: list[Tensor]) -> list[float]:
    """Relative errors (of the norm) of loss, gradient of hidden states, gradient of the head."""
    return [float((a.double() - b).norm() / b.norm()) for a, b in zip(found, true, strict=True)]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rows", type=int, default=8192, help="tokens of a micro-batch")
    parser.add_argument("--width", type=int, default=768)
    parser.add_argument("--vocab-size", type=int, default=32768)
    parser.add_argument("--dtype", choices=list(DTYPES), nargs="+", default=list(DTYPES))
    parser.add_argument("--work", nargs=2, metavar=("NAME", "OUT"), help=argparse.SUPPRESS)
    options = parser.parse_args()
    shape = options.rows, options.width, options.vocab_size
    if options.work:
        work(options.work[0], *shape, DTYPES[options.dtype[0]], options.work[1])
        return
    logits = f"{shape[0] * shape[2] * 4 / 2**20:,.0f} MiB"
    print(f"{processor()}; {shape[0]} tokens, width {shape[1]}, vocabulary {shape[2]}; all logits in fp32 would be {logits}")
    for dtype in options.dtype:
        true, mib = exact(*shape, DTYPES[dtype]), {}
        for name in ("naive", "ours"):
            with tempfile.TemporaryDirectory() as folder:
                out = Path(folder) / "result.pt"
                flags = ["--rows", "--width", "--vocab-size"]
                command = [sys.executable, __file__, *(str(x) for pair in zip(flags, shape, strict=True) for x in pair)]
                command += ["--dtype", dtype, "--work", name, str(out)]
                result = json.loads(subprocess.run(command, check=True, capture_output=True, text=True).stdout)
                errors = difference(torch.load(out), true)
            mib[name] = result["bytes"] / 2**20
            print(
                f"  {dtype:<8} {name:<5} peak {mib[name]:6,.0f} MiB, {result['seconds']:5.2f} s; relative error against float64: "
                f"loss {errors[0]:.1e}, hidden's gradient {errors[1]:.1e}, head's gradient {errors[2]:.1e}"
            )
        print(f"  {dtype:<8} ours is {1 - mib['ours'] / mib['naive']:.0%} below naive; target at least {TARGET:.0%}")


if __name__ == "__main__":
    main()
