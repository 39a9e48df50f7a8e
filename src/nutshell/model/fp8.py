"""Linear layers in 8 bits while training (arXiv 2209.05433): e4m3 for activations and weights, e5m2 for gradients.

One scale a tensor puts its largest magnitude at the format's end. An input is quantised once for all linears that read it, a
weight once a step, a gradient once. Elsewhere than on CUDA the same numbers are multiplied in fp32: slow, but the tests see them.

Legend: N tokens, C channels in, O channels out.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

TOGETHER = (("q", "k", "v"),)
"""Linears of one module that read the same input."""
SMALLEST = 1e-30  # a tensor of smaller magnitude counts as zero, so that scales stay finite
MULTIPLE = 16  # sizes that torch._scaled_mm takes


def quantise(x: Tensor, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
    """x in fp8, and the fp32 scale to multiply each value with. Where x is not finite, neither is their product."""
    end, x = torch.finfo(dtype).max, x.contiguous()
    largest = x.abs().amax().float().clamp(min=SMALLEST)
    return (x.float() * (end / largest)).clamp(-end, end).to(dtype), largest / end


def matmul(a: Tensor, b: Tensor, a_unit: Tensor, b_unit: Tensor, dtype: torch.dtype, *, fast: bool = False) -> Tensor:
    """a (M, K), laid out by rows, times b (K, L), laid out by columns. `fast`: sums in fewer bits, enough forward."""
    if a.device.type == "cuda":
        return torch._scaled_mm(a, b, scale_a=a_unit, scale_b=b_unit, out_dtype=dtype, use_fast_accum=fast)
    return ((a.float() @ b.float()) * (a_unit * b_unit)).to(dtype)


def column_major(x: Tensor) -> Tensor:
    """The same matrix, laid out column by column."""
    return x.t().contiguous().t()


class _Fp8Linear(torch.autograd.Function):
    """y = x W^T for x (N, C) and W (O, C), whose rows are those of `weights` one after the other."""

    @staticmethod
    def forward(ctx, x: Tensor, by_rows: Tensor, by_columns: Tensor, weight_unit: Tensor, *weights: Tensor) -> Tensor:
        quantised, unit = quantise(x, torch.float8_e4m3fn)
        ctx.save_for_backward(quantised, unit, by_columns, weight_unit)
        ctx.rows = [weight.size(0) for weight in weights]
        return matmul(quantised, by_rows.t(), unit, weight_unit, x.dtype, fast=True)

    @staticmethod
    def backward(ctx, grad: Tensor):
        x, x_unit, by_columns, weight_unit = ctx.saved_tensors
        g, g_unit = quantise(grad, torch.float8_e5m2)
        grad_x = matmul(g, by_columns, g_unit, weight_unit, grad.dtype)  # (N, O) (O, C)
        grad_weight = matmul(g.t().contiguous(), column_major(x), g_unit, x_unit, torch.float32)  # (O, N) (N, C)
        return grad_x, None, None, None, *grad_weight.split(ctx.rows)


class Fp8Weight:
    """Weights of linears that read the same input, quantised as one matrix at the beginning of each step."""

    def __init__(self, weights: list[nn.Parameter]) -> None:
        self.weights = weights
        self.quantise()

    @torch.no_grad()
    def quantise(self) -> None:
        self.by_rows, self.unit = quantise(torch.cat(list(self.weights)), torch.float8_e4m3fn)
        self.by_columns = column_major(self.by_rows)

    def __call__(self, x: Tensor) -> Tensor:
        """x (..., C) -> (..., O). ValueError where the number of tokens does not fit the kernel."""
        flat = x.flatten(0, -2)
        if flat.size(0) % MULTIPLE:
            raise ValueError(
                f"--fp8 takes batches of a multiple of {MULTIPLE} tokens; this one has {flat.size(0)}. "
                "Change --micro-batch-size or --context."
            )
        return _Fp8Linear.apply(flat, self.by_rows, self.by_columns, self.unit, *self.weights).view(*x.shape[:-1], -1)


def use_fp8(model: nn.Module, on: bool) -> None:
    """Set or remove the fp8 weights (`fp8`) of the blocks' linears; the first of a group holds those of the whole group.

    The head and linears of odd sizes (gates) stay as they are: the head because the loss would suffer, gates because they cost
    little.
    """
    for name, module in model.named_modules():
        linears: dict[str, Any] = {
            key: child for key, child in module.named_children() if isinstance(child, nn.Linear) and hasattr(child, "fp8")
        }
        groups: list[tuple[str, ...]] = [group for group in TOGETHER if set(group) <= set(linears)]
        groups += [(key,) for key in linears if not any(key in group for group in groups)]
        for group in groups:
            members = [linears[key] for key in group]
            fits = all(size % MULTIPLE == 0 for linear in members for size in linear.weight.shape)
            linears[group[0]].fp8 = Fp8Weight([linear.weight for linear in members]) if on and name and fits else None


def quantise_weights(model: nn.Module) -> None:
    """Quantise all fp8 weights again; called at the beginning of each step, since the optimizer has changed them."""
    for module in model.modules():
        if isinstance(weight := getattr(module, "fp8", None), Fp8Weight):
            weight.quantise()
