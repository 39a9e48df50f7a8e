"""The plan: all numbers that a run follows, saved as plan.json before any compute is spent. Made by plan.py."""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass, field
from pathlib import Path

from nutshell.config import differences, from_dict
from nutshell.files import fingerprint, read_record
from nutshell.model.config import ModelConfig
from nutshell.plan.hardware import Hardware
from nutshell.plan.recipe import FREE_IN_A_RUN, PRIMER, SOURCES, OptimizerConfig, Recipe
from nutshell.plan.schedule import Schedule

FORMAT = 3
"""Version of plan.json. In 1, learning rates already held the boost of small batches, which the groups apply now; up to 2, what
depends on machine and data was fixed at the first start."""


@dataclass(frozen=True, kw_only=True)
class PartPlan:
    """One part of what a stage learns from (plan/mixture.py)."""

    name: str
    share: float  # of the stage's tokens
    rows: int  # of one reading; 0 where they were not counted
    tokens: float  # of one reading
    epochs: float  # how often the stage reads it


@dataclass(frozen=True, kw_only=True)
class StagePlan:
    steps: int
    tokens_per_step: int
    lr_fraction: float  # peak learning rates as a share of pretraining's
    seconds: float | None = None  # expected of its steps and checkpoints; None where nothing was measured
    evaluation_seconds: float = 0.0  # expected of what is scored during the stage and after it
    epochs: float | None = None  # how often it reads the part that it reads most; None where sizes are not known
    parts: tuple[PartPlan, ...] = ()  # empty where sizes are not known


NO_STAGE = StagePlan(steps=0, tokens_per_step=0, lr_fraction=0.0)


@dataclass(frozen=True, kw_only=True)
class Forecast:
    """Numbers to look at before a run; nothing that runs depends on them."""

    tokens: int = 0  # of pretraining
    flops: float = 0.0  # of pretraining
    learning_rates: dict[str, float] = field(default_factory=dict)
    """Peaks of pretraining by group; a matrix with more rows than columns has `matrices` times the root of their ratio."""
    memory: dict[str, int] = field(default_factory=dict)  # bytes of each part of one rank's step
    cards: dict[str, int] = field(default_factory=dict)
    """Rows of a micro-batch that fit GPUs of these sizes, in bf16; 0 where not even one does."""
    seconds: float | None = None  # of the whole run; None where nothing was measured or assumed
    usd: float | None = None  # None where the price or the time is unknown
    bpb: float | None = None  # expected bits per byte after pretraining
    bpb_note: str = ""  # which text and fit that is of


@dataclass(frozen=True, kw_only=True)
class Plan:
    model: ModelConfig
    micro_batch_size: int  # rows of one forward and backward pass of a rank
    grad_accum_steps: int  # micro-batches per rank and optimizer step
    stages: dict[str, StagePlan]
    optimizer: OptimizerConfig
    schedule: Schedule
    parameters: dict[str, int]
    flops_per_token: float
    validations: int  # during pretraining, the last one at its end
    validation_tokens: int  # scored in each
    save_every_seconds: float
    hardware: Hardware  # the machine that the run was planned for, or now runs on
    recipe: Recipe
    forecast: Forecast = field(default_factory=Forecast)
    refitted: tuple[str, ...] = ()
    """Stages whose steps were fitted again to what was left of the budget when they began; they never change after that."""
    format: int = FORMAT

    def to_dict(self) -> dict:
        return asdict(self)


def load_plan(folder: Path) -> Plan | None:
    """The plan of a run, if it has one. ValueError where the file is damaged or of another format."""
    path = folder / "plan.json"
    if not path.exists():
        return None
    try:
        values = json.loads(path.read_text(encoding="utf-8"))
        if isinstance(values, dict) and values and values.get("format", 1) != FORMAT:
            raise ValueError(
                f"{path} was written by another version (format {values.get('format', 1)}, this one trains by {FORMAT}): its "
                f"numbers mean something else now. The models in {folder} can be used as before (nutshell chat, serve, eval, "
                "report); to train, give another --out, or use the version that planned the run."
            )
        if isinstance(values, dict) and isinstance(stages := values.get("stages"), dict):  # of a version without parts or DPO
            for stage in stages.values():
                if isinstance(stage, dict):
                    stage.pop("conversations", None)
            values["stages"] = {**stages, "dpo": stages.get("dpo") or asdict(NO_STAGE)}
        return from_dict(Plan, values, str(path))
    except (json.JSONDecodeError, TypeError) as error:
        raise ValueError(f"{path} is damaged ({error}). Delete the run folder {folder} to start anew.") from None


def has_trained(folder: Path) -> bool:
    """Whether a run has saved a checkpoint of any stage."""
    return any(folder.glob("*/step-*/manifest.json"))


def standing_plan(recipe: Recipe) -> Plan | None:
    """The saved plan that a command with this recipe goes on with.

    None where there is none, or where nothing was trained with it and the recipe asks for something else: a first attempt that
    failed must not block the corrected one. ValueError where the run was trained with other settings.
    """
    folder = Path(recipe.out)
    plan = load_plan(folder)
    for name, planned, asked in differences(plan.recipe, recipe) if plan else ():
        if name in FREE_IN_A_RUN or (name in SOURCES and is_same_source(folder, name, planned, asked)):
            continue
        if not has_trained(folder):
            return None
        raise ValueError(
            f"{folder} was planned with {name} = {planned!r}, now it is {asked!r}. "
            "Leave that flag out to go on with the run, or give another --out for a new one "
            f"(--init-from {folder} begins it with the weights of this one)."
        )
    return plan


def source_prints(folder: Path) -> dict[str, str]:
    """Fingerprints of what the run's plan was made from, by setting."""
    return read_record(folder / "sources.json", "Delete it: sources are then known by their paths alone.")


def is_same_source(folder: Path, name: str, planned: str, asked: str) -> bool:
    """Whether `asked` is the planned source by another name: another spelling of its path, or its content at another place."""
    if PRIMER in (planned, asked) or not (planned and asked):
        return False
    return Path(planned).absolute() == Path(asked).absolute() or fingerprint(asked) == source_prints(folder).get(name)
