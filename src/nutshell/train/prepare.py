"""What happens before the first step of a run: checks, lock, data, tokenizer, plan. `open_run` has the order.

What can be refused is refused before anything is written.
"""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import torch.distributed as dist

from nutshell import checkpoint
from nutshell.config import from_dict
from nutshell.data import primer
from nutshell.data.mixed import characters_of, open_corpus, write_mixture
from nutshell.data.preferences import read_pairs
from nutshell.data.shards import is_shard_folder, prepare_shards, read_manifest, write_shards
from nutshell.data.text import read_documents
from nutshell.files import STAGES, fingerprint, write_json
from nutshell.metrics import MetricsLog, check_loggers
from nutshell.plan.hardware import Hardware
from nutshell.plan.law import load_law, text_fingerprint
from nutshell.plan.mixture import Size, parts_of
from nutshell.plan.plan import Data, for_hardware, make_plan, same_machine
from nutshell.plan.recipe import FREE_IN_A_RUN, PRIMER, SOURCES, Recipe
from nutshell.plan.record import Plan, has_trained, source_prints, standing_plan
from nutshell.run.folder import Run
from nutshell.run.lock import run_lock, stop_signals
from nutshell.runtime import Runtime, gpu_readings
from nutshell.tasks import load_task
from nutshell.tasks.practice import open_practice
from nutshell.tokenizer import Tokenizer
from nutshell.tokenizer.chat import parse_messages, render
from nutshell.train.calibrate import measure, probe_micro_batch
from nutshell.train.examples import given_parts, identity_of, read_part, sizes, write_copies
from nutshell.train.prepare_tokenizer import expected_vocab_size, open_tokenizer, prepare_tokenizer

LOCK_PATIENCE_SECONDS = 120.0  # under torchrun; a file server gives a lost machine's lock back after its lease, often 90 s


def check_recipe(recipe: Recipe, runtime: Runtime) -> None:
    """ValueError or FileNotFoundError for sizes that do not fit together, and for files that are missing or of the wrong kind."""
    if recipe.budget and not recipe.depth and not recipe.params:
        recipe = replace(recipe, depth=1)  # where measuring begins
    load_law(recipe.scaling)
    check_data(recipe)
    make_plan(recipe, hardware_of(runtime), vocab_size=expected_vocab_size(recipe, runtime))
    for part in given_parts(recipe).values():
        read_part(recipe, part)
    stages = [name for name, stage in vars(recipe.stages).items() if stage.wanted]
    if recipe.identity and not any(part.key == PRIMER for stage in stages for part in parts_of(recipe, stage)):
        raise ValueError(
            "--identity fills what the primer says of the model, and no stage reads the primer. Leave it out, or give a stage "
            "a share of it: --stages.sft.primer-share 0.1."
        )
    if recipe.stages.dpo.pairs:
        read_pairs(recipe.stages.dpo.pairs, parse_messages)
    open_practice(recipe.stages.rl.tasks, reward=recipe.stages.rl.reward, data_folder=recipe.eval_data or None)


def check_tasks(recipe: Recipe) -> None:
    """ValueError or FileNotFoundError for a task to be scored on that can't be opened. It may be new in a run that goes on."""
    for name in dict.fromkeys(name for stage in vars(recipe.stages) for name in recipe.tasks_after(stage)):
        load_task(name, limit=1, data_folder=recipe.eval_data or None)


def check_data(recipe: Recipe) -> None:
    """ValueError where --data does not exist, is of the wrong kind or does not begin with text, or where the recipe's tokenizer
    cannot be used."""
    if recipe.tokenizer:
        open_tokenizer(recipe)
    for part in parts_of(recipe, "pretrain"):
        if part.data != PRIMER and not is_shard_folder(part.data):
            next(read_documents(part.data))


def check_order(recipe: Recipe, stage: str) -> None:
    """ValueError where no stage before `stage` has saved anything in this run, and no other model is named to begin with."""
    before = [name for name in STAGES[: STAGES.index(stage)] if name != "dpo" or recipe.stages.dpo.pairs]
    if before and not recipe.init_from and checkpoint.latest(Path(recipe.out)) is None:
        missing = f"{recipe.out} has no {before[-1]} checkpoint to start {stage} from"
        raise ValueError(f"{missing}. Run: nutshell {before[-1]} first, or begin with another model: --init-from RUN.")


def prepare_data(recipe: Recipe, runtime: Runtime, note: Callable[[str], object] = print, *, planned: bool = False) -> Path:
    """The folder of the run's shards, written once from the primer or the user's text; a user's shards are used in place.

    A `planned` run goes on with the shards it has: the text they were made from may have moved or grown. `note` is told what was
    read of the user's files and what was left out.
    """
    folder = Path(recipe.out) / "data"
    if recipe.first_stage != "pretrain" or (planned and is_shard_folder(folder)):
        return folder
    if runtime.is_main and recipe.stages.pretrain.mixture:
        parts = {part.name: part for part in recipe.stages.pretrain.mixture}
        folders = {name: _prepare_text(recipe, part.data, folder / name, note) for name, part in parts.items()}
        amounts = {name: part.epochs or part.weight or 1.0 for name, part in parts.items()}
        write_mixture(folder, folders, amounts, repeats=any(part.epochs for part in parts.values()))
    elif is_shard_folder(recipe.data) and recipe.data != PRIMER and not recipe.stages.pretrain.mixture:
        return Path(recipe.data)
    elif runtime.is_main:
        _prepare_text(recipe, recipe.data, folder, note)
    runtime.barrier()
    return folder


def _prepare_text(recipe: Recipe, data: str, folder: Path, note: Callable[[str], object]) -> Path:
    """The folder of one corpus' shards: `folder`, written now if it is not there, or `data` itself where that is shards."""
    if data != PRIMER:
        return prepare_shards(data, folder, note=note, seed=recipe.seed)
    source: dict[str, Any] = {"primer": recipe.primer_characters, "seed": recipe.seed}
    source |= {"identity": recipe.identity} if recipe.identity else {}
    if not is_shard_folder(folder):
        pages = primer.documents(recipe.seed, recipe.primer_characters, identity=identity_of(recipe))
        write_shards(pages, folder, seed=recipe.seed, source=source)
    elif (found := read_manifest(folder).get("source")) != source:
        raise ValueError(f"{folder} holds {found}, not {source}. Delete it, or give another --out.")
    return folder


def hardware_of(runtime: Runtime) -> Hardware:
    """This machine as a plan sees it, before anything is timed."""
    return Hardware(
        device=runtime.device.type,
        dtype=runtime.dtype_name,
        world_size=runtime.world_size,
        threads=runtime.threads,
        memory_bytes=runtime.memory_bytes,
    )


def data_facts(recipe: Recipe, folder: Path, tok: Tokenizer) -> Data:
    """The data as a plan sees it: which text it is, and about how many tokens, estimated from a sample."""
    pairs = read_pairs(recipe.stages.dpo.pairs, parse_messages) if recipe.stages.dpo.pairs else []
    answers = [len(render(messages, tok)[0]) for pair in pairs[:100] for messages in pair]
    pair_tokens = 2 * sum(answers) / max(1, len(answers))
    known = Data(conversations=sizes(recipe, tok), pairs=len(pairs), pair_tokens=pair_tokens)
    if recipe.first_stage != "pretrain":
        return known
    manifest = read_manifest(folder)
    text = next(iter(open_corpus(folder, on_error=recipe.damaged_shards).read("train", 0)), "")[:100_000]
    tokens_per_character = len(tok.encode(text)) / max(1, len(text))
    documents = manifest.get("documents", {}).get("train", 0)
    found = manifest.get("mixture") or [{"documents": documents, "characters": characters_of(folder)}]
    texts = {
        part.key: Size(facts["documents"], facts["characters"] * tokens_per_character)
        for part, facts in zip(parts_of(recipe, "pretrain"), found, strict=True)
    }
    return replace(known, text=text_fingerprint(recipe, manifest), texts=texts)


def make_new_plan(recipe: Recipe, runtime: Runtime, data: Path, tok: Tokenizer, started: float) -> Plan:
    """The plan of a run that begins. A budget is fitted to timed steps and to what is left of it since `started`."""
    hardware, facts = hardware_of(runtime), data_facts(recipe, data, tok)
    if budget := recipe.budget_seconds():
        left = runtime.agree(budget - (time.monotonic() - started))
        hardware = measure(recipe, runtime, hardware, tok.vocab_size, left, facts)
        hardware = replace(hardware, seconds_left=max(1.0, runtime.agree(budget - (time.monotonic() - started))))
    law = load_law(recipe.scaling)
    plan = make_plan(recipe, hardware, vocab_size=tok.vocab_size, bos_id=tok.bos_id, law=law, data=facts)
    if runtime.is_main:
        copied = {name: getattr(recipe, name) for name in SOURCES if name != "init_from"}
        prints = {name: fingerprint(path) for name, path in copied.items() if path not in ("", PRIMER)}
        write_json(Path(recipe.out) / "sources.json", prints)
    return save_plan(plan, runtime)


def move_plan(saved: Plan, recipe: Recipe, runtime: Runtime) -> Plan:
    """A saved plan on the machine at hand, with the settings of `recipe` that may change in a run; batches keep their size."""
    hardware = hardware_of(runtime)
    here = for_hardware(saved, hardware, replace(saved.recipe, **{name: getattr(recipe, name) for name in FREE_IN_A_RUN}))
    if same_machine(saved.hardware, hardware) and here.micro_batch_size == saved.micro_batch_size:
        return here
    if runtime.is_main:
        planned = f"{saved.hardware.describe()}, micro-batches of {saved.micro_batch_size} rows"
        print(f"Planned for {planned}; going on with {hardware.describe()}, {here.micro_batch_size} rows.", file=sys.stderr)
    return save_plan(here, runtime)


def save_plan(plan: Plan, runtime: Runtime) -> Plan:
    """Write plan.json, on a GPU with micro-batches that a real step has fitted the memory with. Every rank trains by rank 0's
    plan, with the numbers as they are in the file."""
    if runtime.device.type == "cuda":
        plan = probe_micro_batch(plan, runtime)
    if runtime.is_main:
        write_json(Path(plan.recipe.out) / "plan.json", plan.to_dict())
    return from_dict(Plan, runtime.agree(json.loads(json.dumps(plan.to_dict()))), "plan.json")


def note_changes(recipe: Recipe, folder: Path, log: MetricsLog) -> None:
    """Say where a source is no longer what the run was made from."""
    for name, known in source_prints(folder).items():
        path = getattr(recipe, name)
        if fingerprint(path) != known:
            state = "has changed" if Path(path).exists() else "is no longer there"
            log.note(f"--{name} {path} {state} since the run was planned; the run goes on with its own copy.")


@contextmanager
def open_run(recipe: Recipe, runtime: Runtime) -> Iterator[Run]:
    """The run with its data, tokenizer and plan, made now if they are not there. Meanwhile the folder is locked, and a signal
    saves before it stops the run."""
    started = time.monotonic()
    folder = Path(recipe.out)
    check_loggers(recipe.loggers)
    saved, here = standing_plan(recipe), (runtime.device.type, runtime.world_size)
    if saved and not has_trained(folder) and (saved.hardware.device, saved.hardware.world_size) != here:
        saved = None  # planned elsewhere, for instance by `nutshell plan` before torchrun: measure again
    if not saved:
        check_recipe(recipe, runtime)
    check_tasks(recipe)
    runtime.barrier()  # every rank has looked before rank 0 writes
    with ExitStack() as stack:
        if runtime.is_main:
            stack.enter_context(run_lock(folder, LOCK_PATIENCE_SECONDS if dist.is_torchelastic_launched() else 0.0))
        gpu = partial(gpu_readings, runtime.device)
        log = stack.enter_context(MetricsLog(folder, rank=runtime.rank, loggers=recipe.loggers, gpu=gpu))
        if saved and runtime.is_main:
            note_changes(recipe, folder, log)
        with timed(log, "data"):
            data = prepare_data(recipe, runtime, log.note, planned=saved is not None)
            if not saved and runtime.is_main:
                write_copies(recipe, log)
            runtime.barrier()
        with timed(log, "tokenizer"):
            tok = prepare_tokenizer(recipe, runtime, data, planned=saved is not None)
        with timed(log, "plan"):
            plan = move_plan(saved, recipe, runtime) if saved else make_new_plan(recipe, runtime, data, tok, started)
        run = Run(folder=folder, data=data, plan=plan, runtime=runtime, tok=tok, log=log)
        stack.enter_context(stop_signals(run.stop))
        stack.enter_context(run.writer)
        yield run


@contextmanager
def timed(log: MetricsLog, stage: str) -> Iterator[None]:
    """Log the seconds of a stage without steps, the first time it runs."""
    start = time.monotonic()
    yield
    log.stage_seconds(stage, time.monotonic() - start)
