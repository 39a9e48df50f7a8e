"""A plan in a few lines, for the console."""

from __future__ import annotations

from nutshell.plan.hardware import GIB
from nutshell.plan.plan import Plan


def describe(plan: Plan) -> str:
    """Everything decided and expected."""
    shape, hardware, expected = plan.model, plan.hardware, plan.forecast
    windows = "/".join(str(w) for w in sorted(set(shape.windows())))
    lines = [
        f"model     {shape.architecture}, depth {shape.depth}, width {shape.width}, "
        f"heads {shape.heads} ({shape.kv_heads} kv) x {shape.head_dim}, "
        f"context {shape.context}, windows {windows}, vocabulary {shape.vocab_size}",
        f"          {sum(plan.parameters.values()):,} parameters: "
        + ", ".join(f"{name} {count:,}" for name, count in plan.parameters.items()),
        f"compute   {hardware.gpu or hardware.device}, {hardware.dtype}, {hardware.world_size} rank(s), "
        f"{plan.flops_per_token:.3g} FLOPs a token, {expected.flops:.3g} in pretraining",
        f"batch     {plan.rows} rows x {shape.context} tokens x {plan.accumulation} micro-batches a rank",
        "rates     " + ", ".join(f"{name} {rate:.3g}" for name, rate in expected.learning_rates.items())
        + f"; weight decay {plan.optimizer.weight_decay:.3g}",
    ]  # fmt: skip
    for name, stage in plan.stages.items():
        if not stage.steps:
            continue
        time = (
            "" if stage.seconds is None else f", about {duration(stage.seconds)} + {duration(stage.evaluation_seconds)} scoring"
        )
        tokens = (
            "" if name == "rl" else f" of {stage.tokens_per_step:,} tokens ({stage.steps * stage.tokens_per_step / 1e6:,.2f}M)"
        )
        lines.append(f"{name:9} {stage.steps} steps{tokens}, rates x {stage.lr_scale:g}{time}")
    if expected.memory:
        parts = ", ".join(f"{name} {size(value)}" for name, value in expected.memory.items() if value)
        kind = " (estimated)" if hardware.on_gpu else ""
        lines.append(f"memory    {size(sum(expected.memory.values()))} a rank{kind}: {parts}")
        cards = ", ".join(f"{card} {rows or 'none'}" for card, rows in expected.cards.items())
        lines.append(f"          rows at once that fit a GPU of {cards} (estimated, bf16)")
    if expected.seconds is not None:
        cost = "" if expected.usd is None else f", ${expected.usd:,.2f} at ${plan.recipe.price():g} an hour"
        assumed = f" at an assumed MFU of {hardware.mfu:.0%}" if hardware.mfu else ""
        lines.append(f"time      {duration(expected.seconds)}{assumed}{cost}")
    if expected.bpb is not None or expected.bpb_note:
        value = "not known" if expected.bpb is None else f"{expected.bpb:.3f}"
        lines.append(f"bpb       {value} after pretraining ({expected.bpb_note})")
    return "\n".join(lines)


def size(value: float) -> str:
    return f"{value / GIB:.1f} GB" if value >= GIB / 10 else f"{value / 2**20:.1f} MB"


def duration(seconds: float) -> str:
    """'45 s', '12 min' or '3.9 h'."""
    if seconds < 600:
        return f"{seconds:.0f} s"
    return f"{seconds / 60:.0f} min" if seconds < 7200 else f"{seconds / 3600:.1f} h"
