"""Muon for the matrices, AdamW for everything else: one optimizer, its state kept by parameter name.

Sources: Muon (Jordan et al., 2024); Polar Express arXiv 2505.16932; row equilibration arXiv 2603.28254; Frobenius
renormalisation arXiv 2602.21545; NorMuon arXiv 2510.05491; cautious weight decay arXiv 2510.12402; AdamW arXiv 1711.05101.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field

import torch
from torch import Tensor, nn
from torch.optim.adamw import adamw

from nutshell.plan.groups import ParameterGroup, group_of, peak_lr
from nutshell.plan.recipe import OptimizerConfig
from nutshell.train.zero import Part, Shards

# Five quintic iterations of Polar Express, computed for safety 2e-2 and cushion 2 (table of arXiv 2505.16932).
POLAR_EXPRESS = (
    (8.156554524902461, -22.48329292557795, 15.878769915207462),
    (4.042929935166739, -2.808917465908714, 0.5000178451051316),
    (3.8916678022926607, -2.772484153217685, 0.5060648178503393),
    (3.285753657755655, -2.3681294933425376, 0.46449024233003106),
    (2.3465413258596377, -1.7097828382687081, 0.42323551169305323),
)
ADAM_EPS = 1e-10
MUON_BETA2 = 0.9


@dataclass(kw_only=True)
class Group:
    """Parameters that share a rule. `lr` is the peak learning rate; the schedule multiplies it."""

    names: list[str]
    kind: str  # "muon" or "adamw"
    lr: float
    weight_decay: float
    row: ParameterGroup
    betas: tuple[float, float] = (0.8, 0.95)
    parameters: list[nn.Parameter] = field(default_factory=list)


def group_parameters(model: nn.Module, config: OptimizerConfig, *, width: int, tokens_per_step: int) -> list[Group]:
    """Every parameter in exactly one group, by the table of plan/groups.py; matrices of one shape share a batched product."""
    groups: dict[object, Group] = {}
    names = [name for name, _ in model.named_parameters()]
    for name, parameter in model.named_parameters():
        row = group_of(name, tied="lm_head.weight" not in names)
        lr = peak_lr(row, config, width=width, tokens_per_step=tokens_per_step)
        key: object = row.name
        if row.rule == "muon":
            rows, columns = parameter.shape
            lr *= max(1.0, rows / columns) ** 0.5
            key = (row.name, rows, columns)
        decay = config.weight_decay if row.weight_decay is None else row.weight_decay
        group = groups.setdefault(key, Group(names=[], kind=row.rule, lr=lr, betas=row.betas, weight_decay=decay, row=row))
        group.names.append(name)
        group.parameters.append(parameter)
    return list(groups.values())


def polar(x: Tensor, dtype: torch.dtype) -> Tensor:
    """Nearly the orthogonal factor U V^T of each matrix of x (N, rows, columns), by five products in `dtype`."""
    tall = x.size(-2) > x.size(-1)
    x = x.mT if tall else x
    x = (x / (1.01 * x.norm(dim=(-2, -1), keepdim=True)).clamp(min=1e-12)).to(dtype)
    for a, b, c in POLAR_EXPRESS:
        gram = x @ x.mT
        x = torch.baddbmm(x, torch.baddbmm(gram, gram, gram, beta=b, alpha=c), x, beta=a)
    return (x.mT if tall else x).float()


def muon_direction(gradient: Tensor, second_moment: Tensor, dtype: torch.dtype) -> Tensor:
    """The update of gradients (N, rows, columns) that already carry momentum; `second_moment` is updated in place."""
    rows, columns = gradient.shape[-2:]
    row_norm = gradient.norm(dim=-1, keepdim=True).clamp(min=1e-12)
    mean_norm = gradient.norm(dim=(-2, -1), keepdim=True) / rows**0.5
    update = polar(gradient * (mean_norm / row_norm), dtype)
    update *= min(rows, columns) ** 0.5 / update.norm(dim=(-2, -1), keepdim=True).clamp(min=1e-12)
    longer_side = -1 if columns >= rows else -2
    second_moment.lerp_(update.square().mean(dim=longer_side, keepdim=True), 1 - MUON_BETA2)
    norm = update.norm(dim=(-2, -1), keepdim=True)
    update = update * second_moment.clamp(min=1e-12).rsqrt()
    return update * (norm / update.norm(dim=(-2, -1), keepdim=True).clamp(min=1e-12))


def second_moment_shape(shape: torch.Size) -> tuple[int, int]:
    """Of a matrix: one number for each of its longer side's lines."""
    return (shape[0], 1) if shape[1] >= shape[0] else (1, shape[1])


class MuonAdamW:
    """The optimizer. `step` takes the schedule's values; the state is saved by parameter name, whole, rank-free.

    On several ranks each holds state for the parameters that it owns (`distributed`), and `state` has those alone.
    """

    def __init__(self, groups: list[Group], dtype: torch.dtype = torch.float32, shards: Shards | None = None) -> None:
        self.groups = groups
        self.dtype = dtype
        self.steps = 0
        self.shards = shards or Shards()
        self.divisions = [self.shards.divide(group.names, group.parameters, matrices=group.kind == "muon") for group in groups]
        self.state: dict[str, Tensor] = {}
        self.stacked: list[tuple[Tensor, Tensor]] = []  # Muon's momentum and second moment, one batch a group
        for group, (parts, _, second_parts, _) in zip(groups, self.divisions, strict=True):
            first: Iterable[Tensor] = (torch.zeros_like(part.weight) for part in parts)
            second: Iterable[Tensor] = (torch.zeros_like(part.weight) for part in parts)
            if group.kind == "muon":
                device, shape = group.parameters[0].device, group.parameters[0].shape
                first = torch.zeros(len(parts), *(parts[0].weight.shape if parts else shape), device=device)
                second = torch.zeros(len(second_parts), *second_moment_shape(shape), device=device)
                self.stacked.append((first, second))  # the state by name is views of these
            else:
                self.stacked.append((torch.empty(0), torch.empty(0)))
            self.state |= {f"{part.name}.momentum": moment for part, moment in zip(parts, first, strict=True)}
            self.state |= {f"{part.name}.second_moment": moment for part, moment in zip(second_parts, second, strict=True)}

    @torch.no_grad()
    def step(self, *, lr_scale: float, momentum: float, decay_scale: float) -> None:
        """Update every parameter from its gradient; a parameter without a gradient stays as it is.

        On several ranks `shards.reduce` comes before it.
        """
        self.steps += 1
        for group, (parts, buckets, *_), stacked in zip(self.groups, self.divisions, self.stacked, strict=True):
            if parts and group.kind == "adamw":
                self._adamw(group, parts, group.lr * lr_scale)
            elif parts:
                self._muon(parts, *stacked, group.lr * lr_scale, momentum, group.weight_decay * decay_scale)
            self.shards.publish(buckets)
        self.shards.receive()

    def _muon(self, parts: list[Part], buffers: Tensor, second: Tensor, lr: float, momentum: float, decay: float) -> None:
        found = [(part.weight, part.gradient) for part in parts]
        gradients = torch.stack([torch.zeros_like(p) if gradient is None else gradient.float() for p, gradient in found])
        buffers.lerp_(gradients, 1 - momentum)  # (N, rows, columns)
        nesterov, rows = gradients.lerp_(buffers, momentum), parts[0].parameter.size(0)
        updates = self.shards.on_whole(lambda whole: muon_direction(whole, second, self.dtype), nesterov, rows)
        for (p, _), update in zip(found, updates, strict=True):
            # Cautious decay: only where it does not work against the update.
            p.sub_(update.addcmul_(p, update * p >= 0, value=decay), alpha=lr)

    def _adamw(self, group: Group, parts: list[Part], lr: float) -> None:
        touched = [(part, gradient) for part in parts if (gradient := part.gradient) is not None]
        # torch's fused kernel: one pass over memory instead of eight.
        adamw(
            [part.weight for part, _ in touched],
            [gradient for _, gradient in touched],
            [self.state[f"{part.name}.momentum"] for part, _ in touched],
            [self.state[f"{part.name}.second_moment"] for part, _ in touched],
            [],
            [torch.tensor(float(self.steps - 1), device=part.parameter.device) for part, _ in touched],
            fused=True,
            amsgrad=False,
            beta1=group.betas[0],
            beta2=group.betas[1],
            lr=lr,
            weight_decay=group.weight_decay,
            eps=ADAM_EPS,
            maximize=False,
        )

    def _shapes(self) -> Iterator[tuple[str, torch.Size | tuple[int, ...]]]:
        """Key and whole shape of everything that a saved state has."""
        for group in self.groups:
            for name, p in zip(group.names, group.parameters, strict=True):
                yield f"{name}.momentum", p.shape
                yield f"{name}.second_moment", p.shape if group.kind == "adamw" else second_moment_shape(p.shape)

    def state_dict(self) -> dict[str, Tensor]:
        """The whole state by parameter name. On several ranks all must call it at once: rank 0 gets copies on the CPU, the
        others nothing. On one rank the tensors are the optimizer's own, which the next step changes."""
        if self.shards.world_size == 1:
            return dict(self.state)
        shapes, whole = dict(self._shapes()), {}
        if self.shards.rank == 0:
            whole = {key: value.cpu().clone() for key, value in self.state.items() if value.shape == shapes[key]}
        for _, buckets, _, second_buckets in self.divisions:
            layouts = [("momentum", bucket) for bucket in buckets] + [("second_moment", bucket) for bucket in second_buckets]
            for moment, bucket in layouts:
                owned = [self.state[f"{part.name}.{moment}"] for part in bucket.parts()]
                shape = shapes[f"{bucket.names[0]}.{moment}"]
                for name, value in bucket.gather(owned, tuple(shape if bucket.stacked else shape[1:])):
                    whole[f"{name}.{moment}"] = value
        return whole

    def load_state_dict(self, state: dict[str, Tensor], steps: int) -> None:
        """Take over a saved state, each rank its part; ValueError names the first tensor that is missing or has another shape."""
        for key, shape in self._shapes():
            if key not in state or state[key].shape != shape:
                found = tuple(state[key].shape) if key in state else "nothing"
                raise ValueError(f"optimizer state {key}: expected shape {tuple(shape)}, found {found}.")
        for parts, _, second_parts, _ in self.divisions:
            for moment, held in (("momentum", parts), ("second_moment", second_parts)):
                for part in held:
                    self.state[f"{part.name}.{moment}"].copy_(state[f"{part.name}.{moment}"][part.rows])
        self.steps = steps
