"""Cross-entropy over logits, softly capped or not, in chunks: the full fp32 logits never exist.

The gradient of a chunk is computed while its logits are still in the cache, so the backward pass only scales it.
"""

from __future__ import annotations

import torch
from torch import Tensor

SOFTCAP = 15.0
CHUNK_ELEMENTS = 1 << 20  # fp32 logits alive at once on CPU (4 MB: about one L2 cache); measured in docs/experiments.md


class _SoftcapCrossEntropy(torch.autograd.Function):
    """loss = sum_i w_i * -log softmax(15 tanh(h_i W^T / 15))[target_i] / count, over the targets >= 0."""

    @staticmethod
    def forward(ctx, hidden: Tensor, weight: Tensor, targets: Tensor, weights: Tensor | None) -> Tensor:
        N, V = hidden.size(0), weight.size(0)
        chunk = max(128, CHUNK_ELEMENTS // V) if hidden.device.type == "cpu" else 8192
        needs_grad = hidden.requires_grad or weight.requires_grad
        head = weight.to(hidden.dtype)
        total = torch.zeros((), dtype=torch.float32, device=hidden.device)
        row_weight = (targets >= 0).float()
        row_weight /= row_weight.sum().clamp(min=1)
        if weights is not None:
            row_weight *= weights
        grad_hidden = torch.empty_like(hidden if needs_grad else hidden[:0])
        grad_weight = torch.zeros_like(weight if needs_grad else weight[:0])
        for start in range(0, N, chunk):
            h, target = hidden[start : start + chunk], targets[start : start + chunk]
            w = row_weight[start : start + chunk].unsqueeze(1)
            index = target.clamp(min=0).unsqueeze(1)
            # With r = sigmoid(-2x/15): 15 tanh(x/15) = 15 - 30 r, so e^(-30 r) is the softmax up to a factor. It lies between
            # 1e-13 and 1 and needs no maximum, and the slope of the cap is 4 r (1 - r).
            r = (h @ head.t()).float().mul_(-2 / SOFTCAP).sigmoid_()  # (chunk, V)
            unnormalised = (r * (-2 * SOFTCAP)).exp_()
            z = unnormalised.sum(dim=1, keepdim=True)
            total += ((z.log() + 2 * SOFTCAP * r.gather(1, index)) * w).sum()
            if needs_grad:
                grad = unnormalised.mul_(4 * w / z)
                grad.scatter_add_(1, index, -4 * w)
                grad.mul_(r.addcmul_(r, r, value=-1))
                low = grad.to(hidden.dtype)
                torch.mm(low, head, out=grad_hidden[start : start + chunk])
                grad_weight += low.t() @ h
        ctx.save_for_backward(grad_hidden, grad_weight)
        return total

    @staticmethod
    def backward(ctx, grad_loss: Tensor):
        grad_hidden, grad_weight = ctx.saved_tensors
        return grad_hidden * grad_loss.to(grad_hidden.dtype), grad_weight * grad_loss, None, None


def softcap_cross_entropy(hidden: Tensor, weight: Tensor, targets: Tensor, weights: Tensor | None = None) -> Tensor:
    """Mean cross-entropy in nats of hidden (N, C) through the head weight (V, C) at targets (N,); -1 is ignored.

    `weights` (N,) multiplies each target's term (the count it is divided by stays the number of targets): with advantages
    as weights this is the on-policy policy gradient.
    """
    return _SoftcapCrossEntropy.apply(hidden, weight, targets, weights)


class _CrossEntropy(torch.autograd.Function):
    """loss = sum_i w_i * -log softmax(h_i W^T)[target_i] / count, over the targets >= 0."""

    @staticmethod
    def forward(ctx, hidden: Tensor, weight: Tensor, targets: Tensor, weights: Tensor | None) -> Tensor:
        N, V = hidden.size(0), weight.size(0)
        chunk = max(128, CHUNK_ELEMENTS // V) if hidden.device.type == "cpu" else 8192
        needs_grad = hidden.requires_grad or weight.requires_grad
        head = weight.to(hidden.dtype)
        total = torch.zeros((), dtype=torch.float32, device=hidden.device)
        row_weight = (targets >= 0).float()
        row_weight /= row_weight.sum().clamp(min=1)
        if weights is not None:
            row_weight *= weights
        grad_hidden = torch.empty_like(hidden if needs_grad else hidden[:0])
        grad_weight = torch.zeros_like(weight if needs_grad else weight[:0])
        for start in range(0, N, chunk):
            h, target = hidden[start : start + chunk], targets[start : start + chunk]
            w = row_weight[start : start + chunk].unsqueeze(1)
            index = target.clamp(min=0).unsqueeze(1)
            logits = (h @ head.t()).float()  # (chunk, V)
            logits -= logits.amax(dim=1, keepdim=True)
            picked = logits.gather(1, index)
            unnormalised = logits.exp_()
            z = unnormalised.sum(dim=1, keepdim=True)
            total += ((z.log() - picked) * w).sum()
            if needs_grad:
                low = unnormalised.mul_(w / z).scatter_add_(1, index, -w).to(hidden.dtype)
                torch.mm(low, head, out=grad_hidden[start : start + chunk])
                grad_weight += low.t() @ h
        ctx.save_for_backward(grad_hidden, grad_weight)
        return total

    @staticmethod
    def backward(ctx, grad_loss: Tensor):
        grad_hidden, grad_weight = ctx.saved_tensors
        return grad_hidden * grad_loss.to(grad_hidden.dtype), grad_weight * grad_loss, None, None


def cross_entropy(hidden: Tensor, weight: Tensor, targets: Tensor, weights: Tensor | None = None) -> Tensor:
    """`softcap_cross_entropy` without the cap."""
    return _CrossEntropy.apply(hidden, weight, targets, weights)
