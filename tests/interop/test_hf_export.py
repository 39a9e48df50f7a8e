"""Folders for transformers: opened there they give the same logits, the same greedy text and the same prompt of a chat."""

import json
from pathlib import Path

import pytest
import torch
from small_models import CHATS, greedy, save_folder

import nutshell
from nutshell import checkpoint
from nutshell.files import sole_writer
from nutshell.interop.hf_export import export_hf, results
from nutshell.interop.hf_import import import_hf
from nutshell.model.config_file import config_from_json
from nutshell.tokenizer.chat import render_prompt


@pytest.fixture(scope="module")
def transformers():
    return pytest.importorskip("transformers", minversion="4.51", reason="transformers is not installed")


SPEED = {"architecture": "speed", "depth": 4, "window_pattern": "SL", "context": 64}
PLAIN = {**SPEED, "smear": False, "backout": False, "value_embeddings": False, "residual_scales": False}
KINDS = {
    "portable": {},
    "tied": {"tied": True},
    "speed": SPEED,
    "two layers": {**SPEED, "depth": 2, "short_window": 9},
    "no switch": {**PLAIN, "softcap": 0.0},
    "nanochat": {**PLAIN, "window_pattern": "L", "qk_scale": 1.0},
    "nanochat without a softcap": {**PLAIN, "window_pattern": "L", "qk_scale": 1.0, "softcap": 0.0},
}


@pytest.fixture(params=KINDS)
def exported(request, transformers, tmp_path):
    """(our model, our tokenizer, their model, their tokenizer)"""
    folder = save_folder(tmp_path / "model", **KINDS[request.param])
    nanochat = request.param.startswith("nanochat")
    if nanochat and not hasattr(transformers, "NanoChatForCausalLM"):
        pytest.skip("this transformers has no NanoChatForCausalLM")
    out = export_hf(folder, tmp_path / "out", nanochat=nanochat)
    assert (out / "modeling_nutshell.py").exists() == ("architecture" in KINDS[request.param] and not nanochat)
    classes, remote = (transformers.AutoModelForCausalLM, transformers.AutoTokenizer), {"trust_remote_code": True}
    peer, facts = classes[0].from_pretrained(out, output_loading_info=True, **remote)
    assert not any(facts.values()), facts
    return *nutshell.load(folder), peer.eval(), classes[1].from_pretrained(out, **remote)


def test_transformers_says_the_same(exported):
    ours, tok, peer, words = exported
    assert sum(p.numel() for p in peer.parameters()) == sum(p.numel() for p in ours.parameters())
    for chat in CHATS:
        prompt = render_prompt(chat, tok)
        assert words.apply_chat_template(chat, add_generation_prompt=True, return_dict=True)["input_ids"] == prompt
        ids = torch.tensor([prompt])
        with torch.no_grad():
            assert (ours(ids) - peer(ids).logits).abs().max() < 1e-4
        settings = {"max_new_tokens": 24, "do_sample": False, "eos_token_id": None}
        for use_cache in (True, False):
            theirs = peer.generate(ids, attention_mask=torch.ones_like(ids), use_cache=use_cache, **settings)
            assert theirs[0, len(prompt) :].tolist() == greedy(ours, prompt, 24)


def test_padding_on_either_side_changes_nothing(exported):
    ours, tok, peer, _ = exported
    prompts = [render_prompt(chat, tok) for chat in CHATS]
    longest = max(map(len, prompts))
    for left in (True, False):
        ids, mask = torch.full((3, longest), tok.bos_id), torch.zeros(3, longest, dtype=torch.long)
        for row, prompt in enumerate(prompts):
            where = slice(longest - len(prompt), None) if left else slice(len(prompt))
            ids[row, where], mask[row, where] = torch.tensor(prompt), 1
        with torch.no_grad():
            theirs = peer(ids, attention_mask=mask).logits
            for row, prompt in enumerate(prompts):
                assert (theirs[row][mask[row] == 1] - ours(torch.tensor([prompt]))[0]).abs().max() < 1e-4
        if left:
            replies = peer.generate(ids, attention_mask=mask, max_new_tokens=12, do_sample=False, eos_token_id=None)
            assert replies[:, longest:].tolist() == [greedy(ours, prompt, 12) for prompt in prompts]


def test_their_generation_ends_where_ours_does(exported):
    _, tok, peer, _ = exported
    ends = {tok.special_id(f"<|{name}|>") for name in ("assistant_end", "user_start", "bos")}
    assert set(peer.generation_config.eos_token_id) == ends
    assert peer.generation_config.pad_token_id == tok.bos_id


def test_what_transformers_fine_tunes_and_saves_keeps_its_loss(exported, transformers, tmp_path):
    ours, tok, peer, _ = exported
    ids = torch.tensor([render_prompt(CHATS[0], tok)])
    theirs = peer(ids, labels=ids).loss
    with torch.no_grad():
        assert theirs.item() == pytest.approx(ours(ids[:, :-1], ids[:, 1:]).item(), abs=1e-4)
    theirs.backward()
    assert all(p.grad is not None for p in peer.parameters())
    peer.save_pretrained(tmp_path / "again")
    again = transformers.AutoModelForCausalLM.from_pretrained(tmp_path / "again", trust_remote_code=True)
    with torch.no_grad():
        assert torch.equal(again(ids).logits, peer(ids).logits)


def test_the_card_has_the_numbers_of_the_report_and_its_example_runs(transformers, tmp_path, monkeypatch, capsys):
    run = tmp_path / "owl"
    folder = save_folder(run / "sft" / "step-000009", architecture="speed", depth=3, window_pattern="L")
    (run / "report.json").write_text(json.dumps({"stages": {"pretrain": {"val_bpb": 1.23456}, "sft": {"gsm8k": 0.5}}}))
    model, tok, _ = checkpoint.load_model(folder)
    checkpoint.save_model_folder(folder, model, tok, meta={"stage": "sft", "step": 9})
    card = (export_hf(folder, tmp_path / "out") / "README.md").read_text()
    assert "# owl\n" in card
    assert "nutshell, sft step 9: 1" in card
    assert "| val_bpb | 1.235 |  |\n| gsm8k |  | 0.5 |" in card
    monkeypatch.chdir(tmp_path / "out")
    exec(card.split("```python\n")[1].split("```")[0], {})
    assert capsys.readouterr().out.endswith("\n")


def test_a_model_at_the_root_of_a_disk_has_no_report():
    """/model, as containers mount it, has no folder two above: it was an IndexError."""
    assert results(Path("/model")) == ""


def test_the_command_exports_and_refuses(command, refused, portable, tmp_path):
    code, out, _ = command("export", "hf", portable, tmp_path / "out", "--json")
    assert code == 0
    assert json.loads(out)["path"] == str(tmp_path / "out")
    assert config_from_json(json.loads((tmp_path / "out" / "config.json").read_text())).architecture == "portable"
    refused(tmp_path, "Accepted: a name that nothing has yet", "export", "hf", portable, tmp_path / "out")
    refused(tmp_path, "does not exist", "export", "hf", tmp_path / "missing", tmp_path / "other")
    refused(tmp_path, "--nanochat is for speed", "export", "hf", portable, tmp_path / "other", "--nanochat")


def test_what_transformers_nanochat_lacks_is_named(refused, speed, tmp_path):
    message = "lacks smear, backout, value_embeddings, residual_scales, qk_scale, window_pattern, which the model has"
    refused(tmp_path, message, "export", "hf", speed, tmp_path / "out", "--nanochat")
    folder = save_folder(tmp_path / "model", **{**PLAIN, "qk_scale": 1.0})
    refused(tmp_path, "trained with --window-pattern L. Or", "export", "hf", folder, tmp_path / "out", "--nanochat")


@pytest.mark.parametrize("command", ["export hf", "export gguf --type f32", "export html", "import hf"])
def test_a_disk_that_is_full_leaves_nothing(portable, tmp_path, run_command, command):
    """A limit on the size of files stands for it."""
    resource = pytest.importorskip("resource", reason="needs limits of processes")
    source = portable if "export" in command else export_hf(portable, tmp_path / "theirs")
    out = ["out.html"] if "export" in command else ["--out", "out"]
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (50_000, hard))
    try:
        code, _, error = run_command([*command.split(), str(source), *out])
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert (code, error.startswith("nutshell: error: cannot write out")) == (2, True), error
    assert [path.name for path in tmp_path.iterdir()] == ["theirs"] * (source != portable)


@pytest.mark.parametrize("make", [export_hf, import_hf])
def test_what_was_killed_leaves_nothing_for_ever(portable, tmp_path, make):
    """kill -9 left a hidden folder as large as the model at each try; two at once do not delete each other's."""
    source = portable if make is export_hf else export_hf(portable, tmp_path / "theirs")
    made = tmp_path / "made"
    made.mkdir()
    (made / ".tmp-out").mkdir()
    (made / ".tmp-out" / "model.safetensors").touch()
    with sole_writer(made / "out"), pytest.raises(ValueError, match="another process is writing"):
        make(source, made / "out")
    assert [path.name for path in made.iterdir()] == [".tmp-out"]
    make(source, made / "out")
    assert [path.name for path in made.iterdir()] == ["out"]
