"""What a plan leads one to expect: memory, time, cost, rates and bits per byte. Pure, and saved with the plan."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from nutshell.model.flops import matrix_parameters
from nutshell.plan.groups import learning_rates
from nutshell.plan.hardware import GIB
from nutshell.plan.law import Law, expectation
from nutshell.plan.memory import fitting_cards, fitting_rows, memory_by_part

if TYPE_CHECKING:
    from nutshell.model.config import ModelConfig
    from nutshell.plan.hardware import Hardware
    from nutshell.plan.plan import Plan


@dataclass(frozen=True, kw_only=True)
class Forecast:
    """Numbers to look at before a run; nothing that runs depends on them."""

    tokens: int = 0
    """Of pretraining."""
    flops: float = 0.0
    """Of pretraining."""
    learning_rates: dict[str, float] = field(default_factory=dict)
    """Peaks of pretraining by group; a matrix with more rows than columns has `matrices` times the root of their ratio."""
    memory: dict[str, int] = field(default_factory=dict)
    """Bytes of each part of one rank's step."""
    cards: dict[str, int] = field(default_factory=dict)
    """Rows at once that fit GPUs of these sizes, in bf16; 0 where none does."""
    seconds: float | None = None
    """Of the whole run; None where nothing was measured or assumed."""
    usd: float | None = None
    """None where the price or the time is unknown."""
    bpb: float | None = None
    """Expected bits per byte after pretraining."""
    bpb_note: str = ""
    """Which text and fit that is of."""


def forecast(plan: Plan, law: Law | None) -> Forecast:
    """All of it, from a plan whose other fields are decided."""
    recipe, hardware = plan.recipe, plan.hardware
    pretraining = plan.stages["pretrain"]
    tokens = pretraining.steps * pretraining.tokens_per_step
    flops = plan.flops_per_token * tokens
    bpb, note = expectation(
        law, parameters=matrix_parameters(plan.model), tokens=tokens, flops=flops, text=text_name(recipe.data),
        vocab_size=plan.model.vocab_size,
    )  # fmt: skip
    total, usd = time_and_cost(plan)
    return Forecast(
        tokens=tokens, flops=flops,
        learning_rates=learning_rates(plan.optimizer, plan.model, pretraining.tokens_per_step),
        memory=memory_of(plan.model, plan.rows, hardware, recipe.shard),
        cards=fitting_cards(plan.model, dtype="bfloat16", ranks=hardware.world_size, shard=recipe.shard),
        seconds=total, usd=usd, bpb=bpb, bpb_note=note,
    )  # fmt: skip


def time_and_cost(plan: Plan) -> tuple[float | None, float | None]:
    """Seconds of all stages with their evaluations, and dollars at the recipe's price; None where unknown."""
    stages = [stage for stage in plan.stages.values() if stage.steps]
    if any(stage.seconds is None for stage in stages):
        return None, None
    total = sum((stage.seconds or 0.0) + stage.evaluation_seconds for stage in stages)
    price = plan.recipe.price()
    return total, total / 3600 * price if price else None


def text_name(data: str) -> str:
    """What a text is called in a fit and a plan: the last part of its path."""
    return data.replace("\\", "/").rstrip("/").rsplit("/", 1)[-1]


def memory_of(model: ModelConfig, rows: int, hardware: Hardware, shard: str) -> dict[str, int]:
    """Bytes of each part of a step of one of the machine's ranks."""
    return memory_by_part(model, rows, dtype=hardware.dtype, gpu=hardware.on_gpu, ranks=hardware.world_size, shard=shard)


def most_rows_that_fit(model: ModelConfig, hardware: Hardware, shard: str) -> int:
    """0 where not even one does."""
    memory, ranks = hardware.memory_bytes, hardware.world_size
    return fitting_rows(model, memory, dtype=hardware.dtype, gpu=hardware.on_gpu, ranks=ranks, shard=shard)


def most_rows(model: ModelConfig, hardware: Hardware, asked: int = 0, shard: str = "state") -> int:
    """Rows that fit the machine (a large number where its memory is unknown). ValueError where not even one does, or not
    those `asked` for, with the sizes."""

    def gigabytes(rows: int) -> str:
        parts = memory_of(model, rows, hardware, shard)
        return f"{sum(parts.values()) / GIB:.1f} GB (" + ", ".join(f"{k} {v / GIB:.1f}" for k, v in parts.items()) + ")"

    if not hardware.memory_bytes:
        return 1 << 20
    most = most_rows_that_fit(model, hardware, shard)
    where = f"{hardware.gpu or hardware.device} has {hardware.memory_bytes / GIB:.0f} GB" + " a rank" * (hardware.world_size > 1)
    if not most:
        divided = most_rows_that_fit(model, hardware, "weights")
        raise ValueError(
            f"depth {model.depth}, width {model.width} does not fit: one row of {model.context} tokens takes {gigabytes(1)}, "
            f"and {where}. Use {'--shard weights, ' if divided else ''}a smaller --depth or --context, or a larger machine."
        )
    if asked > most:
        raise ValueError(f"rows is {asked}, which takes {gigabytes(asked)}, and {where}: {most} rows fit. Leave out --rows.")
    return most
