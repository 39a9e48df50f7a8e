"""Folders that transformers writes, opened here: the same logits and ids, or refused by the name of what is foreign."""

import json

import pytest
import torch
from safetensors.torch import load_file, save_file
from small_models import CHATS, TEXTS, greedy, noisy, save_folder

import nutshell
from nutshell.interop.hf_export import export_hf
from nutshell.interop.hf_import import import_hf, read_tokenizer
from nutshell.model.flops import parameters_by_group
from nutshell.tokenizer import Tokenizer
from nutshell.tokenizer.huggingface import alphabet

TEXT = "What is 12 + 345? It's naïve, 日本語\n\n  so   \n x"


@pytest.fixture(scope="module")
def transformers():
    return pytest.importorskip("transformers", minversion="4.56", reason="transformers is not installed")


def gpt2_words(folder, *, old_files=False):
    """A small tokenizer of GPT-2's kind, as `tokenizer.json` or as the pair of files that came before it."""
    folder.mkdir(exist_ok=True)
    byte_tokens = Tokenizer.train(TEXTS, vocab_size=300, pattern="gpt2")
    names = ["".join(alphabet()[byte] for byte in byte_tokens.token_bytes(id)) for id in range(byte_tokens.vocab_size - 9)]
    merges = [f"{names[left]} {names[right]}" for left, right in byte_tokens.merges]
    vocabulary = {name: id for id, name in enumerate([*names, "<|endoftext|>"])}
    if old_files:
        (folder / "vocab.json").write_text(json.dumps(vocabulary))
        (folder / "merges.txt").write_text("#version: 0.2\n" + "\n".join(merges) + "\n")
    else:
        content = {
            "added_tokens": [{"id": len(names), "content": "<|endoftext|>", "special": True}],
            "pre_tokenizer": {"type": "ByteLevel", "add_prefix_space": False, "use_regex": True},
            "model": {"type": "BPE", "vocab": vocabulary, "merges": merges},
        }
        (folder / "tokenizer.json").write_text(json.dumps(content))
    return len(vocabulary)


@pytest.fixture(params=[False, True], ids=["tokenizer.json", "vocab.json and merges.txt"])
def gpt2(request, transformers, tmp_path):
    """(a folder of a GPT-2 of transformers, that model)"""
    folder = tmp_path / "gpt2"
    size = gpt2_words(folder, old_files=request.param)
    shape = {"n_layer": 3, "n_embd": 48, "n_head": 4, "n_positions": 128, "bos_token_id": size - 1, "eos_token_id": size - 1}
    model = noisy(transformers.GPT2LMHeadModel(transformers.GPT2Config(vocab_size=size, **shape)))
    model.save_pretrained(folder)
    return folder, model


def test_gpt2_gives_the_logits_of_transformers(gpt2, tmp_path):
    folder, peer = gpt2
    import_hf(folder, tmp_path / "model")
    ours, tok = nutshell.load(tmp_path / "model")
    assert sum(parameters_by_group(ours.config).values()) == sum(p.numel() for p in ours.parameters())
    assert sum(p.numel() for p in ours.parameters()) == sum(p.numel() for p in peer.parameters())
    ids = torch.tensor([[tok.bos_id, *tok.encode(TEXT)]])
    with torch.no_grad():
        assert (ours(ids) - peer(ids).logits).abs().max() < 1e-4
    ours(ids[:, :-1], ids[:, 1:]).backward()
    peer(ids, labels=ids).loss.backward()
    assert torch.allclose(ours.embedding.weight.grad, peer.transformer.wte.weight.grad, atol=1e-5)
    settings = {"max_new_tokens": 40, "do_sample": False, "eos_token_id": None, "pad_token_id": 0}
    theirs = peer.generate(ids, attention_mask=torch.ones_like(ids), **settings)[0, ids.size(1) :].tolist()
    assert theirs == greedy(ours, ids[0].tolist(), 40)
    text = nutshell.Engine(ours, tok).generate([TEXT], max_tokens=8, temperature=0)[0]
    ends = theirs.index(tok.bos_id) if tok.bos_id in theirs[:8] else 8
    assert text == tok.decode(theirs[:ends])


def test_the_tokens_of_chats_are_added_behind_the_others(gpt2, tmp_path):
    folder, peer = gpt2
    import_hf(folder, tmp_path / "model", chat=True)
    ours, tok = nutshell.load(tmp_path / "model")
    size = peer.config.vocab_size
    assert (tok.vocab_size, tok.bos_id, ours.config.bos_id) == (size + 9, size, size)
    ids = tok.encode(TEXT)
    with torch.no_grad():
        theirs = peer(torch.tensor([[size - 1, *ids]])).logits
        logits = ours(torch.tensor([[tok.bos_id, *ids]]))
    assert (logits[..., :size] - theirs).abs().max() < 1e-4
    assert torch.allclose(logits[..., size:], theirs[..., -1:], atol=1e-4)


def test_old_files_of_gpt2_hold_masks_and_the_head_again(gpt2, refused, tmp_path):
    folder, peer = gpt2
    old = {name.removeprefix("transformer."): value.clone() for name, value in peer.state_dict().items()}
    old |= {"h.0.attn.bias": torch.ones(1, 1, 128, 128), "h.0.attn.masked_bias": torch.tensor(-1e4)}
    save_file(old, folder / "model.safetensors")
    model = import_hf(folder, tmp_path / "model")
    assert torch.equal(model.blocks[1].attention.v.bias, peer.transformer.h[1].attn.c_attn.bias[96:])
    save_file({**old, "lm_head.weight": old["wte.weight"] + 1}, folder / "model.safetensors")
    refused(tmp_path, "has a head of its own", "import", "hf", folder, "--out", tmp_path / "out")
    save_file({**old, "h.9.extra": torch.ones(1)}, folder / "model.safetensors")
    refused(tmp_path, "has the tensor h.9.extra", "import", "hf", folder, "--out", tmp_path / "out")


def test_training_needs_the_tokens_of_chats(gpt2, refused, tmp_path):
    import_hf(gpt2[0], tmp_path / "model")
    begin = ("sft", "--init-from", tmp_path / "model", "--out", tmp_path / "run")
    refused(tmp_path, "has no token <|bos|>, which training needs. Import it again with --chat.", *begin)


def test_gpt2_goes_back_as_it_came(gpt2, transformers, tmp_path):
    folder, peer = gpt2
    import_hf(folder, tmp_path / "model")
    again, facts = transformers.AutoModelForCausalLM.from_pretrained(
        export_hf(tmp_path / "model", tmp_path / "again"), output_loading_info=True
    )
    assert type(again) is type(peer)
    assert not any(facts.values()), facts
    assert all(torch.equal(again.state_dict()[name], value) for name, value in peer.state_dict().items())
    words = transformers.AutoTokenizer.from_pretrained(tmp_path / "again")
    assert words(TEXT)["input_ids"] == Tokenizer.load(tmp_path / "model").encode(TEXT)


@pytest.mark.parametrize(
    ("name", "depth", "width", "heads", "millions"),
    [("gpt2", 12, 768, 12, 124.4), ("gpt2-medium", 24, 1024, 16, 354.8), ("gpt2-large", 36, 1280, 20, 774.0),
     ("gpt2-xl", 48, 1600, 25, 1557.6)],
)  # fmt: skip
def test_every_size_of_gpt2_has_its_parameters(name, depth, width, heads, millions):
    from nutshell.interop.gpt2 import config_from_gpt2

    shape = {"vocab_size": 50257, "n_layer": depth, "n_embd": width, "n_head": heads, "n_positions": 1024}
    config = config_from_gpt2(shape, 50256)
    assert sum(parameters_by_group(config).values()) / 1e6 == pytest.approx(millions, abs=0.05)


def test_the_old_files_of_a_tokenizer_give_the_same_ids(transformers, tmp_path):
    gpt2_words(tmp_path / "old", old_files=True)
    gpt2_words(tmp_path / "new")
    peer = transformers.GPT2Tokenizer(str(tmp_path / "old" / "vocab.json"), str(tmp_path / "old" / "merges.txt"))
    for folder in ("old", "new"):
        assert read_tokenizer(tmp_path / folder).encode(TEXT) == peer(TEXT)["input_ids"]


@pytest.mark.parametrize("parts", ["1GB", "40KB"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_qwen3_comes_in_with_its_padding_cut(transformers, portable, tmp_path, dtype, parts):
    tok = Tokenizer.load(portable)
    values = {**json.loads((portable / "config.json").read_text()), "vocab_size": tok.vocab_size + 44}
    peer = noisy(transformers.Qwen3ForCausalLM(transformers.Qwen3Config(**values))).to(dtype)
    peer.save_pretrained(tmp_path / "qwen", max_shard_size=parts)
    tok.save(tmp_path / "qwen")
    assert len(list((tmp_path / "qwen").glob("*.safetensors"))) == 1 or parts == "40KB"
    import_hf(tmp_path / "qwen", tmp_path / "model")
    ours, again = nutshell.load(tmp_path / "model")
    assert again.fingerprint == tok.fingerprint
    peer = transformers.AutoModelForCausalLM.from_pretrained(tmp_path / "qwen", dtype=torch.float32)
    ids = torch.tensor([[tok.bos_id, *tok.encode(TEXT)]])
    with torch.no_grad():
        assert (ours(ids) - peer(ids).logits[..., : tok.vocab_size]).abs().max() < 1e-4


def test_what_was_exported_comes_back(transformers, speed, portable, tmp_path):
    for name, folder in (("speed", speed), ("portable", portable)):
        import_hf(export_hf(folder, tmp_path / f"{name}-out"), tmp_path / name)
        ours, again = nutshell.load(folder)[0], nutshell.load(tmp_path / name)[0]
        assert again.config == ours.config
        assert all(torch.equal(again.state_dict()[key], value) for key, value in ours.state_dict().items())


def test_nanochat_of_transformers_comes_in_and_goes_out_again(transformers, tmp_path):
    if not hasattr(transformers, "NanoChatForCausalLM"):
        pytest.skip("this transformers has no NanoChatForCausalLM")
    tok = Tokenizer.train(TEXTS, vocab_size=300)
    shape = {"hidden_size": 64, "intermediate_size": 256, "num_attention_heads": 4, "num_key_value_heads": 2}
    shape |= {"num_hidden_layers": 3, "max_position_embeddings": 128, "vocab_size": tok.vocab_size}
    ids = {"bos_token_id": tok.bos_id, "eos_token_id": tok.bos_id, "pad_token_id": tok.bos_id}
    config = transformers.NanoChatConfig(**shape, **ids)
    peer = noisy(transformers.NanoChatForCausalLM(config))
    peer.save_pretrained(tmp_path / "theirs")
    tok.save(tmp_path / "theirs")
    import_hf(tmp_path / "theirs", tmp_path / "model")
    ours, _ = nutshell.load(tmp_path / "model")
    ids = torch.tensor([[tok.bos_id, *tok.encode(TEXT)]])
    with torch.no_grad():
        assert (ours(ids) - peer(ids).logits).abs().max() < 1e-4
    again = export_hf(tmp_path / "model", tmp_path / "again", nanochat=True)
    theirs, back = (load_file(folder / "model.safetensors") for folder in (tmp_path / "theirs", again))
    assert set(back) == set(theirs)
    assert all(torch.equal(back[name], tensor) for name, tensor in theirs.items())
    values = json.loads((tmp_path / "theirs" / "config.json").read_text())
    (tmp_path / "theirs" / "config.json").write_text(json.dumps({**values, "intermediate_size": 128}))
    with pytest.raises(ValueError, match="intermediate_size is 128; accepted: 256"):
        import_hf(tmp_path / "theirs", tmp_path / "out")


@pytest.fixture
def broken(tmp_path):
    """Changes one thing of an exported folder."""
    folder = export_hf(save_folder(tmp_path / "model"), tmp_path / "folder")

    def change(*, config=(), **tensors):
        values = json.loads((folder / "config.json").read_text())
        (folder / "config.json").write_text(json.dumps({**values, **dict(config)}))
        weights = load_file(folder / "model.safetensors")
        weights |= {name.replace("__", "."): value for name, value in tensors.items()}
        save_file({name: value for name, value in weights.items() if value is not None}, folder / "model.safetensors")
        return folder

    return change


NORM = "model__layers__1__self_attn__q_norm__weight"


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"config": {"model_type": "qwen2"}}, "has model_type 'qwen2': it has biases and no norms on queries and keys"),
        (
            {"config": {"model_type": "mamba"}},
            "has model_type 'mamba': nutshell has no such model. Accepted: gpt2, qwen3, llama, nanochat, nutshell",
        ),
        ({"config": {"attention_bias": True}}, "attention_bias is True; accepted: False"),
        ({"config": {"num_hidden_layers": 3}}, "has no tensor for model.layers.2.input_layernorm.weight"),
        ({"config": {"num_hidden_layers": 10**9}}, "tensors, too few for the 1000000000 layers of its configuration"),
        ({"config": {"vocab_size": 300}}, "tokens, its weights are for 300"),
        ({NORM: None}, "has no tensor for model.layers.1.self_attn.q_norm.weight"),
        ({NORM: torch.ones(9)}, "has float32 (9,) for model.layers.1.self_attn.q_norm.weight. Accepted:"),
        ({NORM: torch.ones(16, dtype=torch.int8)}, "has int8 (16,) for model.layers.1.self_attn.q_norm.weight. Accepted:"),
        ({"model__layers__1__self_attn__q_proj__bias": torch.ones(64)}, "has the tensor model.layers.1.self_attn.q_proj.bias"),
    ],
)
def test_a_foreign_shape_is_refused_by_name(broken, refused, tmp_path, change, message):
    folder = broken(**change)
    refused(tmp_path, message, "import", "hf", folder, "--out", tmp_path / "out")


def test_what_is_no_model_is_refused(refused, portable, tmp_path):
    folder = export_hf(portable, tmp_path / "folder")
    out = tmp_path / "out"
    refused(tmp_path, "config.json does not exist", "import", "hf", tmp_path / "missing", "--out", out)
    refused(tmp_path, "Accepted: a name that nothing has yet", "import", "hf", folder, "--out", folder)
    (folder / "model.safetensors").write_bytes(b"\x09")
    refused(tmp_path, "model.safetensors is damaged", "import", "hf", folder, "--out", out)
    (folder / "model.safetensors").rename(folder / "pytorch_model.bin")
    refused(tmp_path, "a pickle (pytorch_model.bin) is not opened", "import", "hf", folder, "--out", out)
    (folder / "model.safetensors.index.json").write_text('{"weight_map": 3}')
    refused(tmp_path, "index.json does not say which file has which tensor", "import", "hf", folder, "--out", out)
    (folder / "config.json").write_text("{")
    refused(tmp_path, "config.json is damaged (Expecting", "import", "hf", folder, "--out", out)


def test_the_command_imports(command, portable, tmp_path):
    folder = export_hf(portable, tmp_path / "folder")
    code, out, _ = command("import", "hf", folder, "--out", tmp_path / "model", "--json")
    assert code == 0
    assert json.loads(out)["architecture"] == "portable"
    reply = nutshell.Engine(*nutshell.load(tmp_path / "model")).chat(CHATS[0], temperature=0, max_tokens=4)
    assert list(reply)
