"""From the one dial to every number. `make_plan` is pure: a recipe and what was measured of the machine in, a plan out.

Rules and their sources (docs/recipe.md): width 64 per layer; horizon in tokens per matrix parameter; batch from
arXiv 2505.13738, weight decay from arXiv 2405.13698. Runs of a few million tokens follow rules of their own: small batches and
higher rates learn fastest there (docs/experiments.md).
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field, replace

from nutshell.model.config import ModelConfig
from nutshell.model.flops import flops_per_token, matrix_parameters, parameters_by_group
from nutshell.plan import cost, mixture
from nutshell.plan.estimate import forecast, time_and_cost
from nutshell.plan.groups import BASE_TOKENS_PER_STEP, SMALL_BATCH
from nutshell.plan.hardware import ASSUMED_MFU, DECODE_SECONDS_PER_LAYER, Hardware, Timing, parse_machine
from nutshell.plan.law import Law, text_fingerprint
from nutshell.plan.memory import fitting_rows, most_rows
from nutshell.plan.mixture import Size
from nutshell.plan.recipe import ON_ANSWERS, Recipe
from nutshell.plan.record import Plan, StagePlan
from nutshell.plan.shape import default_vocab_size, make_shape, named_depth

D12 = ModelConfig(vocab_size=32768, depth=12, width=768, heads=6, kv_heads=6, head_dim=128, context=2048)
D12_TOKENS = 12 * matrix_parameters(D12)
FEWEST_STEPS = 400  # a horizon shorter than this many steps takes a smaller batch
RL_STEPS = 60  # without a budget
LARGEST_MICRO_BATCH_TOKENS = 65_536
BUDGET_DEPTHS = (1, 2, 3, 4, 5, 6, 8, 10, 12, 14, 16, 18, 20, 22, 24, 26, 28, 30, 32, 36, 40)


@dataclass(frozen=True, kw_only=True)
class Data:
    """What a plan knows of the data; zero or empty where that is not known yet."""

    text: str = ""  # the training text's fingerprint
    texts: dict[str, Size] = field(default_factory=dict)  # of each part that pretraining reads, by its file or folder
    conversations: dict[str, Size] = field(default_factory=dict)  # of each part of the other stages, by file, folder or task
    pairs: int = 0  # of preferences
    pair_tokens: float = 0.0  # of one, both answers each with the prompt

    def sizes(self, stage: str) -> dict[str, Size]:
        return self.texts if stage == "pretrain" else self.conversations


def batch_tokens(tokens: float) -> int:
    """Tokens a step for a horizon of `tokens`: the power of two of arXiv 2505.13738, less where steps would be too few."""
    best = round(math.log2(2**19 * (tokens / D12_TOKENS) ** 0.383))
    few = math.floor(math.log2(max(1.0, tokens / FEWEST_STEPS)))
    return 2 ** max(11, min(best, few))


def scaled_weight_decay(base: float, tokens_per_step: int, tokens: float) -> float:
    """Muon's weight decay for this batch and horizon (arXiv 2405.13698); small batches take half of it (docs/experiments.md)."""
    decay = base * (tokens_per_step / BASE_TOKENS_PER_STEP) ** 0.5 * D12_TOKENS / max(tokens, 1.0)
    return min(decay, base * 100) / (2.0 if tokens_per_step <= SMALL_BATCH else 1.0)


def _micro_batch(recipe: Recipe, tokens_per_step: int, shape: ModelConfig, hardware: Hardware, *, asked: int) -> tuple[int, int]:
    """(micro_batch_size, grad_accum_steps) that make exactly tokens_per_step and fit the memory; ValueError where none does."""
    context, world_size = shape.context, hardware.world_size
    most = most_rows(shape, hardware, recipe.shard, asked)
    unit, product = context * world_size, f"context x ranks = {context} x {world_size}"
    if tokens_per_step % unit:
        raise ValueError(f"tokens_per_step is {tokens_per_step}, not divisible by {product}. Use a multiple of {unit}.")
    rows = tokens_per_step // unit  # of a step on each rank
    if asked and rows % asked:
        raise ValueError(f"micro_batch_size is {asked}, which does not divide the {rows} rows of a step on each rank.")
    size = asked or largest_divisor(rows, min(most, max(1, LARGEST_MICRO_BATCH_TOKENS // context)))
    return size, rows // size


def largest_divisor(number: int, most: int) -> int:
    """The largest divisor of `number` that is at most `most`."""
    return next(d for d in range(min(number, most), 0, -1) if number % d == 0)


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
    """The plan from settings alone: for the machine that --gpu names, else for a device of unknown speed.

    The tokenizer is taken to have exactly the tokens that it is asked for. ValueError where a budget needs a measurement.
    """
    if recipe.gpu:
        hardware = assumed_hardware(recipe)
    else:
        dtype = "bfloat16" if recipe.dtype == "auto" else recipe.dtype
        hardware = Hardware(device="cuda" if recipe.device == "auto" else recipe.device, dtype=dtype)
    return make_plan(recipe, hardware, vocab_size=default_vocab_size(recipe, hardware.device), law=law)


def stage_seconds(recipe: Recipe, hardware: Hardware, shape: ModelConfig, data: Data) -> dict[str, float]:
    """Seconds that each stage has for its steps: its share of the time left, after evaluations, checkpoints, compilation and a
    reserve.

    Midtraining and SFT take their share, but read no part too often (`mixture.token_limit`); what they leave is pretraining's.
    """
    timing, parameters = hardware.timings[shape.depth], sum(parameters_by_group(shape).values())
    validations, validation_tokens = cost.validation(recipe, budgeted_tokens(recipe, timing, hardware.seconds_left))
    fixed = 0.0
    for name, stage in vars(recipe.stages).items():
        if stage.wanted:
            times = validations if mixture.is_validated(recipe, name) else 0
            fixed += cost.evaluation_seconds(recipe, timing, name, hardware.world_size, times * validation_tokens)
            fixed += timing.startup_seconds + cost.saving_seconds(parameters, times or 1)
    if data.pairs:
        dpo = recipe.stages.dpo
        fixed += dpo.steps_for(data.pairs) * cost.dpo_step_seconds(dpo, timing, data.pair_tokens)
    left = hardware.seconds_left * (1 - cost.RESERVE)
    # Where little is left, half of the budget is still for learning, and the budget will be exceeded.
    left = max(left - fixed, left / 2) / (1 + cost.saving_share(recipe, parameters, gpu=hardware.on_gpu))
    whole = 1.0 if recipe.first_stage == "pretrain" else sum(stage.share for stage in vars(recipe.stages).values()) or 1.0
    seconds = {name: left * stage.share / whole for name, stage in vars(recipe.stages).items()}
    for name in ("midtrain", "sft"):
        limit = mixture.token_limit(recipe, name, data.sizes(name))
        if limit and not getattr(recipe.stages, name).steps:
            most = min(seconds[name], limit / timing.tokens_per_second)
            seconds["pretrain"] += (seconds[name] - most) * bool(recipe.stages.pretrain.share)
            seconds[name] = most
    return seconds


def budgeted_tokens(recipe: Recipe, timing: Timing, seconds: float) -> float:
    """Tokens that pretraining reads in its share of so many seconds. The size of a validation follows from them."""
    return timing.tokens_per_second * seconds * recipe.stages.pretrain.share


def affordable(recipe: Recipe, hardware: Hardware, depth: int, vocab_size: int, data: Data) -> bool:
    """Whether a depth of known speed fits the memory and sees tokens_per_parameter tokens in pretraining's share."""
    shape, timing = make_shape(recipe, depth, vocab_size), hardware.timings[depth]
    tokens = timing.tokens_per_second * stage_seconds(recipe, hardware, shape, data)["pretrain"]
    enough = tokens >= recipe.tokens_per_parameter * matrix_parameters(shape)
    return enough and fitting_rows(shape, hardware, recipe.shard) > 0


def choose_depth(recipe: Recipe, hardware: Hardware, vocab_size: int, data: Data) -> int:
    """The largest affordable depth; the smallest of known speed where none is."""
    return max((d for d in hardware.timings if affordable(recipe, hardware, d, vocab_size, data)), default=min(hardware.timings))


def make_plan(
    recipe: Recipe, hardware: Hardware, *, vocab_size: int, bos_id: int = 0, law: Law | None = None, data: Data | None = None
) -> Plan:
    """Decide shape, batch, rates and horizon of every stage. Pure; ValueError for what cannot be."""
    budget, data = recipe.budget_seconds(), data or Data(text=text_fingerprint(recipe))
    if not named_depth(recipe) and not (budget and hardware.timings):
        raise ValueError("neither depth nor budget is given. Use --depth 4, or --budget 8min to fit the model to this machine.")
    depth = named_depth(recipe) or choose_depth(recipe, hardware, vocab_size, data)
    shape = make_shape(recipe, depth, vocab_size, bos_id)
    parameters = parameters_by_group(shape)
    timing = hardware.timings.get(depth)
    seconds = stage_seconds(recipe, hardware, shape, data) if budget and timing else {}

    # The horizon of the first stage decides the batch, which all stages share.
    first = recipe.first_stage
    tokens = recipe.tokens_per_parameter * matrix_parameters(shape)
    if timing and seconds.get(first):
        tokens = timing.tokens_per_second * seconds[first]
    tokens = min(tokens, mixture.token_limit(recipe, first, data.sizes(first)) or tokens)
    unit = shape.context * hardware.world_size
    tokens_per_step = recipe.tokens_per_step or max(unit, batch_tokens(tokens) // unit * unit)
    micro_batch_size, grad_accum_steps = _micro_batch(recipe, tokens_per_step, shape, hardware, asked=recipe.micro_batch_size)

    first_steps = getattr(recipe.stages, first).steps or max(1, int(tokens // tokens_per_step))
    trained_tokens = first_steps * tokens_per_step
    validated = cost.validation(recipe, trained_tokens)
    if timing and seconds and first == "pretrain" and not recipe.stages.pretrain.steps:
        validated = cost.validation(recipe, budgeted_tokens(recipe, timing, hardware.seconds_left))
    stages: dict[str, StagePlan] = {}
    for name in vars(recipe.stages):
        step_seconds = cost.step_seconds(recipe, name, timing, tokens_per_step, data.pair_tokens) if timing else None
        paid_steps = seconds[name] / step_seconds if seconds and step_seconds else None
        steps = stage_steps(recipe, name, first_steps, tokens_per_step, paid_steps, data)
        stages[name] = _stage(recipe, name, steps, tokens_per_step, step_seconds, validated, hardware, shape, data)
    decay = scaled_weight_decay(recipe.optimizer.weight_decay, tokens_per_step, trained_tokens)
    plan = Plan(
        model=shape,
        micro_batch_size=micro_batch_size,
        grad_accum_steps=grad_accum_steps,
        stages=stages,
        optimizer=replace(recipe.optimizer, weight_decay=decay),
        schedule=recipe.schedule,
        parameters=parameters,
        flops_per_token=flops_per_token(shape, shape.context),
        validations=validated[0],
        validation_tokens=validated[1],
        save_every_seconds=cost.save_interval(recipe, sum(parameters.values()), gpu=hardware.on_gpu),
        hardware=hardware,
        recipe=recipe,
    )
    return replace(plan, forecast=forecast(plan, law, data.text))


def stage_steps(recipe: Recipe, name: str, first_steps: int, tokens_per_step: int, paid_steps: float | None, data: Data) -> int:
    """Steps of a stage: those that the recipe names, else those that the budget pays for (`paid_steps`; None without a budget),
    else as many as its share is of the first stage's."""
    config, first = getattr(recipe.stages, name), recipe.first_stage
    if config.steps:
        return config.steps
    if name == "dpo":
        return config.steps_for(data.pairs)
    if not config.share and name != first:
        return 0
    if name == "rl":
        return RL_STEPS if paid_steps is None else max(2, int(paid_steps))
    if name == first:
        return first_steps
    if paid_steps is not None:
        return math.ceil(paid_steps)
    first_share = getattr(recipe.stages, first).share
    steps = max(1, int(first_steps * (config.share / first_share if first_share else 1.0)))
    limit = mixture.token_limit(recipe, name, data.sizes(name))
    return min(steps, math.ceil(limit / tokens_per_step)) if limit else steps


def _stage(
    recipe: Recipe, name: str, steps: int, tokens_per_step: int, step_seconds: float | None, validated: tuple[int, int],
    hardware: Hardware, shape: ModelConfig, data: Data,
) -> StagePlan:  # fmt: skip
    """The plan of a stage: its steps, the time they are expected to take, and how often it reads its data."""
    timing, parameters = hardware.timings.get(shape.depth), sum(parameters_by_group(shape).values())
    seconds, scoring = None, 0.0
    if timing and step_seconds is not None and steps:
        times, validation_tokens = validated if mixture.is_validated(recipe, name) else (1, 0)
        seconds = steps * step_seconds * (1 + cost.saving_share(recipe, parameters, gpu=hardware.on_gpu))
        seconds += timing.startup_seconds + cost.saving_seconds(parameters, times)
        scoring = cost.evaluation_seconds(recipe, timing, name, hardware.world_size, times * validation_tokens)
    tokens = steps * tokens_per_step
    parts = mixture.plan_parts(recipe, name, data.sizes(name), tokens) if name not in ON_ANSWERS else ()
    return StagePlan(
        steps=steps,
        tokens_per_step=tokens_per_step,
        lr_fraction=getattr(recipe.stages, name).lr_fraction,
        seconds=seconds,
        evaluation_seconds=scoring,
        epochs=max((part.epochs for part in parts), default=None),
        parts=parts,
    )


def for_hardware(plan: Plan, hardware: Hardware, recipe: Recipe | None = None) -> Plan:
    """A saved plan on the machine at hand. Pure.

    Batches keep their size, so the loss curve stays. What follows from the machine (micro-batch size, dtype, threads, seconds
    between checkpoints) is decided again where the machine is another one, or where the `recipe` of this start asks for it.
    ValueError where the ranks do not divide the batch, where not even one row fits, or not the micro_batch_size asked for.
    """
    recipe, saved = recipe or plan.recipe, plan
    here = replace(hardware, timings=saved.hardware.timings, seconds_left=saved.hardware.seconds_left)
    interval = cost.save_interval(recipe, sum(saved.parameters.values()), gpu=here.on_gpu)
    plan = replace(saved, hardware=here, save_every_seconds=interval, recipe=recipe)
    asked = recipe.micro_batch_size
    if asked not in (0, saved.recipe.micro_batch_size):
        size, steps = _micro_batch(recipe, plan.stages["pretrain"].tokens_per_step, plan.model, here, asked=asked)
        return replace(plan, micro_batch_size=size, grad_accum_steps=steps)
    same = same_machine(saved.hardware, here) and recipe.shard == saved.recipe.shard
    return plan if same else with_micro_batches_of(plan, asked)


def same_machine(one: Hardware, other: Hardware) -> bool:
    """Whether micro-batches that fit one fit the other."""
    names = ("device", "dtype", "world_size", "memory_bytes")
    return all(getattr(one, name) == getattr(other, name) for name in names)


def with_micro_batches_of(plan: Plan, most: int) -> Plan:
    """The plan with micro-batches of at most `most` rows (0: as many as fit); the batch stays the same. Pure."""
    step_tokens = plan.stages["pretrain"].tokens_per_step
    size, steps = _micro_batch(plan.recipe, step_tokens, plan.model, plan.hardware, asked=0)
    rows = size * steps  # of a step on each rank
    size = largest_divisor(rows, min(size, most or size))
    return replace(plan, micro_batch_size=size, grad_accum_steps=rows // size)


def refit(plan: Plan, stage: str, *, seconds_left: float, slowdown: float) -> Plan:
    """Fit the steps of `stage` and those after it to what is left of the budget. Pure.

    `slowdown` is how much longer than planned the steps took so far: on a shared machine the first measurement is only a guess.
    A stage keeps between a quarter and twice its steps; one whose steps the recipe names, or whose pairs, keeps them all.
    """
    names = list(plan.stages)
    remaining = names[names.index(stage) :]
    fitted = [name for name in remaining if not getattr(plan.recipe.stages, name).steps and name != "dpo"]
    planned = sum(plan.stages[name].seconds or 0.0 for name in fitted)
    fixed = sum(plan.stages[name].seconds or 0.0 for name in remaining if name not in fitted)
    fixed += sum(plan.stages[name].evaluation_seconds for name in remaining)
    stages = dict(plan.stages)
    if planned > 0:
        factor = min(2.0, max(0.25, (seconds_left * (1 - cost.RESERVE) / slowdown - fixed) / planned))
        for name in fitted:
            old = stages[name]
            steps = max(1, round(old.steps * factor)) if old.steps else 0
            ratio = steps / max(1, old.steps)
            parts = tuple(replace(part, epochs=part.epochs * ratio) for part in old.parts)
            epochs = None if old.epochs is None else old.epochs * ratio
            stages[name] = replace(old, steps=steps, seconds=(old.seconds or 0.0) * factor, epochs=epochs, parts=parts)
    plan = replace(plan, stages=stages, refitted=(*plan.refitted, stage))
    total, usd = time_and_cost(plan)
    return replace(plan, forecast=replace(plan.forecast, seconds=total, usd=usd))
