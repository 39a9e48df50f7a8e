"""The one table of parameter groups: which rule moves which parameters, how fast, with which betas and decay.

The optimizer builds its groups from it, a plan prints its rates, docs/recipe.md explains the numbers. No torch.
"""

from __future__ import annotations

import re
from dataclasses import dataclass

from nutshell.model.config import ModelConfig
from nutshell.model.flops import parameters_by_group
from nutshell.plan.recipe import OptimizerConfig

BASE_WIDTH = 768
BASE_TOKENS_PER_STEP = 2**19  # the rates of `OptimizerConfig` hold at this width and this many tokens a step
SMALL_BATCH = 16_384
"""Tokens a step; up to here the best rates fall less with the batch than its root: `small_batch_boost` (docs/experiments.md)."""


@dataclass(frozen=True, kw_only=True)
class ParameterGroup:
    """One row of the table."""

    name: str
    parameters: str  # pattern that a parameter's whole name matches
    rule: str  # "muon" (matrices, Newton-Schulz) or "adamw"
    lr: str  # field of `OptimizerConfig` with the peak rate
    scales_with_width: bool = False  # the rate is multiplied by (width / BASE_WIDTH)^-1/2
    scales_with_batch: bool = True  # the rate is multiplied by (tokens_per_step / BASE_TOKENS_PER_STEP)^1/2
    betas: tuple[float, float] = (0.8, 0.95)  # AdamW's; Muon's momentum follows the schedule
    weight_decay: float | None = 0.0  # None: `OptimizerConfig.weight_decay`, scaled by the plan
    small_batch_boost: float = 2.0
    trained_in_rl: bool = True
    """RL leaves out the few numbers that act on every token: Adam's step does not shrink with a faint gradient."""


PARAMETER_GROUPS = (
    ParameterGroup(
        name="matrices", parameters=r"(blocks|model\.layers)\..*(?<!norm)\.weight", rule="muon", lr="matrix_lr",
        weight_decay=None, small_batch_boost=4.0,
    ),
    ParameterGroup(
        name="lm_head", parameters=r"lm_head\.weight", rule="adamw", lr="head_lr", scales_with_width=True, betas=(0.8, 0.96),
        weight_decay=0.01, small_batch_boost=4.0,
    ),
    ParameterGroup(
        name="embedding", parameters=r"(embedding|positions|model\.embed_tokens)\.weight", rule="adamw", lr="embedding_lr",
        scales_with_width=True, betas=(0.8, 0.995), weight_decay=0.001,
    ),
    ParameterGroup(
        name="value embeddings", parameters=r"value_embeddings\..*", rule="adamw", lr="value_embedding_lr",
        scales_with_width=True, betas=(0.8, 0.995), weight_decay=0.01,
    ),
    ParameterGroup(
        name="residual scales", parameters=r"residual_scale", rule="adamw", lr="residual_lr", weight_decay=0.05,
        trained_in_rl=False,
    ),
    ParameterGroup(
        name="embedding scales", parameters=r"embedding_scale", rule="adamw", lr="x0_lr", betas=(0.96, 0.95), trained_in_rl=False
    ),
    ParameterGroup(
        name="smear, backout", parameters=r"smear_gate\.weight|smear_lambda|backout", rule="adamw", lr="smear_lr",
        scales_with_batch=False, small_batch_boost=1.0, trained_in_rl=False,
    ),
    ParameterGroup(name="norms", parameters=r".*norm\.weight", rule="adamw", lr="norm_lr", trained_in_rl=False),
    ParameterGroup(name="biases", parameters=r".*\.bias", rule="adamw", lr="norm_lr", trained_in_rl=False),
)  # fmt: skip


def group_of(parameter: str, *, tied: bool = False) -> ParameterGroup:
    """The group of a parameter by its name; a tied embedding learns as the head does. ValueError where no row fits."""
    if tied and parameter in ("embedding.weight", "model.embed_tokens.weight"):
        parameter = "lm_head.weight"
    for group in PARAMETER_GROUPS:
        if re.fullmatch(group.parameters, parameter):
            return group
    raise ValueError(f"no row of PARAMETER_GROUPS (plan/groups.py) matches the parameter {parameter}; add one.")


def peak_lr(group: ParameterGroup, config: OptimizerConfig, *, width: int, tokens_per_step: int) -> float:
    """Peak rate at this width and batch. A matrix with more rows than columns has this times the root of their ratio."""
    lr = getattr(config, group.lr)
    if tokens_per_step <= SMALL_BATCH:
        lr *= group.small_batch_boost
    if group.scales_with_width:
        lr *= (width / BASE_WIDTH) ** -0.5
    if group.scales_with_batch:
        lr *= (tokens_per_step / BASE_TOKENS_PER_STEP) ** 0.5
    return lr


def learning_rates(config: OptimizerConfig, model: ModelConfig, tokens_per_step: int) -> dict[str, float]:
    """Peak rate of each group that a model of this shape has, by the group's name."""
    parts = parameters_by_group(model)
    present = {"matrices": 1, **{name: count for name, count in parts.items() if count}}
    return {
        group.name: peak_lr(group, config, width=model.width, tokens_per_step=tokens_per_step)
        for group in PARAMETER_GROUPS
        if group.name in present
    }
