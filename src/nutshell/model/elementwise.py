"""Elementwise functions with hand-written gradients, so that training keeps fewer intermediates.

`rms_norm` is the plain formula when it is compiled or runs on an accelerator (the compiler fuses it there). Eagerly on CPU
autograd would write every intermediate to memory; the gradient by hand keeps one. Measured gains are in docs/experiments.md.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from nutshell.model.config import RMS_EPS


def _eager_on_cpu(x: Tensor) -> bool:
    return x.device.type == "cpu" and not torch.compiler.is_compiling() and x.requires_grad


class _RmsNorm(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x: Tensor, scale: float, eps: float) -> Tensor:
        norm = torch.linalg.vector_norm(x, dim=-1, keepdim=True, dtype=torch.promote_types(x.dtype, torch.float32))
        inverse = (norm.square_().div_(x.size(-1)).add_(eps).rsqrt_()).to(x.dtype)
        y = x * (inverse * scale)
        ctx.save_for_backward(y, inverse)
        ctx.scale = scale
        return y

    @staticmethod
    def backward(ctx, grad: Tensor):
        # y = s x r, r = (mean x^2 + eps)^-1/2: dx = s r (g - y/s mean(g y/s)).
        y, inverse = ctx.saved_tensors
        projection = (grad * y).sum(-1, keepdim=True).mul_(-1 / (y.size(-1) * ctx.scale**2))
        return torch.addcmul(grad, y, projection).mul_(inverse * ctx.scale), None, None


def rms_norm(x: Tensor, scale: float = 1.0, eps: float = RMS_EPS) -> Tensor:
    """Scale the last dimension to a root mean square of `scale` (arXiv 1910.07467, no weights)."""
    if _eager_on_cpu(x):
        return _RmsNorm.apply(x, scale, eps)
    y = F.rms_norm(x, (x.size(-1),), eps=eps)
    return y if scale == 1.0 else y * scale


class _ReluSquaredLinear(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x: Tensor, weight: Tensor) -> Tensor:
        positive = x.clamp(min=0)
        ctx.save_for_backward(positive, weight)
        return F.linear(positive * positive, weight)

    @staticmethod
    def backward(ctx, grad: Tensor) -> tuple[Tensor, Tensor]:
        positive, weight = ctx.saved_tensors
        grad_weight = grad.flatten(0, -2).t() @ (positive * positive).flatten(0, -2)
        return (grad @ weight).mul_(positive).mul_(2), grad_weight


def relu_squared_linear(x: Tensor, weight: Tensor) -> Tensor:
    """max(x, 0)^2 (arXiv 2109.08668) times weight^T. In eager mode only max(x, 0) is kept for the
    backward pass, and its square is made again; a compiler's partitioner may keep the square all the same."""
    return _ReluSquaredLinear.apply(x, weight)


def rotate(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    """Rotate the two halves of each head of x (B, T, H, D) by minus the position's angle, with `rotary_tables`."""
    return torch.addcmul(x * cos, x.roll(x.size(-1) // 2, dims=-1), sin)
