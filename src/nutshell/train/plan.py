"""The dial -> everything. `make_plan` is pure: a recipe and what was measured of the machine in, all numbers out.

Rules and their sources (RECIPE in docs/recipe.md): width 64 per layer; horizon in tokens per matrix parameter; batch from
arXiv 2505.13738, weight decay from arXiv 2405.13698. Runs of a few million tokens follow rules of their own: small batches and
doubled rates learn fastest there (docs/experiments.md).
"""

from __future__ import annotations

import math
from dataclasses import asdict, dataclass, field, replace

from nutshell.model.config import ModelConfig
from nutshell.model.flops import flops_per_token, matrix_parameters, parameters_by_group
from nutshell.train.recipe import OptimizerConfig, Recipe, StageConfig, seconds
from nutshell.train.schedule import Schedule

D12 = ModelConfig(vocab_size=32768, depth=12, width=768, heads=6, kv_heads=6, head_dim=128, context=2048)
D12_TOKENS = 12 * matrix_parameters(D12)
FEWEST_STEPS = 400  # a horizon shorter than this many steps takes a smaller batch
SMALL_BATCH = 16_384  # up to here learning rates are doubled
EVALUATION_SHARE = 0.10  # of a budget, for evaluations, checkpoints and the report
LARGEST_MICRO_BATCH_TOKENS = 65_536
BUDGET_DEPTHS = (1, 2, 3, 4, 5, 6, 8, 10, 12, 16, 20, 24, 26, 28, 32)


@dataclass(frozen=True, kw_only=True)
class Timing:
    """What one depth takes on this machine."""

    tokens_per_second: float
    """Training."""
    decode_seconds: float = 0.0
    """One decoding step of all rows of an RL batch."""


@dataclass(frozen=True, kw_only=True)
class Hardware:
    """What the plan knows of the machine."""

    device: str = "cpu"
    dtype: str = "float32"
    world_size: int = 1
    threads: int = 0
    timings: dict[int, Timing] = field(default_factory=dict)
    """By depth; a budget needs at least one."""
    seconds_left: float = 0.0
    """Of the budget, after data, tokenizer and these measurements."""


@dataclass(frozen=True, kw_only=True)
class StagePlan:
    steps: int
    tokens_per_step: int
    lr_scale: float
    seconds: float | None = None
    """Expected; None where nothing was measured."""


@dataclass(frozen=True, kw_only=True)
class Plan:
    """Everything decided, saved as plan.json before any compute is spent."""

    model: ModelConfig
    rows: int
    """Rows one rank takes at once."""
    accumulation: int
    """Micro-batches of `rows` rows per rank and optimizer step."""
    stages: dict[str, StagePlan]
    optimizer: OptimizerConfig
    schedule: Schedule
    parameters: dict[str, int]
    flops_per_token: float
    hardware: Hardware
    recipe: Recipe
    refitted: tuple[str, ...] = ()
    """Stages whose steps were fitted again to what was left of the budget when they began; they never change after that."""

    @property
    def row_tokens(self) -> int:
        return self.model.context

    def to_dict(self) -> dict:
        return asdict(self)


def make_shape(recipe: Recipe, depth: int, vocab_size: int, bos_id: int = 0) -> ModelConfig:
    """The model of this depth; every size the recipe names is kept. ValueError for sizes that do not fit together."""
    width = recipe.width or 64 * depth
    head_dim = recipe.head_dim or (width // recipe.heads if recipe.heads else (64 if width <= 512 else 128))
    if not recipe.width:
        width = -(-width // head_dim) * head_dim
    if recipe.width and not recipe.heads and width % head_dim:
        raise ValueError(f"width is {width}, not a multiple of head_dim = {head_dim}. Use {-(-width // head_dim) * head_dim}.")
    heads = recipe.heads or width // head_dim
    context = recipe.context or (512 if depth <= 8 else 2048)
    portable = recipe.architecture == "portable"
    return ModelConfig(
        vocab_size=vocab_size, depth=depth, width=width, heads=heads, kv_heads=recipe.kv_heads or heads, head_dim=head_dim,
        context=context, window_pattern=recipe.window_pattern or ("L" if portable else "SSSL"), bos_id=bos_id,
        architecture=recipe.architecture, tied=recipe.tied,
        mlp_width=-(-width * 8 // 3 // 64) * 64 if portable else 0,  # as many parameters as speed's two matrices of 4 x width
    )  # fmt: skip


def default_vocab_size(recipe: Recipe, device: str) -> int:
    """Before any shape is known (on a budget) a CPU takes 4096 tokens, a GPU 32768."""
    if recipe.vocab_size:
        return recipe.vocab_size
    if recipe.depth:
        return 4096 if recipe.depth <= 4 else 8192 if recipe.depth <= 8 else 32768
    return 4096 if device == "cpu" else 32768


def batch_tokens(tokens: float) -> int:
    """Tokens a step for a horizon of `tokens`: the power of two of arXiv 2505.13738, less where steps would be too few."""
    best = round(math.log2(2**19 * (tokens / D12_TOKENS) ** 0.383))
    few = math.floor(math.log2(max(1.0, tokens / FEWEST_STEPS)))
    return 2 ** max(11, min(best, few))


def scaled_optimizer(base: OptimizerConfig, tokens_per_step: int, tokens: float) -> OptimizerConfig:
    """Rates before the width and batch factors of `group_parameters`, and the weight decay of this horizon."""
    boost = 2.0 if tokens_per_step <= SMALL_BATCH else 1.0
    rates = {
        name: getattr(base, name) * boost
        for name in ("matrix_lr", "head_lr", "embedding_lr", "value_embedding_lr", "residual_lr", "x0_lr", "norm_lr")
    }
    decay = base.weight_decay * (tokens_per_step / 2**19) ** 0.5 * D12_TOKENS / max(tokens, 1.0)
    return replace(base, **rates, weight_decay=min(decay, base.weight_decay * 100) / boost)


def _micro_batch(recipe: Recipe, tokens_per_step: int, context: int, world_size: int) -> tuple[int, int]:
    """(rows, accumulation) that make exactly tokens_per_step; ValueError names what does not divide."""
    if tokens_per_step % (context * world_size):
        raise ValueError(
            f"tokens_per_step is {tokens_per_step}, not divisible by context x ranks = {context} x {world_size}. "
            f"Use a multiple of {context * world_size}."
        )
    rows_per_rank = tokens_per_step // (context * world_size)
    rows = recipe.rows or min(rows_per_rank, max(1, LARGEST_MICRO_BATCH_TOKENS // context))
    while not recipe.rows and rows_per_rank % rows:
        rows -= 1
    if rows_per_rank % rows:
        raise ValueError(f"rows is {rows}, which does not divide the {rows_per_rank} rows of a step on each rank.")
    return rows, rows_per_rank // rows


def choose_depth(recipe: Recipe, hardware: Hardware, vocab_size: int) -> int:
    """The largest measured depth that still sees tokens_per_parameter tokens in pretraining's share of the budget."""
    share = recipe.stages.pretrain.share
    fitting = [
        depth
        for depth, timing in hardware.timings.items()
        if timing.tokens_per_second * hardware.seconds_left * (1 - EVALUATION_SHARE) * share
        >= recipe.tokens_per_parameter * matrix_parameters(make_shape(recipe, depth, vocab_size))
    ]
    return max(fitting) if fitting else min(hardware.timings)


def make_plan(recipe: Recipe, hardware: Hardware, *, vocab_size: int, bos_id: int = 0) -> Plan:
    """Decide shape, batch, rates and horizon of every stage. Pure; ValueError for what cannot be."""
    if not recipe.depth and not hardware.timings:
        raise ValueError("neither depth nor budget is given. Use --depth 4, or --budget 8min to fit the model to this machine.")
    depth = recipe.depth or choose_depth(recipe, hardware, vocab_size)
    shape = make_shape(recipe, depth, vocab_size, bos_id)
    timing = hardware.timings.get(depth)
    matrices = matrix_parameters(shape)
    configs: dict[str, StageConfig] = dict(vars(recipe.stages))
    train_seconds = hardware.seconds_left * (1 - EVALUATION_SHARE)
    if seconds(recipe.budget) and timing:
        tokens = timing.tokens_per_second * train_seconds * configs["pretrain"].share
    else:
        tokens = recipe.tokens_per_parameter * matrices
    unit = shape.context * hardware.world_size
    step_tokens = recipe.tokens_per_step or max(unit, batch_tokens(tokens) // unit * unit)
    rows, accumulation = _micro_batch(recipe, step_tokens, shape.context, hardware.world_size)
    step_seconds = step_tokens / timing.tokens_per_second if timing else None

    stages: dict[str, StagePlan] = {}
    pretrain_steps = configs["pretrain"].steps or max(1, int(tokens // step_tokens))
    for name, config in configs.items():
        if name == "rl":
            each = rl_step_seconds(recipe, timing) if timing else None
            steps = config.steps or (max(2, int(train_seconds * config.share / each)) if each and recipe.budget else 60)
            steps = 0 if config.share == 0 and not config.steps else steps
        else:
            each = step_seconds
            ratio = config.share / configs["pretrain"].share if configs["pretrain"].share else 1.0
            steps = config.steps or (pretrain_steps if name == "pretrain" else int(pretrain_steps * ratio))
        expected = None if each is None else steps * each
        stages[name] = StagePlan(steps=steps, tokens_per_step=step_tokens, lr_scale=config.lr_scale, seconds=expected)
    return Plan(
        model=shape, rows=rows, accumulation=accumulation, stages=stages,
        optimizer=scaled_optimizer(recipe.optimizer, step_tokens, pretrain_steps * step_tokens),
        schedule=recipe.schedule, parameters=parameters_by_group(shape),
        flops_per_token=flops_per_token(shape, shape.context), hardware=hardware, recipe=recipe,
    )  # fmt: skip


def for_ranks(plan: Plan, world_size: int) -> Plan:
    """The plan on another number of ranks: the same batches, divided otherwise. ValueError where they cannot be. Pure."""
    if world_size == plan.hardware.world_size:
        return plan
    step_tokens = plan.stages["pretrain"].tokens_per_step
    rows, accumulation = _micro_batch(plan.recipe, step_tokens, plan.model.context, world_size)
    return replace(plan, rows=rows, accumulation=accumulation, hardware=replace(plan.hardware, world_size=world_size))


def refit(plan: Plan, stage: str, *, seconds_left: float, slowdown: float) -> Plan:
    """Fit the steps of `stage` and those after it to what is left of the budget. Pure.

    `slowdown` is how much longer than planned the steps took so far: on a shared machine the first measurement is only a guess.
    A stage keeps between a quarter and twice its steps; one whose steps the recipe names keeps them all.
    """
    names = list(plan.stages)
    remaining = names[names.index(stage) :]
    ahead = [name for name in remaining if not getattr(plan.recipe.stages, name).steps]
    planned = sum(plan.stages[name].seconds or 0.0 for name in ahead)
    fixed = sum(plan.stages[name].seconds or 0.0 for name in remaining if name not in ahead)
    stages = dict(plan.stages)
    if planned > 0:
        factor = min(2.0, max(0.25, (seconds_left * (1 - EVALUATION_SHARE) / slowdown - fixed) / planned))
        for name in ahead:
            old = stages[name]
            steps = max(1, round(old.steps * factor)) if old.steps else 0
            stages[name] = replace(old, steps=steps, seconds=(old.seconds or 0.0) * factor)
    return replace(plan, stages=stages, refitted=(*plan.refitted, stage))


def rl_step_seconds(recipe: Recipe, timing: Timing) -> float:
    """One RL step: decoding answers of about half the longest length, then one update on them."""
    rl = recipe.stages.rl
    answers = rl.prompts * rl.samples
    return timing.decode_seconds * rl.max_tokens / 2 + answers * rl.max_tokens / 2 / timing.tokens_per_second


def describe(plan: Plan) -> str:
    """The plan in a few lines, for the console."""
    shape, total = plan.model, sum(plan.parameters.values())
    windows = "/".join(str(w) for w in sorted(set(shape.windows())))
    lines = [
        f"model     {shape.architecture}, depth {shape.depth}, width {shape.width}, "
        f"heads {shape.heads} ({shape.kv_heads} kv) x {shape.head_dim}, "
        f"context {shape.context}, windows {windows}, vocabulary {shape.vocab_size}",
        f"          {total:,} parameters: " + ", ".join(f"{name} {count:,}" for name, count in plan.parameters.items()),
        f"compute   {plan.hardware.device}, {plan.hardware.dtype}, {plan.hardware.world_size} rank(s), "
        f"{plan.flops_per_token:.3g} FLOPs a token",
        f"batch     {plan.rows} rows x {shape.context} tokens x {plan.accumulation} micro-batches a rank",
    ]
    for name, stage in plan.stages.items():
        time = f", about {stage.seconds:.0f} s" if stage.seconds is not None else ""
        tokens = (
            "" if name == "rl" else f" of {stage.tokens_per_step:,} tokens ({stage.steps * stage.tokens_per_step / 1e6:.2f}M)"
        )
        lines.append(f"{name:9} {stage.steps} steps{tokens}, rates x {stage.lr_scale:g}{time}")
    return "\n".join(lines)
