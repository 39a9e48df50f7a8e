"""What can be refused at once is refused before anything is written, and before hours have gone into a run."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

from nutshell import checkpoint
from nutshell.data.shards import is_shard_folder
from nutshell.data.sources import read_conversations, read_documents
from nutshell.runtime import Runtime
from nutshell.tasks import load_task
from nutshell.tokenizer import Tokenizer
from nutshell.tokenizer.chat import parse_messages
from nutshell.train.evaluation import FILE_TASKS
from nutshell.train.law import load_law
from nutshell.train.plan import Hardware, default_vocab_size, make_plan
from nutshell.train.recipe import PRIMER, Recipe


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
    for name in FILE_TASKS if recipe.eval_data else ():
        load_task(name, limit=1, data_folder=recipe.eval_data)


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
