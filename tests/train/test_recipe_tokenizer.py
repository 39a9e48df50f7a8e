"""A recipe may name a tokenizer of others in place of training one."""

import base64

import pytest
import torch

from nutshell.data.shards import write_shards
from nutshell.plan.recipe import Recipe
from nutshell.runtime import Runtime
from nutshell.tokenizer import SPECIAL_TOKENS, Tokenizer
from nutshell.train.prepare_tokenizer import open_tokenizer, prepare_tokenizer

RUNTIME = Runtime(device=torch.device("cpu"), dtype=torch.float32)
TEXTS = ["the theatre there", "a cat sat on the mat"] * 20


@pytest.fixture
def rank_file(tmp_path):
    tok = Tokenizer.train(TEXTS, vocab_size=290, pattern="gpt2")
    path = tmp_path / "gpt2.tiktoken"
    path.write_bytes(b"".join(base64.b64encode(tok.token_bytes(id)) + b" %d\n" % id for id in range(tok.bos_id)))
    return path


def test_a_run_takes_the_recipes_tokenizer_and_adds_the_tokens_of_chats(rank_file, tmp_path):
    plain = Tokenizer.load(rank_file)
    assert not plain.special_tokens
    recipe = Recipe(out=str(tmp_path / "run"), tokenizer=str(rank_file))
    write_shards(TEXTS, tmp_path / "run" / "data", val_fraction=0.1, seed=0)
    tok = prepare_tokenizer(recipe, RUNTIME, tmp_path / "run" / "data")
    assert list(tok.special_tokens) == list(SPECIAL_TOKENS)
    assert tok.vocab_size == plain.vocab_size + len(SPECIAL_TOKENS)
    assert tok.encode("the theatre, there") == plain.encode("the theatre, there")
    assert prepare_tokenizer(recipe, RUNTIME, tmp_path / "run" / "data").fingerprint == tok.fingerprint


def test_another_tokenizer_than_the_runs_is_refused(rank_file, tmp_path):
    Tokenizer.train(TEXTS, vocab_size=280).save(tmp_path / "run" / "tokenizer")
    with pytest.raises(ValueError, match=r"is not the tokenizer .*gpt2\.tiktoken"):
        prepare_tokenizer(Recipe(out=str(tmp_path / "run"), tokenizer=str(rank_file)), RUNTIME, tmp_path)


def test_sizes_and_missing_files_are_refused_before_anything_is_made(rank_file, tmp_path):
    size = Tokenizer.load(rank_file).vocab_size + len(SPECIAL_TOKENS)
    with pytest.raises(ValueError, match=f"--vocab-size 4096 does not fit --tokenizer .*, which has {size} tokens"):
        open_tokenizer(Recipe(tokenizer=str(rank_file), vocab_size=4096))
    with pytest.raises(FileNotFoundError, match="nowhere does not exist"):
        open_tokenizer(Recipe(tokenizer=str(tmp_path / "nowhere")))
