"""Models of the families of Llama and Qwen3: opened, scored, continued, taught, served, and out again as they came."""

import json
from itertools import islice

import numpy as np
import pytest
import torch
from kin import KIN, SHAPE, save_kin, save_words
from small_models import greedy

import nutshell
from nutshell.interop.gguf import export_gguf
from nutshell.interop.hf_export import export_hf
from nutshell.interop.hf_import import import_hf
from nutshell.model.flops import parameters_by_group

TEXT = "What is 12 + 345? It's naïve, 日本語\n\n  so   \n x  7"


@pytest.fixture(scope="module")
def transformers():
    return pytest.importorskip("transformers", minversion="4.56", reason="transformers is not installed")


@pytest.fixture(params=KIN)
def kin(request, transformers, tmp_path):
    """(a model folder made from one of transformers, what that holds)"""
    peer = save_kin(transformers, tmp_path / "theirs", request.param)
    import_hf(tmp_path / "theirs", tmp_path / "model")
    return tmp_path / "model", peer


def test_logits_and_text_are_those_of_transformers_and_it_goes_out_again(kin, transformers, tmp_path):
    folder, peer = kin
    ours, tok = nutshell.load(folder)
    assert sum(parameters_by_group(ours.config).values()) == sum(p.numel() for p in peer.parameters())
    library = pytest.importorskip("tokenizers", reason="tokenizers is not installed")
    ids = library.Tokenizer.from_file(str(tmp_path / "theirs" / "tokenizer.json")).encode(TEXT).ids
    assert ids == tok.encode(TEXT)
    ids = torch.tensor([[tok.bos_id, *ids]])
    with torch.no_grad():
        expected = peer(ids).logits
        assert (ours(ids) - expected).abs().max() < 1e-4
    settings = {"max_new_tokens": 24, "do_sample": False, "eos_token_id": None, "pad_token_id": 0}
    theirs = peer.generate(ids, attention_mask=torch.ones_like(ids), **settings)[0, ids.size(1) :].tolist()
    assert theirs == greedy(ours, ids[0].tolist(), 24)
    ours(ids[:, :-1], ids[:, 1:]).backward()
    peer(ids, labels=ids).loss.backward()
    grads = [model.model.layers[0].self_attn.q_proj.weight.grad for model in (ours, peer)]
    assert torch.allclose(*grads, atol=1e-4)
    again = transformers.AutoModelForCausalLM.from_pretrained(export_hf(folder, tmp_path / "out"))
    assert type(again) is type(peer)
    with torch.no_grad():
        assert torch.equal(again(ids).logits, expected)


def test_llama_cpp_reads_it(kin, tmp_path):
    llama_cpp = pytest.importorskip("llama_cpp", reason="llama-cpp-python is not installed")
    file = export_gguf(kin[0], tmp_path / "out", "f32")
    exact = {"type_k": llama_cpp.GGML_TYPE_F32, "type_v": llama_cpp.GGML_TYPE_F32}  # its cache is fp16 otherwise
    peer = llama_cpp.Llama(str(file), n_ctx=128, logits_all=True, n_threads=1, verbose=False, **exact)
    ours, tok = nutshell.load(kin[0])
    ids = peer.tokenize(TEXT.encode(), add_bos=True)
    assert ids == [tok.bos_id, *tok.encode(TEXT)]
    peer.eval(ids)
    with torch.no_grad():
        expected = ours(torch.tensor([ids]))[0]
    assert (torch.tensor(np.array(peer.scores[: len(ids)])) - expected).abs().max() < 1e-4
    assert list(islice(peer.generate(ids, temp=0, repeat_penalty=1), 24)) == greedy(ours, ids, 24)


@pytest.mark.parametrize("name", ["smollm2", "qwen3"])
def test_a_user_scores_continues_and_teaches_it(name, transformers, command, tmp_path):
    peer = save_kin(transformers, tmp_path / "theirs", name)
    assert command("import", "hf", tmp_path / "theirs", "--out", tmp_path / "model")[0] == 0
    tok = nutshell.Tokenizer.load(tmp_path / "model")
    (tmp_path / "text.txt").write_text(TEXT)
    ids = torch.tensor([[tok.bos_id, *tok.encode(TEXT)]])
    with torch.no_grad():
        nats = peer(ids, labels=ids).loss.item() * (ids.numel() - 1)
    _, out, _ = command("eval", tmp_path / "model", "--text", tmp_path / "text.txt", "--json")
    assert f"{nats / np.log(2) / len(TEXT.encode()):.4f}"[:-1] in out
    with torch.no_grad():
        first = int(peer(ids).logits[0, -1].argmax())
    greedily = ("--max-tokens", 1, "--temperature", 0)
    _, out, _ = command("generate", tmp_path / "model", "-p", TEXT, *greedily, "--json")
    assert json.loads(out)["completions"][0]["text"] == tok.decode([first])
    assert "Chats need it: import the model again with --chat" in command("chat", tmp_path / "model", "-p", "hi")[2]

    assert command("import", "hf", tmp_path / "theirs", "--out", tmp_path / "chat", "--chat")[0] == 0
    steps = ("--stages.sft.steps", 2, "--eval-items", 1, "--tokens-per-step", 512, "--micro-batch-size", 2)
    code, _, err = command("sft", "--init-from", tmp_path / "chat", "--out", tmp_path / "run", *steps)
    assert code == 0, err
    model, tok = nutshell.load(tmp_path / "run")
    before = nutshell.load(tmp_path / "chat")[0]
    assert not torch.equal(model.model.embed_tokens.weight, before.model.embed_tokens.weight)
    assert (model.config.tied, model.config.qk_norm) == (before.config.tied, before.config.qk_norm)
    assert list(nutshell.Engine(model, tok).chat([{"role": "user", "content": "hi"}], temperature=0, max_tokens=4))


LLAMA3_ROPE = {"rope_type": "llama3", "factor": 8.0}


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"attention_bias": True}, "attention_bias is True; accepted: False"),
        ({"mlp_bias": True}, "mlp_bias is True; accepted: False"),
        ({"hidden_act": "gelu"}, "hidden_act is 'gelu'; accepted: 'silu'"),
        ({"rope_scaling": LLAMA3_ROPE}, "rope_scaling is"),
        ({"rope_parameters": {**LLAMA3_ROPE, "rope_theta": 5e5}}, "rope_type is 'llama3'; accepted: 'default'"),
        ({"head_dim": 15}, "head_dim is 15; rotary embeddings need an even number"),
        ({"model_type": "qwen3", "use_sliding_window": True, "head_dim": 12}, "use_sliding_window is True; accepted: False"),
    ],
)  # fmt: skip
def test_a_foreign_shape_is_refused_by_name(refused, tmp_path, change, message):
    size = save_words(tmp_path / "llama", KIN["stories"])
    values = {"model_type": "llama", "vocab_size": size, "bos_token_id": size - 1, **SHAPE, **change}
    (tmp_path / "llama" / "config.json").write_text(json.dumps(values))
    refused(tmp_path, message, "import", "hf", tmp_path / "llama", "--out", tmp_path / "out")
