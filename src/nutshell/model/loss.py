"""Cross-entropy over logits, softly capped or not, in chunks: the full logits never exist, and in fp32 not even a chunk of them.

The gradient of a chunk replaces its logits while they are still in the cache, so the backward pass only scales it.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import cache

import torch
from torch import Tensor

# On CPU: rows whose logits exist at the same time (the head's gradient is added to once for each such chunk), and how many of
# their elements are in fp32 at a time (2 MB, which stay in the cache between passes); measured in docs/experiments.md.
CHUNK_ROWS = 1024
PIECE_ELEMENTS = 1 << 19
CUDA_CHUNK_ROWS = 8192


def cross_entropy(
    hidden: Tensor, weight: Tensor, targets: Tensor, weights: Tensor | None = None, *, softcap: float = 0.0
) -> Tensor:
    """Mean cross-entropy in nats of hidden (N, C) through the head weight (V, C) at targets (N,); -1 is ignored.

    `softcap` c > 0 caps the logits z smoothly: c tanh(z / c). `weights` (N,) multiplies each target's term (the count it is
    divided by stays the number of targets): with advantages as weights this is the on-policy policy gradient.
    """
    return _CrossEntropy.apply(hidden, weight, targets, weights, softcap)


class _CrossEntropy(torch.autograd.Function):
    """loss = sum_i w_i * -log softmax(z_i)[target_i] / count over the targets >= 0.

    z_i is h_i W^T, or c tanh(h_i W^T / c) with a softcap c.
    """

    @staticmethod
    def forward(ctx, hidden: Tensor, weight: Tensor, targets: Tensor, weights: Tensor | None, softcap: float) -> Tensor:
        fused = _fused(hidden.device)
        chunk = CUDA_CHUNK_ROWS if fused else CHUNK_ROWS
        piece = max(1, PIECE_ELEMENTS // weight.size(0))
        needs_grad = hidden.requires_grad or weight.requires_grad
        head = weight.to(hidden.dtype)
        total = torch.zeros((), dtype=torch.float32, device=hidden.device)
        w = (targets >= 0).float()
        count = w.sum().clamp(min=1)  # the divisor comes last: in fp16 small weights would lose their gradients
        if weights is not None:
            w *= weights
        if hidden.dtype == torch.float16:  # a head gradient is a sum over a chunk, and fp16 ends at 65504
            w, count = w / 16, count / 16
        w, index = w.unsqueeze(1), targets.clamp(min=0).unsqueeze(1)
        grad_hidden = torch.empty_like(hidden if needs_grad else hidden[:0])
        grad_weight = torch.zeros_like(weight if needs_grad else weight[:0])
        for start in range(0, hidden.size(0), chunk):
            rows = slice(start, start + chunk)
            logits = hidden[rows] @ head.t()  # (chunk, V)
            if fused:
                part, logits = fused(logits, index[rows], w[rows], softcap)
                total += part
            else:
                pieces = zip(logits.split(piece), index[rows].split(piece), w[rows].split(piece), strict=True)
                total += sum(_loss_and_grad_in_place(*tensors, softcap, needs_grad) for tensors in pieces)
            if needs_grad:  # the logits are their gradients now
                torch.mm(logits, head, out=grad_hidden[rows])
                grad_weight += logits.t() @ hidden[rows]
        ctx.save_for_backward(grad_hidden, grad_weight, count)
        return total / count

    @staticmethod
    def backward(ctx, grad_loss: Tensor):
        grad_hidden, grad_weight, count = ctx.saved_tensors
        factor = grad_loss / count
        return (grad_hidden * factor.view(1, 1)).to(grad_hidden.dtype), grad_weight * factor, None, None, None


def _loss_and_grad_in_place(logits: Tensor, index: Tensor, w: Tensor, softcap: float, needs_grad: bool) -> Tensor:
    """`loss_and_grad` with few passes over little memory: the gradient overwrites the logits."""
    if not softcap:
        z = logits.float()
        total = z.logsumexp(dim=1, keepdim=True)
        loss = ((total - z.gather(1, index)) * w).sum()
        if needs_grad:
            logits.copy_(z.sub_(total).exp_().mul_(w).scatter_add_(1, index, -w))
        return loss
    # With r = sigmoid(-2x/c): c tanh(x/c) = c - 2c r, and the slope of the cap is 4 r (1 - r).
    r = logits.float().mul_(-2 / softcap).sigmoid_()
    p = torch.softmax(r * (-2 * softcap), dim=1)  # at least e^-2c / V: its logarithm is finite for a cap up to LARGEST_SOFTCAP
    loss = -(p.gather(1, index).log_() * w).sum()
    if needs_grad:
        p.mul_(4 * w).scatter_add_(1, index, -4 * w)
        logits.copy_(p.mul_(r.addcmul_(r, r, value=-1)))
    return loss


def loss_and_grad(logits: Tensor, index: Tensor, w: Tensor, softcap: float) -> tuple[Tensor, Tensor]:
    """Summed loss of uncapped logits (N, V) at index (N, 1) with weights w (N, 1), and its gradient (N, V) in the logits' dtype.

    Nothing is written in place, so that a compiler can fuse all of it into one pass.
    """
    x = logits.float()
    r = (x * (-2 / softcap)).sigmoid() if softcap else x
    z = r * (-2 * softcap) if softcap else x
    total = z.logsumexp(dim=1, keepdim=True)
    loss = ((total - z.gather(1, index)) * w).sum()
    hit = torch.arange(logits.size(1), device=logits.device) == index
    grad = ((z - total).exp() - hit.float()) * w
    return loss, (grad * (4 * (r - r * r)) if softcap else grad).to(logits.dtype)


def _fused(device: torch.device) -> Callable[..., tuple[Tensor, Tensor]] | None:
    """`loss_and_grad` compiled, on CUDA; None where steps in place are quicker."""
    if device.type != "cuda":
        return None
    return loss_and_grad if torch.compiler.is_compiling() else _compiled_loss_and_grad()


@cache
def _compiled_loss_and_grad() -> Callable[..., tuple[Tensor, Tensor]]:
    return torch.compile(loss_and_grad, dynamic=False)
