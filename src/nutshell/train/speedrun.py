"""All stages in order in one run folder; what is finished is passed over, so the same command always goes on."""

from __future__ import annotations

import json
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist

from nutshell import checkpoint
from nutshell.config import from_dict
from nutshell.data import primer
from nutshell.data.shards import is_shard_folder, open_shards, prepare_shards, read_manifest, write_shards
from nutshell.metrics import GpuSampler, MetricsLog, read_metrics, seconds_by_stage
from nutshell.runtime import Runtime
from nutshell.tokenizer import Tokenizer
from nutshell.train.check import check_order, check_recipe, open_tokenizer
from nutshell.train.describe import describe
from nutshell.train.law import load_law
from nutshell.train.lock import run_lock, stop_signals
from nutshell.train.measure import measure
from nutshell.train.plan import Hardware, Plan, default_vocab_size, for_ranks, make_plan, refit
from nutshell.train.pretrain import pretrain
from nutshell.train.recipe import PRIMER, Recipe
from nutshell.train.rl import reinforce
from nutshell.train.run import Run
from nutshell.train.tune import tune

LOCK_PATIENCE_SECONDS = 120.0  # under torchrun; a file server gives a lost machine's lock back after its lease, often 90 s
TOKENIZER_CHARACTERS = 8_000_000  # of the training text; more no longer changes the merges that matter at these sizes
STAGES = {
    "pretrain": pretrain,
    "midtrain": lambda run: tune(run, "midtrain"),
    "sft": lambda run: tune(run, "sft"),
    "rl": reinforce,
}


FREE_IN_A_RUN = (
    "out", "shard", "save_every_seconds", "keep_checkpoints", "damaged_checkpoint", "damaged_shards", "usd_per_hour", "budget",
)  # fmt: skip
"""Settings that may differ from the plan of a run that goes on."""


def prepare_data(recipe: Recipe, runtime: Runtime) -> Path:
    """The folder of the run's shards, written once from the primer or the user's text; a user's shards are used in place."""
    folder = Path(recipe.out) / "data"
    if recipe.data != PRIMER and is_shard_folder(recipe.data):
        return Path(recipe.data)
    if runtime.is_main:
        if recipe.data != PRIMER:
            prepare_shards(recipe.data, folder, seed=recipe.seed)
        else:
            source = {"primer": recipe.primer_characters, "seed": recipe.seed}
            if not is_shard_folder(folder):
                documents = primer.documents(recipe.seed, recipe.primer_characters)
                write_shards(documents, folder, val_fraction=0.01, seed=recipe.seed, source=source)
            elif (found := read_manifest(folder).get("source")) != source:
                raise ValueError(f"{folder} holds {found}, not {source}. Delete it, or give another --out.")
    runtime.barrier()
    return folder


def prepare_tokenizer(recipe: Recipe, runtime: Runtime, data: Path) -> Tokenizer:
    """Train the run's tokenizer once, on the training shards and the primer's conversations; or take the recipe's."""
    folder = Path(recipe.out) / "tokenizer"
    given = open_tokenizer(recipe) if recipe.tokenizer else None
    if runtime.is_main and not (folder / "tokenizer.json").exists():
        size = default_vocab_size(recipe, runtime.device.type)
        pattern = "qwen2" if recipe.architecture == "portable" else "nanochat"  # so that a GGUF file can say pre=qwen2
        (given or Tokenizer.train(_training_text(data, recipe), size, pattern)).save(folder)
    runtime.barrier()
    tok = Tokenizer.load(folder)
    if given and tok.fingerprint != given.fingerprint:
        raise ValueError(f"{folder} is not the tokenizer {recipe.tokenizer}. Leave out --tokenizer, or give another --out.")
    return tok


def _training_text(data: Path, recipe: Recipe) -> Iterator[str]:
    shards = open_shards(data, on_error=recipe.damaged_shards)
    characters = 0
    for block in range(shards.blocks("train")):
        for text in shards.read("train", block):
            yield text
            characters += len(text)
        if characters >= TOKENIZER_CHARACTERS:
            break
    for conversation in primer.conversations(recipe.seed, 4000):
        for message in conversation["messages"]:
            content: Any = message["content"]
            yield from [content] if isinstance(content, str) else (part["text"] for part in content)


def load_plan(folder: Path) -> Plan | None:
    """The plan of a run, if it has one. ValueError where the file is damaged."""
    path = folder / "plan.json"
    if not path.exists():
        return None
    try:
        return from_dict(Plan, json.loads(path.read_text(encoding="utf-8")), str(path))
    except (json.JSONDecodeError, TypeError) as error:
        raise ValueError(f"{path} is damaged ({error}). Delete the run folder {folder} to start anew.") from None


def hardware_of(runtime: Runtime) -> Hardware:
    """What a plan may know of this machine before anything is timed."""
    return Hardware(
        device=runtime.device.type, dtype=runtime.dtype_name, world_size=runtime.world_size, threads=runtime.threads,
        memory_bytes=runtime.memory_bytes,
    )  # fmt: skip


def prepare_plan(recipe: Recipe, runtime: Runtime, tok: Tokenizer, started: float) -> Plan:
    """The run's plan: the saved one, or a new one, fitted to what is left of the budget since `started`."""
    folder = Path(recipe.out)
    plan = load_plan(folder)
    runtime.barrier()  # every rank has looked before rank 0 writes one
    if plan:
        plan = replace(plan, recipe=replace(plan.recipe, **{name: getattr(recipe, name) for name in FREE_IN_A_RUN}))
        return for_ranks(plan, runtime.world_size)
    budget = recipe.budget_seconds()
    hardware = hardware_of(runtime)
    if budget:
        left = budget - (time.monotonic() - started)
        hardware = measure(recipe, runtime, hardware, tok.vocab_size, left)
        hardware = replace(hardware, seconds_left=max(1.0, budget - (time.monotonic() - started)))
    plan = make_plan(recipe, hardware, vocab_size=tok.vocab_size, bos_id=tok.bos_id, law=load_law(recipe.scaling))
    if runtime.is_main:
        checkpoint.write_json(folder / "plan.json", plan.to_dict())
    runtime.barrier()
    # Read back what was saved: a plan and its copy on disk, on every rank, are the same to the last digit.
    return load_plan(folder) or plan


@contextmanager
def open_run(recipe: Recipe, runtime: Runtime) -> Iterator[Run]:
    """Data, tokenizer and plan are there (made now if not); the folder is locked; signals save before they stop."""
    started = time.monotonic()
    folder = Path(recipe.out)
    if not (folder / "plan.json").exists():
        check_recipe(recipe, runtime)
    with ExitStack() as stack:
        if runtime.is_main:
            stack.enter_context(run_lock(folder, LOCK_PATIENCE_SECONDS if dist.is_torchelastic_launched() else 0.0))
        log = stack.enter_context(MetricsLog(folder, rank=runtime.rank, gpu=gpu_sampler(runtime)))
        with timed(log, "data"):
            data = prepare_data(recipe, runtime)
        with timed(log, "tokenizer"):
            tok = prepare_tokenizer(recipe, runtime, data)
        with timed(log, "plan"):
            plan = prepare_plan(recipe, runtime, tok, started)
        run = Run(folder=folder, data=data, plan=plan, runtime=runtime, tok=tok, log=log)
        stack.enter_context(stop_signals(run.stop))
        stack.enter_context(run.writer)
        yield run


def fit_to_budget(run: Run, stage: str) -> Plan:
    """The plan as it stands when a stage begins: what is left of the budget decides its steps, once, and is saved.

    Time is what the log has counted, so an interruption does not shorten a run, and a saved decision is never taken again.
    """
    plan = run.plan
    if not plan.recipe.budget_seconds() or stage in plan.refitted or getattr(plan.recipe.stages, stage).steps:
        return plan
    lines = read_metrics(run.folder)
    left = plan.recipe.budget_seconds() - sum(seconds_by_stage(lines).values())
    done = [line for line in lines if "loss" in line]
    planned = sum(plan.stages[name].seconds or 0.0 for name in {line["stage"] for line in done})
    took = seconds_by_stage(done)
    slowdown = sum(took.values()) / planned if planned else 1.0
    left, slowdown = run.runtime.agree(left), run.runtime.agree(slowdown)
    plan = refit(plan, stage, seconds_left=left, slowdown=slowdown)
    if run.runtime.is_main:
        checkpoint.write_json(run.folder / "plan.json", plan.to_dict())
    run.runtime.barrier()
    return plan


def gpu_sampler(runtime: Runtime) -> GpuSampler | None:
    """Readings of the GPU that this rank computes on."""
    if runtime.device.type != "cuda":
        return None
    return GpuSampler(uuid=str(torch.cuda.get_device_properties(runtime.device).uuid))


@contextmanager
def timed(log: MetricsLog, stage: str) -> Iterator[None]:
    """Note the seconds of a stage that has no steps, the first time it runs."""
    start = time.monotonic()
    yield
    log.stage_seconds(stage, time.monotonic() - start)


def run_stages(recipe: Recipe, runtime: Runtime, names: tuple[str, ...] = tuple(STAGES)) -> Run:
    """Run the named stages (default: all of them) and return the run."""
    check_order(Path(recipe.out), names[0])
    with open_run(recipe, runtime) as run:
        run.log.note(describe(run.plan))
        for name in names:
            if name != "pretrain":
                run.plan = fit_to_budget(run, name)
            if run.plan.stages[name].steps:
                STAGES[name](run)
        return run
