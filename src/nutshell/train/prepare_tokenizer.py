"""The tokenizer of a run: the one that the recipe names, or a new one trained on the run's text."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np

from nutshell.data import primer
from nutshell.data.mixed import open_corpus
from nutshell.data.shards import MANIFEST
from nutshell.files import read_record, sha256, write_json
from nutshell.plan.recipe import Recipe
from nutshell.plan.shape import default_vocab_size
from nutshell.runtime import Runtime
from nutshell.tokenizer import Tokenizer

TOKENIZER_CHARACTERS = 8_000_000  # of the training text; more no longer changes the merges that matter at these sizes
SPLIT_PATTERNS = {"speed": "nanochat", "portable": "qwen2", "gpt2": "gpt2"}
"""Of each architecture. That of portable is Qwen2's, so that a GGUF file can say pre=qwen2."""


def open_tokenizer(recipe: Recipe) -> Tokenizer:
    """The tokenizer that the recipe names, with the special tokens of chats."""
    tok = Tokenizer.load(recipe.tokenizer).with_special_tokens()
    if recipe.vocab_size not in (0, tok.vocab_size):
        named = f"--vocab-size {recipe.vocab_size} does not fit --tokenizer {recipe.tokenizer}"
        raise ValueError(f"{named}, which has {tok.vocab_size} tokens with those of chats. Leave out one of the two.")
    return tok


def expected_vocab_size(recipe: Recipe, runtime: Runtime) -> int:
    """Tokens of the recipe's tokenizer, or of the one that will be trained, if the text has enough for it."""
    return open_tokenizer(recipe).vocab_size if recipe.tokenizer else default_vocab_size(recipe, runtime.device.type)


def prepare_tokenizer(recipe: Recipe, runtime: Runtime, data: Path, *, planned: bool = False) -> Tokenizer:
    """Train the run's tokenizer once, on the training shards and the primer's conversations; or take the recipe's.

    ValueError where the run's folder already has one of other settings or another text. A `planned` run goes on with its own.
    """
    folder = Path(recipe.out) / "tokenizer"
    there = (folder / "tokenizer.json").exists()
    if runtime.is_main and not (planned and there):
        pattern = SPLIT_PATTERNS[recipe.architecture]
        size = default_vocab_size(recipe, runtime.device.type)
        text = sha256(data / MANIFEST) if (data / MANIFEST).exists() else ""
        if there:
            check_tokenizer(recipe, folder, pattern, text)
        else:
            if recipe.tokenizer:
                tok = open_tokenizer(recipe)
            elif recipe.tokenizer_kind == "char":
                tok = Tokenizer.train_characters(_training_text(data, recipe))
            else:
                tok = Tokenizer.train(_training_text(data, recipe), size, pattern)
            tok.save(folder)
            write_json(folder / "made.json", {"vocab_size": size, "pattern": pattern, "text": text})
    runtime.barrier()
    return Tokenizer.load(folder)


def check_tokenizer(recipe: Recipe, folder: Path, pattern: str, text: str) -> None:
    """ValueError where the tokenizer in `folder` is not the recipe's, or is of another size, pattern or text. Any size will do
    where the recipe names none."""
    tok, record = Tokenizer.load(folder), folder / "made.json"
    if recipe.tokenizer:
        if tok.fingerprint != open_tokenizer(recipe).fingerprint:
            raise ValueError(f"{folder} is not the tokenizer {recipe.tokenizer}. Leave out --tokenizer, or give another --out.")
        return
    made = read_record(record, f"Delete {folder}, or give another --out.")
    size = made.get("vocab_size", tok.vocab_size)  # the text may have been too little for all that was asked for
    if recipe.vocab_size not in (0, size):
        problem = f"was made with vocab_size {size}, now it is {recipe.vocab_size}"
    elif tok.kind != recipe.tokenizer_kind:
        problem = f"is of kind {tok.kind}, now tokenizer_kind is {recipe.tokenizer_kind}"
    elif tok.kind == "bpe" and tok.pattern != Tokenizer([], pattern).pattern:
        problem = f"splits text by another pattern than {pattern}, which --architecture {recipe.architecture} has"
    elif made.get("text", text) != text:
        problem = "was trained on another text than the run's data"
    else:
        return
    raise ValueError(f"the tokenizer in {folder} {problem}. Delete that folder, or give another --out.")


def _training_text(data: Path, recipe: Recipe) -> Iterator[str]:
    """What the run's tokenizer is trained on."""
    shards = open_corpus(data, on_error=recipe.damaged_shards)
    characters, by_character = 0, recipe.tokenizer_kind == "char"
    # Blocks in random order: whatever order the files had, all of them are in the sample.
    for block in np.random.default_rng(recipe.seed).permutation(shards.blocks("train")).tolist():
        for text in shards.read("train", block):
            yield text
            characters += len(text)
        if characters >= TOKENIZER_CHARACTERS and not by_character:  # a rare character may stand anywhere
            break
    if by_character and not any(stage.wanted for name, stage in vars(recipe.stages).items() if name != "pretrain"):
        return  # no chat follows
    for conversation in primer.conversations(recipe.seed, 4000):
        for message in conversation["messages"]:
            content: Any = message["content"]
            yield from [content] if isinstance(content, str) else (part["text"] for part in content)
