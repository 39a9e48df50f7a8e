"""Cross-entropy over softly capped logits, in chunks: the full logits never exist, in fp32 not even those of a chunk.

The gradient of a chunk replaces its logits while they are still in the cache, so the backward pass only scales it.
"""

from __future__ import annotations

import torch
from torch import Tensor

SOFTCAP = 15.0
# On CPU: rows whose logits exist at once (the head's gradient is added to once for these), and of them how many elements are
# in fp32 at once (2 MB: they stay in the cache between passes); measured in docs/experiments.md.
CHUNK_ROWS = 1024
PIECE_ELEMENTS = 1 << 19


class _SoftcapCrossEntropy(torch.autograd.Function):
    """loss = sum_i w_i * -log softmax(15 tanh(h_i W^T / 15))[target_i] / count, over the targets >= 0."""

    @staticmethod
    def forward(ctx, hidden: Tensor, weight: Tensor, targets: Tensor, weights: Tensor | None) -> Tensor:
        N, V = hidden.size(0), weight.size(0)
        on_cpu = hidden.device.type == "cpu"
        chunk = CHUNK_ROWS if on_cpu else 8192
        piece = max(1, PIECE_ELEMENTS // V) if on_cpu else chunk
        needs_grad = hidden.requires_grad or weight.requires_grad
        head = weight.to(hidden.dtype)
        total = torch.zeros((), dtype=torch.float32, device=hidden.device)
        row_weight = (targets >= 0).float()
        row_weight /= row_weight.sum().clamp(min=1)
        if weights is not None:
            row_weight *= weights
        row_weight, index = row_weight.unsqueeze(1), targets.clamp(min=0).unsqueeze(1)
        grad_hidden = torch.empty_like(hidden if needs_grad else hidden[:0])
        grad_weight = torch.zeros_like(weight if needs_grad else weight[:0])
        for start in range(0, N, chunk):
            rows = slice(start, start + chunk)
            logits = hidden[rows] @ head.t()  # (chunk, V)
            for x, i, w in zip(logits.split(piece), index[rows].split(piece), row_weight[rows].split(piece), strict=True):
                # With r = sigmoid(-2x/15): 15 tanh(x/15) = 15 - 30 r, and the slope of the cap is 4 r (1 - r).
                r = x.float().mul_(-2 / SOFTCAP).sigmoid_()
                p = torch.softmax(r * (-2 * SOFTCAP), dim=1)  # at least e^-30 / V: its logarithm is finite
                total -= (p.gather(1, i).log_() * w).sum()
                if needs_grad:
                    p.mul_(4 * w).scatter_add_(1, i, -4 * w)
                    x.copy_(p.mul_(r.addcmul_(r, r, value=-1)))
            if needs_grad:
                torch.mm(logits, head, out=grad_hidden[rows])
                grad_weight += logits.t() @ hidden[rows]
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
