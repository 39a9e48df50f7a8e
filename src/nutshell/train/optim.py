"""Muon for the matrices, AdamW for everything else: one optimizer, its state kept by parameter name.

Sources: Muon (Jordan et al., 2024); Polar Express arXiv 2505.16932; row equilibration arXiv 2603.28254; Frobenius
renormalisation arXiv 2602.21545; NorMuon arXiv 2510.05491; cautious weight decay arXiv 2510.12402; AdamW arXiv 1711.05101.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from functools import partial

import torch
from torch import Tensor, nn
from torch.optim.adamw import adamw

from nutshell.plan.groups import ParameterGroup, group_of, peak_lr
from nutshell.plan.recipe import OptimizerConfig
from nutshell.train.zero import Shard, Zero

# Five quintic iterations of Polar Express, computed for safety 2e-2 and cushion 2 (table of arXiv 2505.16932).
POLAR_EXPRESS = (
    (8.156554524902461, -22.48329292557795, 15.878769915207462),
    (4.042929935166739, -2.808917465908714, 0.5000178451051316),
    (3.8916678022926607, -2.772484153217685, 0.5060648178503393),
    (3.285753657755655, -2.3681294933425376, 0.46449024233003106),
    (2.3465413258596377, -1.7097828382687081, 0.42323551169305323),
)
ADAM_EPS = 1e-10


@dataclass(kw_only=True)
class Group:
    """Parameters that share a rule and, for Muon, a shape: one batched product updates them all."""

    row: ParameterGroup  # of the table in plan/groups.py: rule and betas
    lr: float  # peak rate at this width and batch; the schedule multiplies it
    weight_decay: float
    names: list[str] = field(default_factory=list)
    parameters: list[nn.Parameter] = field(default_factory=list)
    positions: list[int] = field(default_factory=list)  # of the parameters in the model, first layer first

    @property
    def rule(self) -> str:
        return self.row.rule


def group_parameters(model: nn.Module, config: OptimizerConfig, *, width: int, tokens_per_step: int) -> list[Group]:
    """Every parameter in exactly one group. ValueError where the table has no row for one."""
    groups: dict[object, Group] = {}
    named = dict(model.named_parameters())
    for position, (name, parameter) in enumerate(named.items()):
        row = group_of(name, tied="lm_head.weight" not in named)
        lr = peak_lr(row, config, width=width, tokens_per_step=tokens_per_step)
        key: object = row.name
        if row.rule == "muon":
            rows, columns = parameter.shape
            lr *= max(1.0, rows / columns) ** 0.5
            key = (row.name, rows, columns)
        decay = config.weight_decay if row.weight_decay is None else row.weight_decay
        group = groups.setdefault(key, Group(row=row, lr=lr, weight_decay=decay))
        group.names.append(name)
        group.parameters.append(parameter)
        group.positions.append(position)
    return list(groups.values())


def polar(x: Tensor, dtype: torch.dtype) -> Tensor:
    """Nearly the orthogonal factor U V^T of each matrix of x (N, rows, columns), by five products in `dtype`.

    A matrix U S V^T keeps its singular vectors under odd polynomials of the form x (a + b x^T x + c (x^T x)^2); the five sets of
    coefficients send every singular value in (0, 1] close to 1. Nothing but matrix products is needed.
    """
    tall = x.size(-2) > x.size(-1)
    x = x.mT if tall else x
    x = (x / (1.01 * x.norm(dim=(-2, -1), keepdim=True)).clamp(min=1e-12)).to(dtype)
    for a, b, c in POLAR_EXPRESS:
        gram = x @ x.mT
        x = torch.baddbmm(x, torch.baddbmm(gram, gram, gram, beta=b, alpha=c), x, beta=a)
    return (x.mT if tall else x).float()


def muon_direction(gradient: Tensor, second_moment: Tensor | None, dtype: torch.dtype, beta2: float = 0.9) -> Tensor:
    """The update of gradients (N, rows, columns) that already carry momentum; `second_moment` is updated in place.

    A gradient matrix is nearly of low rank: a few directions get almost all of a plain step. Muon replaces it by its orthogonal
    factor, so that every direction moves equally far, and the size of the step does not depend on that of the gradient. Rows are
    brought to one norm first (row equilibration), and NorMuon evens out the lines of the longer side afterwards, which the
    orthogonal factor leaves uneven, by a running mean of their squares. The norm of the update stays what it was.
    """
    rows, columns = gradient.shape[-2:]
    row_norm = gradient.norm(dim=-1, keepdim=True).clamp(min=1e-12)
    mean_norm = gradient.norm(dim=(-2, -1), keepdim=True) / rows**0.5
    update = polar(gradient * (mean_norm / row_norm), dtype)
    update *= min(rows, columns) ** 0.5 / update.norm(dim=(-2, -1), keepdim=True).clamp(min=1e-12)
    if second_moment is None:
        return update
    shorter_side = -1 if rows >= columns else -2
    second_moment.lerp_(update.square().mean(dim=shorter_side, keepdim=True), 1 - beta2)
    norm = update.norm(dim=(-2, -1), keepdim=True)
    update = update * second_moment.clamp(min=1e-12).rsqrt()
    return update * (norm / update.norm(dim=(-2, -1), keepdim=True).clamp(min=1e-12))


def second_moment_shape(shape: torch.Size) -> tuple[int, int]:
    """One number for each row or column of a matrix, along its longer side."""
    return (shape[0], 1) if shape[0] >= shape[1] else (1, shape[1])


class MuonAdamW:
    """The optimizer. A step is: backward passes, `reduce`, perhaps `scale_gradients`, `step`. State is kept by parameter name.

    On several ranks each holds state for the shards that it owns (`zero`), and `state` has those alone.
    """

    def __init__(
        self, groups: list[Group], dtype: torch.dtype = torch.float32, zero: Zero | None = None, *, muon_beta2: float = 0.9
    ) -> None:
        self.groups, self.dtype, self.muon_beta2 = groups, dtype, muon_beta2
        self.steps = 0
        self.zero = zero or Zero()
        self.partitions = [self.zero.partition(g.names, g.parameters, matrices=g.rule == "muon") for g in groups]
        self.zero.sort_buckets({name: n for group in groups for name, n in zip(group.names, group.positions, strict=True)})
        self.state: dict[str, Tensor] = {}
        self.muon_state: list[tuple[Tensor, Tensor | None] | None] = []  # of each Muon group: momenta and second moments, stacked
        for group, partition in zip(groups, self.partitions, strict=True):
            shards, second_shards = partition.shards, partition.second_shards
            if group.rule == "adamw":
                for shard in shards:
                    self.state[f"{shard.name}.momentum"] = torch.zeros_like(shard.weight)
                    self.state[f"{shard.name}.second_moment"] = torch.zeros_like(shard.weight)
                self.muon_state.append(None)
                continue
            # The state by name is views of the stacked tensors.
            device, shape = group.parameters[0].device, group.parameters[0].shape
            momenta = torch.zeros(len(shards), *(shards[0].weight.shape if shards else shape), device=device)
            self.state |= {f"{shard.name}.momentum": momentum for shard, momentum in zip(shards, momenta, strict=True)}
            second = None
            if muon_beta2:
                second = torch.zeros(len(second_shards), *second_moment_shape(shape), device=device)
                self.state |= {f"{s.name}.second_moment": moment for s, moment in zip(second_shards, second, strict=True)}
            self.muon_state.append((momenta, second))

    def zero_grad(self) -> None:
        for group in self.groups:
            for p in group.parameters:
                p.grad = None

    def reduce_in_backward(self) -> None:
        """To be called before the last backward pass of a step: gradients travel while it runs."""
        self.zero.reduce_in_backward()

    def reduce(self) -> Tensor:
        """Wait until the gradients are summed over the ranks. Returns the Euclidean norm of this rank's share of them."""
        return self.zero.reduce()

    def scale_gradients(self, factor: float) -> None:
        if factor != 1:
            torch._foreach_mul_(self.zero.gradients(), factor)

    @torch.no_grad()
    def step(self, *, lr: float, momentum: float, decay: float) -> None:
        """Update every parameter from its gradient; a parameter without a gradient stays as it is.

        `lr` and `decay` multiply the groups' peak rates and Muon's weight decay; `momentum` is Muon's.
        """
        self.steps += 1
        for group, partition, muon_state in zip(self.groups, self.partitions, self.muon_state, strict=True):
            if partition.shards and muon_state is None:
                self._adamw(group, partition.shards, group.lr * lr)
            elif partition.shards and muon_state is not None:
                self._muon(partition.shards, *muon_state, group.lr * lr, momentum, group.weight_decay * decay)
            self.zero.all_gather(partition.buckets)
        self.zero.finish_all_gather()

    def _muon(
        self, shards: list[Shard], momenta: Tensor, second: Tensor | None, lr: float, momentum: float, weight_decay: float
    ) -> None:
        """Update matrices of one shape together. Those without a gradient are in the stack as zeros and stay as they are."""
        found = [(shard.weight, shard.gradient) for shard in shards]
        if all(gradient is None for _, gradient in found):
            return
        gradients = torch.stack([torch.zeros_like(p) if gradient is None else gradient.float() for p, gradient in found])
        momenta.lerp_(gradients, 1 - momentum)  # (N, rows, columns)
        nesterov = gradients.lerp_(momenta, momentum)
        direction = partial(muon_direction, second_moment=second, dtype=self.dtype, beta2=self.muon_beta2)
        updates = self.zero.on_whole_matrices(direction, nesterov, shards[0].parameter.size(0))
        for (p, gradient), update in zip(found, updates, strict=True):
            if gradient is not None:
                # Cautious decay: only where it does not work against the update.
                p.sub_(update.addcmul_(p, update * p >= 0, value=weight_decay), alpha=lr)

    def _adamw(self, group: Group, shards: list[Shard], lr: float) -> None:
        touched = [(shard, gradient) for shard in shards if (gradient := shard.gradient) is not None]
        # torch's fused kernel: one pass over memory instead of eight.
        adamw(
            [shard.weight for shard, _ in touched],
            [gradient for _, gradient in touched],
            [self.state[f"{shard.name}.momentum"] for shard, _ in touched],
            [self.state[f"{shard.name}.second_moment"] for shard, _ in touched],
            [],
            [torch.tensor(float(self.steps - 1), device=shard.parameter.device) for shard, _ in touched],
            fused=True,
            amsgrad=False,
            beta1=group.row.betas[0],
            beta2=group.row.betas[1],
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
                if group.rule == "adamw":
                    yield f"{name}.second_moment", p.shape
                elif self.muon_beta2:
                    yield f"{name}.second_moment", second_moment_shape(p.shape)

    def state_dict(self) -> dict[str, Tensor]:
        """The whole state by parameter name. On several ranks it is a collective: rank 0 gets copies on the CPU, the
        others nothing. On one rank the tensors are the optimizer's own, which the next step changes."""
        if self.zero.world_size == 1:
            return dict(self.state)
        shapes, whole = dict(self._shapes()), {}
        if self.zero.rank == 0:
            whole = {key: value.to("cpu", copy=True) for key, value in self.state.items() if value.shape == shapes[key]}
        for _, buckets, _, second_buckets in self.partitions:
            layouts = [("momentum", bucket) for bucket in buckets] + [("second_moment", bucket) for bucket in second_buckets]
            for moment, bucket in layouts:
                if (key := f"{bucket.names[0]}.{moment}") not in shapes:
                    continue
                owned = [self.state[f"{shard.name}.{moment}"] for shard in bucket.shards()]
                for name, value in bucket.gather(owned, tuple(shapes[key] if bucket.stacked else shapes[key][1:])):
                    whole[f"{name}.{moment}"] = value
        return whole

    def load_state_dict(self, state: dict[str, Tensor], steps: int) -> None:
        """Take over a saved state, each rank its part; ValueError names the first tensor that is missing or has another shape."""
        for key, shape in self._shapes():
            if key not in state or state[key].shape != shape:
                found = tuple(state[key].shape) if key in state else "nothing"
                raise ValueError(
                    f"optimizer state {key}: expected shape {tuple(shape)}, found {found}. The stage was begun by another "
                    "version of nutshell or with other settings: go on with those, or delete the stage's folder to begin it anew."
                )
        for shards, _, second_shards, _ in self.partitions:
            for moment, held in (("momentum", shards), ("second_moment", second_shards)):
                for shard in held:
                    if (key := f"{shard.name}.{moment}") in self.state:
                        self.state[key].copy_(state[key][shard.rows])
        self.steps = steps
