"""Character-level tokenizers: nanoGPT's ids, the library's ids for the saved file, and a run from text to samples."""

import json
import pickle
from dataclasses import replace

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

import nutshell
from nutshell.cli.main import main
from nutshell.plan.recipe import Recipe
from nutshell.plan.stages import DPOConfig, RLConfig, StageConfig, Stages
from nutshell.runtime import Runtime
from nutshell.tokenizer import SPECIAL_TOKENS, StreamDecoder, Tokenizer, render
from nutshell.train.pipeline import run_stages

TEXT = "First Citizen:\nBefore we proceed, hear me — 漢字 🙂.\n"
TOK = Tokenizer.train_characters([TEXT])
ANY = st.text(st.one_of(st.characters(exclude_categories=["Cs"]), st.sampled_from(TEXT)))


def test_ids_are_those_of_nanogpts_prepare_script():
    """data/shakespeare_char/prepare.py: `chars = sorted(list(set(data)))`, and an id is the place in it."""
    chars = sorted(set(TEXT))
    plain = Tokenizer.train_characters(["".join(chars), "\ufffd"])  # U+FFFD stands before 🙂
    assert plain.encode(TEXT) == TOK.encode(TEXT) == [sorted({*chars, "\ufffd"}).index(c) for c in TEXT]
    ascii_only = Tokenizer.train_characters(["hello\nworld"])
    stoi = {ch: i for i, ch in enumerate(sorted(set("hello\nworld")))}
    assert ascii_only.encode("low\nhello") == [stoi[c] for c in "low\nhello"]
    assert ascii_only.vocab_size == len(stoi) + 1 + len(SPECIAL_TOKENS)


@given(st.lists(ANY, max_size=6))
def test_text_comes_back_and_batches_are_the_single_texts(texts):
    flat, offsets = TOK.encode_batch(texts)
    assert flat.dtype == np.uint32
    assert [flat[a:b].tolist() for a, b in zip(offsets, offsets[1:], strict=False)] == [TOK.encode(text) for text in texts]
    for text in texts:
        ids = TOK.encode(text)
        expected = "".join(c if c in TEXT else "\ufffd" for c in text)
        assert TOK.decode(ids) == TOK.decode(np.array(ids, dtype=np.uint32)) == expected
        stream = StreamDecoder(TOK)
        assert "".join(map(stream.push, ids)) + stream.flush() == expected


def test_the_file_opens_in_tokenizers_with_the_same_ids(tmp_path):
    tokenizers = pytest.importorskip("tokenizers")
    TOK.save(tmp_path)
    theirs = tokenizers.Tokenizer.from_file(str(tmp_path / "tokenizer.json"))
    for text in (TEXT, "Zebra\r\n\tЖ  me", "", "🙂🙂 \n\n"):
        ids = theirs.encode(text).ids
        assert ids == TOK.encode(text)
        assert theirs.decode(ids) == TOK.decode(ids)
    assert theirs.encode("<|bos|>me").ids == [TOK.bos_id, *TOK.encode("me")]
    assert theirs.get_vocab_size() == TOK.vocab_size


def test_saved_loaded_copied_and_extended_it_stays_the_same(tmp_path):
    TOK.save(tmp_path)
    for same in (Tokenizer.load(tmp_path), pickle.loads(pickle.dumps(TOK)), TOK.with_special_tokens()):
        assert (same.fingerprint, same.kind, same.special_tokens) == (TOK.fingerprint, "char", TOK.special_tokens)
    longer = TOK.with_special_tokens(["<|extra|>"])
    assert longer.special_tokens == {**TOK.special_tokens, "<|extra|>": TOK.vocab_size}
    lengths = TOK.token_byte_lengths()
    assert sum(lengths[TOK.encode(TEXT)]) == len(TEXT.encode())
    assert not lengths[list(TOK.special_tokens.values())].any()
    ids, mask = render([{"role": "user", "content": "me"}, {"role": "assistant", "content": "we"}], TOK)
    assert TOK.decode([id for id, learned in zip(ids, mask, strict=True) if learned], special=True) == "we<|assistant_end|>"


def test_what_cannot_be_read_is_refused(tmp_path):
    words = {"model": {"type": "WordLevel", "vocab": {"hello": 0, "[UNK]": 1}, "unk_token": "[UNK]"}, "added_tokens": []}
    (tmp_path / "tokenizer.json").write_text(json.dumps(words))
    with pytest.raises(ValueError, match=r"tokenizer\.json holds a vocabulary of whole words. Accepted: "):
        Tokenizer.load(tmp_path)
    with pytest.raises(ValueError, match=f"id {TOK.vocab_size} is not in the vocabulary"):
        TOK.decode([0, TOK.vocab_size])
    with pytest.raises(ValueError, match=r"not in the vocabulary|not a token id"):
        TOK.decode([-1])
    with pytest.raises(ValueError, match=r"lone surrogate U\+D800"):
        TOK.encode("a\ud800")
    with pytest.raises(ValueError, match="must be a str"):
        TOK.encode_batch(["a", b"b"])
    with pytest.raises(ValueError, match="no text to take characters from"):
        Tokenizer.train_characters([""])
    with pytest.raises(ValueError, match="Leave out --vocab-size and --tokenizer"):
        Recipe(tokenizer_kind="char", vocab_size=512)


def test_the_verb_writes_one(tmp_path, capsys):
    (tmp_path / "play.txt").write_text(TEXT)
    with pytest.raises(SystemExit) as end:
        main(["tokenizer", "train", str(tmp_path / "play.txt"), "--kind", "char", "--out", str(tmp_path / "tok")])
    assert end.value.code == 0, capsys.readouterr().err
    assert Tokenizer.load(tmp_path / "tok").fingerprint == TOK.fingerprint
    assert f"{TOK.vocab_size} tokens\n" in capsys.readouterr().out


def test_a_run_of_pretraining_alone_is_a_result(tmp_path, capsys):
    (tmp_path / "data" / "validation").mkdir(parents=True)
    (tmp_path / "data" / "train.txt").write_text("the cat sat on the mat.\n" * 400)
    (tmp_path / "data" / "validation" / "rest.txt").write_text("the cat sat on the hat, à la mode.\n" * 60)
    off = StageConfig()
    stages = Stages(pretrain=StageConfig(steps=4), midtrain=off, sft=off, dpo=DPOConfig(), rl=RLConfig())
    recipe = Recipe(
        out=str(tmp_path / "run"), data=str(tmp_path / "data"), tokenizer_kind="char", depth=1, width=64, context=64,
        tokens_per_step=256, stages=stages,
    )  # fmt: skip
    run_stages(recipe, Runtime(device=torch.device("cpu"), dtype=torch.float32))
    model, tok = nutshell.load(tmp_path / "run")
    assert tok.kind == "char"
    assert tok.vocab_size == len(set("the cat sat on the mat.\n") | {"\ufffd"}) + len(SPECIAL_TOKENS) == model.config.vocab_size
    (text,) = nutshell.Engine(model, tok).generate(["the cat"], max_tokens=8, temperature=0)
    assert isinstance(text, str)
    main_code(["report", str(tmp_path / "run")])
    assert json.loads((tmp_path / "run" / "report.json").read_text())["stages"]["pretrain"]["val_bpb"] > 0
    main_code(["generate", str(tmp_path / "run"), "--prompt", "the", "--max-tokens", "4"])
    changed = replace(recipe, tokenizer_kind="bpe")
    with pytest.raises(ValueError, match="tokenizer_kind"):
        run_stages(changed, Runtime(device=torch.device("cpu"), dtype=torch.float32))


def main_code(arguments):
    with pytest.raises(SystemExit) as end:
        main(arguments)
    assert end.value.code == 0, arguments
