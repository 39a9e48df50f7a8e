"""What a run needs before its first step: checks, data, tokenizer, plan, lock. What can be refused is refused before that."""

from __future__ import annotations

import sys
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.distributed as dist

from nutshell import checkpoint
from nutshell.data import primer
from nutshell.data.shards import MANIFEST, is_shard_folder, open_shards, prepare_shards, read_manifest, write_shards
from nutshell.data.sources import read_conversations, read_documents
from nutshell.files import write_json
from nutshell.metrics import GpuSampler, MetricsLog, check_loggers
from nutshell.plan.hardware import Hardware
from nutshell.plan.law import load_law, text_fingerprint
from nutshell.plan.plan import Data, default_vocab_size, for_hardware, make_plan, same_machine
from nutshell.plan.recipe import FREE_IN_A_RUN, PRIMER, Recipe
from nutshell.plan.record import Plan, load_plan
from nutshell.run.folder import Run
from nutshell.run.lock import run_lock, stop_signals
from nutshell.runtime import Runtime
from nutshell.tasks import load_task
from nutshell.tokenizer import Tokenizer
from nutshell.tokenizer.chat import parse_messages, render
from nutshell.train.calibrate import measure, probe_micro_batch

LOCK_PATIENCE_SECONDS = 120.0  # under torchrun; a file server gives a lost machine's lock back after its lease, often 90 s
TOKENIZER_CHARACTERS = 8_000_000  # of the training text; more no longer changes the merges that matter at these sizes


def check_recipe(recipe: Recipe, runtime: Runtime) -> None:
    """ValueError or FileNotFoundError for sizes that do not fit together and for files that are missing or of another kind."""
    if recipe.budget and not recipe.depth and not recipe.params:
        recipe = replace(recipe, depth=1)  # where measuring begins
    hardware = Hardware(
        device=runtime.device.type, dtype=runtime.dtype_name, world_size=runtime.world_size, memory_bytes=runtime.memory_bytes
    )
    load_law(recipe.scaling)
    check_data(recipe)
    vocab_size = open_tokenizer(recipe).vocab_size if recipe.tokenizer else default_vocab_size(recipe, runtime.device.type)
    make_plan(recipe, hardware, vocab_size=vocab_size)
    if recipe.sft != PRIMER:
        read_conversations(recipe.sft, check=parse_messages)
    for name in dict.fromkeys(name for stage in vars(recipe.stages) for name in recipe.tasks_after(stage)):
        load_task(name, limit=1, data_folder=recipe.eval_data or None)


def check_data(recipe: Recipe) -> None:
    """ValueError where --data does not exist, is of another kind, or begins with something else than text, or where the
    recipe's tokenizer can't be used."""
    if recipe.tokenizer:
        open_tokenizer(recipe)
    if recipe.data != PRIMER and not is_shard_folder(recipe.data):
        next(read_documents(recipe.data))


def open_tokenizer(recipe: Recipe) -> Tokenizer:
    """The tokenizer that the recipe names, with the special tokens of chats."""
    tok = Tokenizer.load(recipe.tokenizer).with_special_tokens()
    if recipe.vocab_size not in (0, tok.vocab_size):
        raise ValueError(
            f"--vocab-size {recipe.vocab_size} does not fit --tokenizer {recipe.tokenizer}, which has {tok.vocab_size} tokens "
            "with those of chats. Leave out one of the two."
        )
    return tok


def check_order(folder: Path, stage: str) -> None:
    """ValueError where no stage before `stage` has saved anything in this run."""
    before = checkpoint.STAGES[: checkpoint.STAGES.index(stage)]
    if before and checkpoint.latest(folder) is None:
        raise ValueError(f"{folder} has no {before[-1]} checkpoint to start {stage} from. Run: nutshell {before[-1]} first.")


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
    # Blocks in random order: whatever order the files had, all of them are in the sample.
    for block in np.random.default_rng(recipe.seed).permutation(shards.blocks("train")).tolist():
        for text in shards.read("train", block):
            yield text
            characters += len(text)
        if characters >= TOKENIZER_CHARACTERS:
            break
    for conversation in primer.conversations(recipe.seed, 4000):
        for message in conversation["messages"]:
            content: Any = message["content"]
            yield from [content] if isinstance(content, str) else (part["text"] for part in content)


def hardware_of(runtime: Runtime) -> Hardware:
    """What a plan may know of this machine before anything is timed."""
    return Hardware(
        device=runtime.device.type, dtype=runtime.dtype_name, world_size=runtime.world_size, threads=runtime.threads,
        memory_bytes=runtime.memory_bytes,
    )  # fmt: skip


def data_facts(recipe: Recipe, folder: Path, tok: Tokenizer) -> Data:
    """What a plan may know of the data: which text, and how many tokens, reckoned from a sample of it."""
    manifest = read_manifest(folder) if (folder / MANIFEST).exists() else {}
    text = next(iter(open_shards(folder, on_error=recipe.damaged_shards).read("train", 0)), "")[:100_000]
    characters = manifest.get("characters", {}).get("train", 0)
    tokens = characters * len(tok.encode(text)) / max(1, len(text))
    conversations = [] if recipe.sft == PRIMER else read_conversations(recipe.sft, check=parse_messages)
    sample = [len(render(c["messages"], tok)[0]) for c in conversations[:200]]
    return Data(
        text=text_fingerprint(recipe, manifest), tokens=tokens, conversations=len(conversations),
        conversation_tokens=len(conversations) * sum(sample) / max(1, len(sample)),
    )  # fmt: skip


def prepare_plan(recipe: Recipe, runtime: Runtime, data: Path, tok: Tokenizer, started: float) -> Plan:
    """The run's plan: the saved one, or a new one, fitted to what is left of the budget since `started`."""
    folder, hardware = Path(recipe.out), hardware_of(runtime)
    plan = load_plan(folder)
    runtime.barrier()  # every rank has looked before rank 0 writes one
    if plan:
        asked = {name: getattr(recipe, name) for name in FREE_IN_A_RUN if name != "dtype"}  # hardware has the one that is used
        here = for_hardware(plan, hardware, replace(plan.recipe, **asked))
        if same_machine(plan.hardware, hardware) and here.micro_batch_size == plan.micro_batch_size:
            return here
        if runtime.is_main:
            rows = f"micro-batches of {plan.micro_batch_size} rows; going on"
            print(f"Planned for {plan.hardware.describe()}, {rows} with {hardware.describe()}, {here.micro_batch_size} rows.",
                  file=sys.stderr)  # fmt: skip
        return save_plan(probed(here, runtime), runtime)
    facts, budget = data_facts(recipe, data, tok), recipe.budget_seconds()
    if budget:
        left = runtime.agree(budget - (time.monotonic() - started))
        hardware = measure(recipe, runtime, hardware, tok.vocab_size, left, facts)
        left = runtime.agree(max(1.0, budget - (time.monotonic() - started)))
        hardware = replace(hardware, seconds_left=left)
    plan = make_plan(recipe, hardware, vocab_size=tok.vocab_size, bos_id=tok.bos_id, law=load_law(recipe.scaling), data=facts)
    return save_plan(probed(plan, runtime), runtime)


def probed(plan: Plan, runtime: Runtime) -> Plan:
    """On a GPU: the plan with micro-batches that a real step was seen to fit with."""
    return probe_micro_batch(plan, runtime) if runtime.device.type == "cuda" else plan


def save_plan(plan: Plan, runtime: Runtime) -> Plan:
    """Write plan.json and read it back: a plan and its copy on disk, on every rank, are the same to the last digit."""
    folder = Path(plan.recipe.out)
    if runtime.is_main:
        write_json(folder / "plan.json", plan.to_dict())
    runtime.barrier()
    return load_plan(folder) or plan


@contextmanager
def open_run(recipe: Recipe, runtime: Runtime) -> Iterator[Run]:
    """Data, tokenizer and plan are there (made now if not); the folder is locked; signals save before they stop."""
    started = time.monotonic()
    folder = Path(recipe.out)
    check_loggers(recipe.loggers)
    if not (folder / "plan.json").exists():
        check_recipe(recipe, runtime)
    with ExitStack() as stack:
        if runtime.is_main:
            stack.enter_context(run_lock(folder, LOCK_PATIENCE_SECONDS if dist.is_torchelastic_launched() else 0.0))
        log = stack.enter_context(MetricsLog(folder, rank=runtime.rank, loggers=recipe.loggers, gpu=gpu_sampler(runtime)))
        with timed(log, "data"):
            data = prepare_data(recipe, runtime)
        with timed(log, "tokenizer"):
            tok = prepare_tokenizer(recipe, runtime, data)
        with timed(log, "plan"):
            plan = prepare_plan(recipe, runtime, data, tok, started)
        run = Run(folder=folder, data=data, plan=plan, runtime=runtime, tok=tok, log=log)
        stack.enter_context(stop_signals(run.stop))
        stack.enter_context(run.writer)
        yield run


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
