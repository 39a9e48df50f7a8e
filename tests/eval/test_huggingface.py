"""Models of transformers scored as they are, and a folder of ours scored alike by both ways."""

import pytest
import torch

from nutshell.checkpoint import save_model_folder
from nutshell.eval.core import pairs
from nutshell.eval.huggingface import is_foreign, load_foreign
from nutshell.eval.score import score
from nutshell.model.build import build_model
from nutshell.model.config import ModelConfig

transformers = pytest.importorskip("transformers")

CPU = torch.device("cpu")


@pytest.fixture(scope="module")
def folder(tok, tmp_path_factory):
    """A GPT-2 of random weights with a tokenizer of transformers."""
    folder = tmp_path_factory.mktemp("gpt2")
    tok.save(folder)
    torch.manual_seed(0)
    shape = {"vocab_size": tok.vocab_size, "n_positions": 32, "n_embd": 16, "n_layer": 2, "n_head": 2}
    transformers.GPT2LMHeadModel(transformers.GPT2Config(**shape, initializer_range=0.5)).save_pretrained(folder)
    return folder


def test_a_gpt2_folder_is_scored_as_transformers_does(folder, tok):
    assert is_foreign(folder)
    model, theirs = load_foreign(folder, CPU, torch.float32)
    assert (theirs.bos_id, theirs.encode("red cat")) == (tok.bos_id, tok.encode("red cat"))
    questions = pairs("multiple_choice", ["what is red? the cat", "what is red? a dog"], theirs, model.config.context)
    long = pairs("language_modeling", ["cat " * 40, "cat " * 40 + "dog"], theirs, model.config.context)
    for (prefix, rest), ours in zip(questions + long, score(model, questions + long), strict=True):
        ids = torch.tensor([[*prefix, *rest]])
        assert ids.size(1) <= 32
        table = model.model(ids).logits[0].double().log_softmax(-1)[len(prefix) - 1 : -1]
        targets = ids[0, len(prefix) :]
        assert ours.logprob == pytest.approx(float(table.gather(1, targets[:, None]).sum()), abs=1e-4)
        assert ours.greedy == bool((table.argmax(-1) == targets).all())


def test_a_portable_folder_scores_alike_by_our_reader_and_by_transformers(tok, tmp_path):
    config = ModelConfig(
        vocab_size=tok.vocab_size, depth=2, width=32, heads=2, kv_heads=1, head_dim=16, context=64, bos_id=tok.bos_id,
        window_pattern="L", architecture="portable", mlp_width=64, rotary_base=10_000.0,
    )  # fmt: skip
    torch.manual_seed(0)
    model = build_model(config).requires_grad_(False).eval()
    for p in model.parameters():
        if p.dim() == 2:
            p.normal_(0, 0.2)
    save_model_folder(tmp_path / "model", model, tok)
    assert not is_foreign(tmp_path / "model")
    (tmp_path / "model" / "manifest.json").unlink()
    theirs, _ = load_foreign(tmp_path / "model", CPU, torch.float32)
    asked = [([tok.bos_id, *range(40, 60)], [5, 6, n]) for n in range(4)]
    for ours, other in zip(score(model, asked), score(theirs, asked), strict=True):
        assert ours.logprob == pytest.approx(other.logprob, abs=1e-4)


def test_questions_without_a_template_are_a_plain_transcript(folder, tok):
    _, theirs = load_foreign(folder, CPU, torch.float32)
    theirs.tok.chat_template = None
    turns = [{"role": "user", "content": "red?"}, {"role": "assistant", "content": "A"}, {"role": "user", "content": "blue?"}]
    assert tok.decode(theirs.chat_prompt(turns)[1:]) == "Question: red?\nAnswer: A\nQuestion: blue?\nAnswer:"


def test_a_folder_that_transformers_cannot_open_is_named(tmp_path):
    (tmp_path / "config.json").write_text('{"model_type": "never heard of"}')
    with pytest.raises(ValueError, match="can't be opened by transformers"):
        load_foreign(tmp_path, CPU, torch.float32)
