"""The dial -> everything. `make_plan` is pure: a recipe and what was measured of the machine in, all numbers out.

Rules and their sources (RECIPE in docs/recipe.md): width 64 per layer; horizon in tokens per matrix parameter; batch from
arXiv 2505.13738, weight decay from arXiv 2405.13698. Runs of a few million tokens follow rules of their own: small batches and
higher rates learn fastest there (docs/experiments.md).
"""

from __future__ import annotations

import json
import math
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path

from nutshell.config import from_dict
from nutshell.model.config import SPEED_ONLY, ModelConfig
from nutshell.model.flops import flops_per_token, matrix_parameters, parameters_by_group
from nutshell.plan.cost import RESERVE, evaluation_seconds, rl_step_seconds, saving_seconds, saving_share
from nutshell.plan.estimate import Forecast, forecast, most_rows, most_rows_that_fit, time_and_cost
from nutshell.plan.groups import BASE_TOKENS_PER_STEP, SMALL_BATCH
from nutshell.plan.hardware import ASSUMED_MFU, DECODE_SECONDS_PER_LAYER, Hardware, Timing, parse_machine
from nutshell.plan.law import Law
from nutshell.plan.recipe import OptimizerConfig, Recipe, StageConfig, quantity
from nutshell.plan.schedule import Schedule

D12 = ModelConfig(vocab_size=32768, depth=12, width=768, heads=6, kv_heads=6, head_dim=128, context=2048)
D12_TOKENS = 12 * matrix_parameters(D12)
FEWEST_STEPS = 400  # a horizon shorter than this many steps takes a smaller batch
FORMAT = 2
"""Of plan.json. In 1, learning rates held the boost of small batches, which the groups apply now."""
LARGEST_MICRO_BATCH_TOKENS = 65_536
BUDGET_DEPTHS = (1, 2, 3, 4, 5, 6, 8, 10, 12, 14, 16, 18, 20, 22, 24, 26, 28, 30, 32, 36, 40)


@dataclass(frozen=True, kw_only=True)
class StagePlan:
    steps: int
    tokens_per_step: int
    lr_scale: float
    seconds: float | None = None
    """Expected of its steps and checkpoints; None where nothing was measured."""
    evaluation_seconds: float = 0.0
    """Expected of what is scored during the stage and after it."""


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
    forecast: Forecast = field(default_factory=Forecast)
    refitted: tuple[str, ...] = ()
    """Stages whose steps were fitted again to what was left of the budget when they began; they never change after that."""
    format: int = FORMAT
    """Of plan.json."""

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
        architecture=recipe.architecture, tied=recipe.tied, rotary_base=recipe.rotary_base,
        **{name: getattr(recipe, name) for name in SPEED_ONLY},
        mlp_width=-(-width * 8 // 3 // 64) * 64 if portable else 0,  # as many parameters as speed's two matrices of 4 x width
    )  # fmt: skip


def default_vocab_size(recipe: Recipe, device: str) -> int:
    """Before any shape is known (on a budget) a CPU takes 4096 tokens, a GPU 32768."""
    if recipe.vocab_size:
        return recipe.vocab_size
    if depth := named_depth(recipe):
        return _vocab_size_at(depth)
    return 4096 if device == "cpu" else 32768


def _vocab_size_at(depth: int) -> int:
    return 4096 if depth <= 4 else 8192 if depth <= 8 else 32768


def named_depth(recipe: Recipe) -> int:
    """The depth that the recipe names, or the one whose parameters are nearest to those it names; 0 where the plan decides."""
    if not recipe.params:
        return recipe.depth
    wanted = quantity(recipe.params, "params")

    def distance(depth: int) -> float:
        shape = make_shape(recipe, depth, recipe.vocab_size or _vocab_size_at(depth))
        return abs(sum(parameters_by_group(shape).values()) - wanted)

    return min(range(1, 65), key=distance)


def batch_tokens(tokens: float) -> int:
    """Tokens a step for a horizon of `tokens`: the power of two of arXiv 2505.13738, less where steps would be too few."""
    best = round(math.log2(2**19 * (tokens / D12_TOKENS) ** 0.383))
    few = math.floor(math.log2(max(1.0, tokens / FEWEST_STEPS)))
    return 2 ** max(11, min(best, few))


def scaled_weight_decay(base: float, tokens_per_step: int, tokens: float) -> float:
    """Muon's weight decay for this batch and horizon (arXiv 2405.13698); small batches take half of it (docs/experiments.md)."""
    decay = base * (tokens_per_step / BASE_TOKENS_PER_STEP) ** 0.5 * D12_TOKENS / max(tokens, 1.0)
    return min(decay, base * 100) / (2.0 if tokens_per_step <= SMALL_BATCH else 1.0)


def _micro_batch(recipe: Recipe, tokens_per_step: int, shape: ModelConfig, hardware: Hardware) -> tuple[int, int]:
    """(rows, accumulation) that make exactly tokens_per_step and fit the memory; ValueError names what does not."""
    context, world_size = shape.context, hardware.world_size
    most = most_rows(shape, hardware, recipe.rows, recipe.shard)
    if tokens_per_step % (context * world_size):
        raise ValueError(
            f"tokens_per_step is {tokens_per_step}, not divisible by context x ranks = {context} x {world_size}. "
            f"Use a multiple of {context * world_size}."
        )
    rows_per_rank = tokens_per_step // (context * world_size)
    rows = recipe.rows or min(rows_per_rank, most, max(1, LARGEST_MICRO_BATCH_TOKENS // context))
    while not recipe.rows and rows_per_rank % rows:
        rows -= 1
    if rows_per_rank % rows:
        raise ValueError(f"rows is {rows}, which does not divide the {rows_per_rank} rows of a step on each rank.")
    return rows, rows_per_rank // rows


def assumed_hardware(recipe: Recipe) -> Hardware:
    """The machine that --gpu names: its data sheet, and for each depth the speed at an assumed share of the peak."""
    machine = parse_machine(recipe.gpu)
    mfu = recipe.mfu or ASSUMED_MFU
    vocab_size = default_vocab_size(recipe, "cuda")
    timings = {}
    for depth in (named_depth(recipe),) if named_depth(recipe) else BUDGET_DEPTHS:
        shape = make_shape(recipe, depth, vocab_size)
        rate = machine.cards * machine.peak_flops * mfu / flops_per_token(shape, shape.context)
        step = DECODE_SECONDS_PER_LAYER * depth
        timings[depth] = Timing(tokens_per_second=rate, decode_seconds=step, reply_seconds=step)
    return Hardware(
        device="cuda", dtype="bfloat16" if recipe.dtype == "auto" else recipe.dtype, world_size=machine.cards,
        memory_bytes=machine.memory_bytes, gpu=machine.name, mfu=mfu, timings=timings, seconds_left=recipe.budget_seconds(),
    )  # fmt: skip


def draft_plan(recipe: Recipe, law: Law | None = None) -> Plan:
    """The plan as far as settings alone decide it: for the machine that --gpu names, else for a device of unknown speed.

    The tokenizer is taken to have exactly the tokens that it is asked for. ValueError where a budget needs a measurement.
    """
    if recipe.gpu:
        hardware = assumed_hardware(recipe)
    else:
        dtype = "bfloat16" if recipe.dtype == "auto" else recipe.dtype
        hardware = Hardware(device="cuda" if recipe.device == "auto" else recipe.device, dtype=dtype)
    return make_plan(recipe, hardware, vocab_size=default_vocab_size(recipe, hardware.device), law=law)


def training_seconds(recipe: Recipe, hardware: Hardware, shape: ModelConfig) -> float:
    """What of the time left a model of this shape has for its steps: less evaluations, checkpoints, compilation and a reserve."""
    timing, parameters = hardware.timings[shape.depth], sum(parameters_by_group(shape).values())
    names = [name for name, stage in vars(recipe.stages).items() if stage.share or stage.steps]
    fixed = sum(evaluation_seconds(recipe, timing, name, hardware.world_size) for name in names)
    fixed += sum(timing.startup_seconds + saving_seconds(parameters, name) for name in names)
    left = hardware.seconds_left * (1 - RESERVE)
    # Where the budget is hardly more than that, half of it is still for learning: it will be exceeded.
    return max(left - fixed, left / 2) / (1 + saving_share(recipe, parameters))


def affordable(recipe: Recipe, hardware: Hardware, depth: int, vocab_size: int) -> bool:
    """Whether a depth of known speed fits the memory and sees tokens_per_parameter tokens in pretraining's share."""
    shape, timing = make_shape(recipe, depth, vocab_size), hardware.timings[depth]
    tokens = timing.tokens_per_second * training_seconds(recipe, hardware, shape) * recipe.stages.pretrain.share
    if tokens < recipe.tokens_per_parameter * matrix_parameters(shape):
        return False
    return not hardware.memory_bytes or most_rows_that_fit(shape, hardware, recipe.shard) > 0


def choose_depth(recipe: Recipe, hardware: Hardware, vocab_size: int) -> int:
    """The largest affordable depth; the smallest of known speed where none is."""
    return max((d for d in hardware.timings if affordable(recipe, hardware, d, vocab_size)), default=min(hardware.timings))


def make_plan(recipe: Recipe, hardware: Hardware, *, vocab_size: int, bos_id: int = 0, law: Law | None = None) -> Plan:
    """Decide shape, batch, rates and horizon of every stage. Pure; ValueError for what cannot be."""
    budget = recipe.budget_seconds()
    if not named_depth(recipe) and not (budget and hardware.timings):
        raise ValueError("neither depth nor budget is given. Use --depth 4, or --budget 8min to fit the model to this machine.")
    depth = named_depth(recipe) or choose_depth(recipe, hardware, vocab_size)
    shape = make_shape(recipe, depth, vocab_size, bos_id)
    timing = hardware.timings.get(depth)
    matrices, parameters = matrix_parameters(shape), parameters_by_group(shape)
    configs: dict[str, StageConfig] = dict(vars(recipe.stages))
    left = training_seconds(recipe, hardware, shape) if budget and timing else 0.0
    if timing and left:
        tokens = timing.tokens_per_second * left * configs["pretrain"].share
    else:
        tokens = recipe.tokens_per_parameter * matrices
    unit = shape.context * hardware.world_size
    step_tokens = recipe.tokens_per_step or max(unit, batch_tokens(tokens) // unit * unit)
    rows, accumulation = _micro_batch(recipe, step_tokens, shape, hardware)

    stages: dict[str, StagePlan] = {}
    pretrain_steps = configs["pretrain"].steps or max(1, int(tokens // step_tokens))
    for name, config in configs.items():
        if name == "rl":
            each = rl_step_seconds(recipe.stages.rl, timing) if timing else None
            steps = config.steps or (max(2, int(left * config.share / each)) if each and left else 60)
            steps = 0 if config.share == 0 and not config.steps else steps
        else:
            each = step_tokens / timing.tokens_per_second if timing else None
            ratio = config.share / configs["pretrain"].share if configs["pretrain"].share else 1.0
            steps = config.steps or (pretrain_steps if name == "pretrain" else int(pretrain_steps * ratio))
        expected, evaluation = None, 0.0
        if timing and each is not None and steps:
            total = sum(parameters.values())
            expected = steps * each * (1 + saving_share(recipe, total)) + timing.startup_seconds + saving_seconds(total, name)
            evaluation = evaluation_seconds(recipe, timing, name, hardware.world_size)
        stages[name] = StagePlan(
            steps=steps, tokens_per_step=step_tokens, lr_scale=config.lr_scale, seconds=expected, evaluation_seconds=evaluation
        )
    plan = Plan(
        model=shape, rows=rows, accumulation=accumulation, stages=stages,
        optimizer=replace(recipe.optimizer, weight_decay=scaled_weight_decay(
            recipe.optimizer.weight_decay, step_tokens, pretrain_steps * step_tokens)),
        schedule=recipe.schedule, parameters=parameters,
        flops_per_token=flops_per_token(shape, shape.context), hardware=hardware, recipe=recipe,
    )  # fmt: skip
    return replace(plan, forecast=forecast(plan, law))


def for_ranks(plan: Plan, world_size: int) -> Plan:
    """The plan on another number of ranks: the same batches, divided otherwise. ValueError where they cannot be. Pure."""
    if world_size == plan.hardware.world_size:
        return plan
    step_tokens = plan.stages["pretrain"].tokens_per_step
    hardware = replace(plan.hardware, world_size=world_size)
    rows, accumulation = _micro_batch(plan.recipe, step_tokens, plan.model, hardware)
    return replace(plan, rows=rows, accumulation=accumulation, hardware=hardware)


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
    fixed += sum(plan.stages[name].evaluation_seconds for name in remaining)
    stages = dict(plan.stages)
    if planned > 0:
        factor = min(2.0, max(0.25, (seconds_left * (1 - RESERVE) / slowdown - fixed) / planned))
        for name in ahead:
            old = stages[name]
            steps = max(1, round(old.steps * factor)) if old.steps else 0
            stages[name] = replace(old, steps=steps, seconds=(old.seconds or 0.0) * factor)
    plan = replace(plan, stages=stages, refitted=(*plan.refitted, stage))
    total, usd = time_and_cost(plan)
    return replace(plan, forecast=replace(plan.forecast, seconds=total, usd=usd))


def load_plan(folder: Path) -> Plan | None:
    """The plan of a run, if it has one. ValueError where the file is damaged."""
    path = folder / "plan.json"
    if not path.exists():
        return None
    try:
        values = json.loads(path.read_text(encoding="utf-8"))
        if isinstance(values, dict) and values and values.get("format", 1) != FORMAT:
            raise ValueError(
                f"{path} was written by another version (format {values.get('format', 1)}, this one trains by {FORMAT}): its "
                f"rates mean something else now. The models in {folder} can be used as before (nutshell chat, serve, eval, "
                "report); to train, give another --out, or use the version that planned the run."
            )
        return from_dict(Plan, values, str(path))
    except (json.JSONDecodeError, TypeError) as error:
        raise ValueError(f"{path} is damaged ({error}). Delete the run folder {folder} to start anew.") from None
