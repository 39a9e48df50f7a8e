"""Cross-entropy over softly capped logits, in chunks: the full fp32 logits never exist.

The gradient of a chunk is computed while its logits are still in the cache, so the backward pass only scales it.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import cache

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
        fused = _fused(hidden.device)
        total = torch.zeros((), dtype=torch.float32, device=hidden.device)
        row_weight = (targets >= 0).float()
        count = row_weight.sum().clamp(min=1)  # divided by at the end: in fp16 small weights would lose their gradients
        if weights is not None:
            row_weight *= weights
        if hidden.dtype == torch.float16:  # a head gradient is a sum over a chunk, and fp16 ends at 65504
            row_weight, count = row_weight / 16, count / 16
        grad_hidden = torch.empty_like(hidden if needs_grad else hidden[:0])
        grad_weight = torch.zeros_like(weight if needs_grad else weight[:0])
        for start in range(0, N, chunk):
            h, target = hidden[start : start + chunk], targets[start : start + chunk]
            w = row_weight[start : start + chunk].unsqueeze(1)
            index = target.clamp(min=0).unsqueeze(1)
            logits = h @ head.t()  # (chunk, V)
            if fused is not None:
                part, low = fused(logits, index, w)
                total += part
                if needs_grad:
                    grad_hidden[start : start + chunk] = low @ head
                    grad_weight += low.t() @ h
                continue
            # With r = sigmoid(-2x/15): 15 tanh(x/15) = 15 - 30 r, so e^(-30 r) is the softmax up to a factor. It lies between
            # 1e-13 and 1 and needs no maximum, and the slope of the cap is 4 r (1 - r).
            r = logits.float().mul_(-2 / SOFTCAP).sigmoid_()
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
        ctx.save_for_backward(grad_hidden, grad_weight, count)
        return total / count

    @staticmethod
    def backward(ctx, grad_loss: Tensor):
        grad_hidden, grad_weight, count = ctx.saved_tensors
        factor = grad_loss / count
        return (grad_hidden * factor.view(1, 1)).to(grad_hidden.dtype), grad_weight * factor, None, None


def softcap_terms(logits: Tensor, index: Tensor, w: Tensor) -> tuple[Tensor, Tensor]:
    """Summed loss of uncapped logits (N, V) at index (N, 1) with weights w (N, 1), and its gradient (N, V) in the logits' dtype.

    The formula of `_SoftcapCrossEntropy.forward` without a step that writes to memory: a compiler makes one pass of it.
    """
    r = (logits.float() * (-2 / SOFTCAP)).sigmoid()
    unnormalised = (r * (-2 * SOFTCAP)).exp()
    z = unnormalised.sum(dim=1, keepdim=True)
    loss = ((z.log() + 2 * SOFTCAP * r.gather(1, index)) * w).sum()
    hit = torch.arange(logits.size(1), device=logits.device) == index
    grad = (unnormalised / z - hit.float()) * (4 * w) * (r - r * r)
    return loss, grad.to(logits.dtype)


def _fused(device: torch.device) -> Callable[..., tuple[Tensor, Tensor]] | None:
    """`softcap_terms` compiled, on CUDA; None where steps in place are quicker."""
    if device.type != "cuda":
        return None
    return softcap_terms if torch.compiler.is_compiling() else _compiled_terms()


@cache
def _compiled_terms() -> Callable[..., tuple[Tensor, Tensor]]:
    return torch.compile(softcap_terms)


def softcap_cross_entropy(hidden: Tensor, weight: Tensor, targets: Tensor, weights: Tensor | None = None) -> Tensor:
    """Mean cross-entropy in nats of hidden (N, C) through the head weight (V, C) at targets (N,); -1 is ignored.

    `weights` (N,) multiplies each target's term (the count it is divided by stays the number of targets): with advantages
    as weights this is the on-policy policy gradient.
    """
    return _SoftcapCrossEntropy.apply(hidden, weight, targets, weights)
