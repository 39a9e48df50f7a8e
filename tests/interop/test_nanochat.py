"""Checkpoints of nanochat: made with its own code where that can be imported, and in its format where not; hostile pickles."""

import json
import os
import pickle
import sys

import pytest
import torch
from small_models import CHATS, TEXTS, greedy, save_folder

import nutshell
from nutshell import checkpoint
from nutshell.interop.hf_nanochat import renamed
from nutshell.interop.nanochat import NAMES, OURS, export_nanochat, import_nanochat
from nutshell.tokenizer import SPECIAL_TOKENS, Tokenizer
from nutshell.tokenizer.chat import render_prompt

TEXT = "What is 12 + 345? It's naïve, 日本語\n\n  so   \n x" * 12


def save_tokenizer(folder):
    """A tokenizer as nanochat pickles it: tiktoken's Encoding of trained ranks."""
    tiktoken = pytest.importorskip("tiktoken", reason="tiktoken is not installed")
    tok = Tokenizer.train(TEXTS, vocab_size=300)
    ranks = {tok.token_bytes(id): id for id in range(tok.vocab_size - len(SPECIAL_TOKENS))}
    special = {name: len(ranks) + i for i, name in enumerate(SPECIAL_TOKENS)}
    encoding = tiktoken.Encoding("rustbpe", pat_str=tok.pattern, mergeable_ranks=ranks, special_tokens=special)
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "tokenizer.pkl").write_bytes(pickle.dumps(encoding))
    return encoding


def save_checkpoint(folder, state, config, step=7):
    folder.mkdir(parents=True, exist_ok=True)
    torch.save(state, folder / f"model_{step:06d}.pt")
    (folder / f"meta_{step:06d}.json").write_text(json.dumps({"step": step, "model_config": config}))


CONFIG = {"sequence_len": 256, "n_layer": 5, "n_head": 4, "n_kv_head": 2, "n_embd": 64, "window_pattern": "SSL"}


def redrawn(state):
    """Weights that all matter: nanochat begins with projections of zero."""
    generator = torch.Generator().manual_seed(3)
    return {name: (w + 0.1 * torch.randn(w.shape, generator=generator)).to(w.dtype) for name, w in state.items()}


@pytest.mark.parametrize("depth", [1, 2, 5])
def test_nanochats_own_code_gives_the_same_logits(tmp_path, monkeypatch, depth):
    monkeypatch.setenv("NANOCHAT_DTYPE", "float32")
    gpt = pytest.importorskip("nanochat.gpt", reason="nanochat's folder is not on PYTHONPATH", exc_type=ImportError)
    encoding = save_tokenizer(tmp_path / "tokenizer")
    config = {**CONFIG, "n_layer": depth, "vocab_size": encoding.n_vocab}
    peer = gpt.GPT(gpt.GPTConfig(**config))
    peer.init_weights()
    peer.load_state_dict(redrawn(peer.state_dict()))
    folder = tmp_path / "base_checkpoints" / "d5"
    save_checkpoint(folder, {f"_orig_mod.{name}": tensor for name, tensor in peer.state_dict().items()}, config)
    import_nanochat(folder, tmp_path / "model")
    ours, tok = nutshell.load(tmp_path / "model")
    ids = [encoding.encode_single_token("<|bos|>"), *encoding.encode_ordinary(TEXT)]
    assert ids == [tok.bos_id, *tok.encode(TEXT)]
    assert len(ids) > 140, "longer than the short window, 129"
    ids = torch.tensor([ids[:256]])
    with torch.no_grad():
        assert (ours(ids) - peer(ids)).abs().max() < 1e-3
    prompt = render_prompt(CHATS[0], tok)
    assert list(peer.generate(prompt, max_tokens=16, temperature=0.0)) == greedy(ours, prompt, 16)


@pytest.fixture
def theirs(tmp_path):
    """(a folder in nanochat's format, the state it holds, its config)"""
    from nutshell.model.build import build_model
    from nutshell.model.config import ModelConfig

    size = save_tokenizer(tmp_path / "d5").n_vocab
    shape = {"depth": 5, "width": 64, "heads": 4, "kv_heads": 2, "head_dim": 16, "context": 256}
    state = build_model(ModelConfig(vocab_size=size, **shape)).state_dict()
    back = {renamed(name, OURS): name for name in NANOCHAT_NAMES}
    assert set(back) == set(state)
    state = {back[name]: tensor for name, tensor in redrawn(state).items()}
    for name in state:
        if state[name].size(0) == size:  # padded, and embeddings in bf16
            state[name] = torch.cat([state[name], torch.ones(20, state[name].size(1))])
    config = {**CONFIG, "vocab_size": size}
    save_checkpoint(tmp_path / "d5", state, config)
    save_checkpoint(tmp_path / "d5", {}, {}, step=3)  # an older one
    return tmp_path / "d5", state, config


LAYER = ("attn.c_q", "attn.c_k", "attn.c_v", "attn.c_proj", "mlp.c_fc", "mlp.c_proj")
NANOCHAT_NAMES = (
    "transformer.wte.weight", "lm_head.weight", "resid_lambdas", "x0_lambdas", "smear_gate.weight", "smear_lambda",
    "backout_lambda",
    *(f"transformer.h.{layer}.{name}.weight" for layer in range(5) for name in LAYER),
    *(f"transformer.h.{layer}.attn.ve_gate.weight" for layer in (0, 2, 4)),
    *(f"value_embeds.{layer}.weight" for layer in (0, 2, 4)),
)  # fmt: skip


def test_every_tensor_arrives_and_the_generation_is_told_by_them(theirs, tmp_path):
    folder, state, config = theirs
    import_nanochat(folder, tmp_path / "now")
    ours, tok = nutshell.load(tmp_path / "now")
    assert (ours.config.rotary_base, ours.config.qk_scale, ours.config.windows()) == (1e5, 1.2, [129, 129, 256, 129, 256])
    for name, tensor in state.items():
        assert torch.equal(ours.state_dict()[renamed(name, OURS)], tensor[: tok.vocab_size])

    march = {name: tensor for name, tensor in state.items() if not name.startswith(("smear", "backout"))}
    save_checkpoint(tmp_path / "d5", march, config, step=8)
    import_nanochat(folder, tmp_path / "march")
    ours = nutshell.load(tmp_path / "march")[0].config
    assert (ours.rotary_base, ours.qk_scale, ours.windows()[0], ours.smear) == (1e5, 1.15, 129, False)

    first = {name: tensor for name, tensor in march.items() if "ve_gate" not in name and "value_embeds" not in name}
    first = {name: tensor for name, tensor in first.items() if "lambdas" not in name}
    save_checkpoint(tmp_path / "d5", first, {key: value for key, value in config.items() if key != "window_pattern"}, step=9)
    import_nanochat(folder, tmp_path / "first")
    ours = nutshell.load(tmp_path / "first")[0].config
    assert (ours.rotary_base, ours.qk_scale, ours.windows()[0], ours.residual_scales) == (1e4, 1.0, 256, False)

    between = {name: torch.ones(2, 32) if "ve_gate" in name else tensor for name, tensor in march.items()}
    save_checkpoint(tmp_path / "d5", between, config, step=10)
    with pytest.raises(ValueError, match="between 16 January and 9 March 2026"):
        import_nanochat(folder, tmp_path / "between")
    assert all(f"{kind}_" in " ".join(NANOCHAT_NAMES) for kind in ("resid", "x0", "backout"))
    assert len(NAMES) == len(OURS) == 12


def test_fine_tuning_and_export_take_it(theirs, tmp_path):
    from nutshell.cli.recipe import with_shape_of
    from nutshell.interop.hf_export import export_hf
    from nutshell.plan.recipe import Recipe
    from nutshell.plan.shape import make_shape

    import_nanochat(theirs[0], tmp_path / "model")
    config = checkpoint.load_model(tmp_path / "model")[0].config
    asked = with_shape_of(Recipe(init_from=str(tmp_path / "model")), str(tmp_path / "model"))
    assert make_shape(asked, asked.depth, config.vocab_size, config.bos_id) == config
    assert json.loads((export_hf(tmp_path / "model", tmp_path / "out") / "config.json").read_text())["short_window"] == 129


SAID_BY_NANOCHAT = {"architecture": "speed", "pattern": "nanochat", "depth": 5, "window_pattern": "SSL", "short_window": 129}


@pytest.mark.parametrize("depth", [1, 2, 5])
def test_what_is_exported_is_imported_again_to_the_bit(tmp_path, depth):
    pytest.importorskip("tiktoken", reason="tiktoken is not installed")
    model = save_folder(tmp_path / "model", **SAID_BY_NANOCHAT | {"depth": depth})
    out = export_nanochat(model, tmp_path / "out")
    assert (out / "base_checkpoints" / f"d{depth}" / "model_000000.pt").is_file()
    import_nanochat(out, tmp_path / "again")
    (ours, tok), (again, same) = nutshell.load(model), nutshell.load(tmp_path / "again")
    assert (again.config, same.merges, same.encode(TEXT)) == (ours.config, tok.merges, tok.encode(TEXT))
    assert (model / "model.safetensors").read_bytes() == (tmp_path / "again" / "model.safetensors").read_bytes()
    assert torch.load(out / "tokenizer" / "token_bytes.pt", weights_only=True).tolist() == tok.token_byte_lengths().tolist()


def test_nanochats_own_reader_opens_what_is_exported(tmp_path, monkeypatch):
    """Its build_model with strict names, its tokenizer, its prompt, its logits and its greedy reply."""
    monkeypatch.setenv("NANOCHAT_DTYPE", "float32")
    monkeypatch.setenv("NANOCHAT_BASE_DIR", str(tmp_path / "out"))
    peer = pytest.importorskip("nanochat.checkpoint_manager", reason="no nanochat on PYTHONPATH", exc_type=ImportError)
    model = save_folder(tmp_path / "model", **SAID_BY_NANOCHAT)
    meta = {"stage": "sft", "step": 12}
    checkpoint.save_model_folder(tmp_path / "chat", *nutshell.load(model), meta=meta)
    export_nanochat(tmp_path / "chat", tmp_path / "out")
    theirs, tokenizer, facts = peer.load_model("sft", torch.device("cpu"), phase="eval")
    ours, tok = nutshell.load(model)
    assert facts["step"] == 12
    prompt = render_prompt(CHATS[0], tok)
    conversation = {"messages": [*CHATS[0], {"role": "assistant", "content": ""}]}
    assert tokenizer.render_for_completion(conversation) == prompt
    ids = torch.tensor([[tok.bos_id, *tok.encode(TEXT)][:256]])
    assert ids.tolist() == [tokenizer.encode(TEXT, prepend="<|bos|>")[:256]]
    with torch.no_grad():
        assert (ours(ids) - theirs(ids)).abs().max() < 1e-4
    assert list(theirs.generate(prompt, max_tokens=16, temperature=0.0)) == greedy(ours, prompt, 16)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"architecture": "portable"}, "nanochat's models are those of speed"),
        (
            {"smear": False, "short_window": 64},
            "has smear False, short_window 64, and nanochat's code has smear True, short_window 129",
        ),
        ({"head_dim": 32}, "has width 64, and nanochat's code has width 128"),
        ({"short_window": 0}, "has short_window 64, and nanochat's code has short_window 129"),
    ],
)
def test_what_nanochat_does_otherwise_is_named(refused, tmp_path, changes, message):
    shape = SAID_BY_NANOCHAT | changes
    if shape["architecture"] == "portable":
        shape = {"architecture": "portable"}
    model = save_folder(tmp_path / "model", **shape)
    refused(tmp_path, message, "export", "nanochat", model, tmp_path / "out")


def test_a_full_disk_is_named_and_nothing_stays(refused, command, tmp_path, monkeypatch):
    pytest.importorskip("tiktoken", reason="tiktoken is not installed")
    resource = pytest.importorskip("resource", reason="Windows has no limit for files")
    model = save_folder(tmp_path / "model", **SAID_BY_NANOCHAT)
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, before[1]))
    try:
        code, out, err = command("export", "nanochat", model, tmp_path / "out")
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
    assert (code, out) == (2, "")
    assert "out: File too large. Nothing was left behind. Make room on the disk." in err
    assert [*tmp_path.iterdir()] == [model]


class Hostile:
    def __reduce__(self):
        return os.mkdir, (self.path,)


@pytest.mark.parametrize("file", ["tokenizer.pkl", "model_000007.pt"])
def test_a_pickle_that_would_run_something_is_refused_and_runs_nothing(theirs, refused, tmp_path, file):
    trap = Hostile()
    trap.path = str(tmp_path / "trapped")
    if file == "tokenizer.pkl":
        (theirs[0] / file).write_bytes(pickle.dumps({"mergeable_ranks": {}, "special_tokens": {}, "pat_str": trap}))
    else:
        torch.save({"transformer.wte.weight": trap}, theirs[0] / file)
    refused(tmp_path, file, "import", "nanochat", theirs[0], "--out", tmp_path / "out")
    assert not (tmp_path / "trapped").exists()


def test_what_is_no_checkpoint_is_refused(theirs, refused, tmp_path):
    folder, out = theirs[0], tmp_path / "out"
    refused(tmp_path, "missing does not exist", "import", "nanochat", tmp_path / "missing", "--out", out)
    refused(tmp_path, "holds no model_NNNNNN.pt", "import", "nanochat", tmp_path, "--out", out)
    (folder / "model_000007.pt").write_bytes(b"PK\x03\x04 no")
    refused(tmp_path, "is no file of tensors alone", "import", "nanochat", folder, "--out", out)
    torch.save(theirs[1] | {"lm_head.weight": 5}, folder / "model_000007.pt")
    refused(tmp_path, "holds other things than tensors", "import", "nanochat", folder, "--out", out)
    torch.save({name: value for name, value in theirs[1].items() if "c_fc" not in name}, folder / "model_000007.pt")
    refused(tmp_path, "has no tensor for blocks.0.mlp.up.weight", "import", "nanochat", folder, "--out", out)
    (folder / "meta_000007.json").write_text("{}")
    refused(tmp_path, "a meta file without 'model_config'", "import", "nanochat", folder, "--out", out)
    (folder / "tokenizer.pkl").write_bytes(pickle.dumps(3)[:2])
    refused(tmp_path, "is not a tokenizer of nanochat", "import", "nanochat", folder, "--out", out)
    (folder / "tokenizer.pkl").unlink()
    refused(tmp_path, "holds no tokenizer.pkl", "import", "nanochat", folder, "--out", out)


def test_the_command_imports_it(theirs, command, tmp_path):
    code, out, _ = command("import", "nanochat", theirs[0], "--out", tmp_path / "model")
    assert code == 0
    assert "speed, 0.3M parameters" in out
    assert "tiktoken.core" in sys.modules, "the pickle was made with it, and opened without"
