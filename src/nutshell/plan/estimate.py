"""What is expected of a plan (memory, time, cost, rates, bits per byte), and the plan's print-out. Pure."""

from __future__ import annotations

from nutshell.model.flops import matrix_parameters
from nutshell.plan.cost import saving_share
from nutshell.plan.groups import learning_rates
from nutshell.plan.hardware import GIB
from nutshell.plan.law import Law, expectation
from nutshell.plan.memory import MOST_ROWS, fitting_cards, memory_by_part
from nutshell.plan.recipe import ON_ANSWERS
from nutshell.plan.record import Forecast, Plan, StagePlan

MANY_EPOCHS = 3  # data that is read more often teaches less and less (arXiv 2305.16264), conversations are learned by heart
LONGEST_RUN = 90 * 24 * 3600  # seconds; with a longer interval there are no checkpoints by time


def forecast(plan: Plan, law: Law | None, text: str) -> Forecast:
    """The forecast of a plan whose other fields are decided. `text` is the fingerprint of its training text."""
    recipe, hardware = plan.recipe, plan.hardware
    pretraining = plan.stages["pretrain"]
    tokens = pretraining.steps * pretraining.tokens_per_step
    flops = plan.flops_per_token * tokens
    bpb, note = None, ""
    if tokens:
        parameters, vocab_size = matrix_parameters(plan.model), plan.model.vocab_size
        bpb, note = expectation(law, parameters=parameters, tokens=tokens, flops=flops, text=text, vocab_size=vocab_size)
    seconds, usd = time_and_cost(plan)
    return Forecast(
        tokens=tokens,
        flops=flops,
        learning_rates=learning_rates(plan.optimizer, plan.model, pretraining.tokens_per_step),
        memory=memory_by_part(plan.model, plan.micro_batch_size, hardware, recipe.shard),
        cards=fitting_cards(plan.model, hardware.world_size, recipe.shard),
        seconds=seconds,
        usd=usd,
        bpb=bpb,
        bpb_note=note,
    )


def time_and_cost(plan: Plan) -> tuple[float | None, float | None]:
    """Seconds of all stages with their evaluations, and dollars at the recipe's price; None where unknown."""
    stages = [stage for stage in plan.stages.values() if stage.steps]
    if any(stage.seconds is None for stage in stages):
        return None, None
    total = sum((stage.seconds or 0.0) + stage.evaluation_seconds for stage in stages)
    price = plan.recipe.price()
    return total, total / 3600 * price if price else None


def describe(plan: Plan) -> str:
    """Everything decided and expected, for the console."""
    shape, hardware, expected = plan.model, plan.hardware, plan.forecast
    lines = [
        f"model     {shape.architecture}, depth {shape.depth}, width {shape.width}, heads {shape.heads} ({shape.kv_heads} kv) x "
        f"{shape.head_dim}, context {shape.context}, windows {'/'.join(str(w) for w in sorted(set(shape.windows())))}, "
        f"vocabulary {shape.vocab_size}",
        f"          {sum(plan.parameters.values()):,} parameters: "
        + ", ".join(f"{name} {count:,}" for name, count in plan.parameters.items()),
        f"compute   {hardware.gpu or hardware.device}, {hardware.dtype}, {hardware.world_size} rank(s), "
        f"{plan.flops_per_token:.3g} FLOPs a token, {expected.flops:.3g} in pretraining",
        f"batch     {plan.micro_batch_size} rows x {shape.context} tokens x {plan.grad_accum_steps} micro-batches a rank",
        "rates     " + ", ".join(f"{name} {rate:.3g}" for name, rate in expected.learning_rates.items())
        + f"; weight decay {plan.optimizer.weight_decay:.3g}; warm-up {_warmup(plan)}",
    ]  # fmt: skip
    for name, stage in plan.stages.items():
        if stage.steps:
            lines.append(f"{name:9} {_stage(name, stage)}")
        if stage.steps and name not in ON_ANSWERS:
            lines += [f"          {line}" for line in _parts(name, stage)]
    lines.append(f"checks    {plan.validations} validations of {plan.validation_tokens:,} tokens; {_checkpoints(plan)}")
    if expected.memory:
        parts = ", ".join(f"{name} {size(value)}" for name, value in expected.memory.items() if value)
        kind = " (estimated)" if hardware.on_gpu else ""
        lines.append(f"memory    {size(sum(expected.memory.values()))} a rank{kind}: {parts}")
    if min(expected.cards.values(), default=MOST_ROWS) < MOST_ROWS:
        cards = ", ".join(f"{card} {rows or 'none'}" for card, rows in expected.cards.items())
        lines.append(f"          rows at once that fit a GPU of {cards} (estimated, bf16)")
    if expected.seconds is not None:
        price = "" if expected.usd is None else f", ${expected.usd:,.2f} at ${plan.recipe.price():g} an hour"
        assumed = f" at an assumed MFU of {hardware.mfu:.0%}" if hardware.mfu else ""
        lines.append(f"time      {duration(expected.seconds)}{assumed}{price}")
    if expected.bpb is not None or expected.bpb_note:
        value = "not known" if expected.bpb is None else f"{expected.bpb:.3f} after pretraining"
        lines.append(f"bpb       {value}: {expected.bpb_note}")
    return "\n".join(lines)


def _warmup(plan: Plan) -> str:
    asked, steps = plan.schedule.warmup_steps, plan.schedule.warmup(plan.stages[plan.recipe.first_stage].steps)
    return f"{steps} steps" + f" (not {asked}: a short run)" * (steps < asked)


def _stage(name: str, stage: StagePlan) -> str:
    text = f"{stage.steps} steps"
    if name not in ON_ANSWERS:
        text += f" of {stage.tokens_per_step:,} tokens ({stage.steps * stage.tokens_per_step / 1e6:,.2f}M)"
    text += f", rates x {stage.lr_fraction:g}"
    if stage.epochs is not None:
        text += f", {_times(stage.epochs)} epochs"
    if stage.seconds is not None:
        text += f", about {duration(stage.seconds)} + {duration(stage.evaluation_seconds)} scoring"
    return text


def _parts(name: str, stage: StagePlan) -> list[str]:
    """The parts that a stage reads, where there are several, and a warning for each that it reads too often."""
    lines = []
    if len(stage.parts) > 1:
        for part in stage.parts:
            rows = f"{part.rows:,} rows, " if part.rows else ""
            lines.append(f"{part.share:4.0%} {part.name}: {rows}{part.tokens / 1e6:,.2f}M tokens, {_times(part.epochs)} epochs")
    elif not stage.parts and stage.epochs is None:
        lines.append("how often it reads its data is not known yet")
    for part in stage.parts:
        if round(part.epochs, 1) > MANY_EPOCHS:
            lines.append(f"warning: {name} reads {part.name} {part.epochs:.0f} times; give it more data, or fewer steps")
    return lines


def _times(epochs: float) -> str:
    return f"{epochs:.1f}" if epochs >= 0.1 else f"{epochs:.1g}"


def _checkpoints(plan: Plan) -> str:
    if plan.save_every_seconds >= (plan.forecast.seconds or LONGEST_RUN):
        return "no checkpoints but at these and the last"
    share = saving_share(plan.recipe, sum(plan.parameters.values()), gpu=plan.hardware.on_gpu)
    return f"a checkpoint every {duration(plan.save_every_seconds)} ({share:.1%} of the time)"


def size(value: float) -> str:
    return f"{value / GIB:.1f} GB" if value >= GIB / 10 else f"{value / 2**20:.1f} MB"


def duration(seconds: float) -> str:
    """'45 s', '12 min' or '3.9 h'."""
    if seconds < 600:
        return f"{seconds:.0f} s"
    return f"{seconds / 60:.0f} min" if seconds < 7200 else f"{seconds / 3600:.1f} h"
