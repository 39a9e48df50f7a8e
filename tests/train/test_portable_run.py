"""A run of the `portable` architecture through all stages, and what transformers makes of the folders it saves."""

import json
import math
import os
from dataclasses import replace

import pytest
import torch
from tiny_run import RUNTIME, STEPS, lines, quick_evaluations, recipe

import nutshell
from nutshell import checkpoint
from nutshell.model.build import build_model
from nutshell.model.config_file import config_from_json
from nutshell.model.flops import matrix_parameters
from nutshell.plan.estimate import describe
from nutshell.plan.plan import Hardware, make_plan
from nutshell.plan.recipe import Recipe
from nutshell.plan.record import load_plan
from nutshell.plan.shape import make_shape
from nutshell.train.pipeline import run_stages

SHAPE = {"architecture": "portable", "depth": 2, "heads": 2, "kv_heads": 1, "head_dim": 32}


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    """An uninterrupted run of all stages."""
    folder = tmp_path_factory.mktemp("portable") / "run"
    with quick_evaluations():
        run_stages(recipe(folder, **SHAPE), RUNTIME)
    return folder


@pytest.fixture(scope="module")
def transformers():
    os.environ.setdefault("HF_HUB_OFFLINE", "1")
    return pytest.importorskip("transformers", minversion="4.51")


def noisy(model):
    """Weights that all matter: a few steps of training leave most of them near where they were drawn."""
    generator = torch.Generator().manual_seed(5)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.1 * torch.randn(parameter.shape, generator=generator))
    return model


def test_every_stage_trains_it(trained):
    plan = load_plan(trained)
    assert plan.model == make_shape(plan.recipe, 2, plan.model.vocab_size, plan.model.bos_id)
    assert (plan.model.architecture, plan.model.window_pattern, plan.model.mlp_width) == ("portable", "L", 192)
    for stage, steps in STEPS.items():
        assert checkpoint.latest(trained / stage).name == f"step-{steps:06d}"
    losses = [line["loss"] for line in lines(trained, "pretrain") if "loss" in line]
    assert losses[0] == pytest.approx(math.log(plan.model.vocab_size), rel=0.02)
    scores = [line["eval"]["val_bpb"] for line in lines(trained, "pretrain") if "eval" in line]
    assert scores == sorted(scores, reverse=True)
    assert len(scores) == 4
    assert nutshell.Tokenizer([], "qwen2").pattern == nutshell.load(trained)[1].pattern


def test_reinforcement_leaves_the_norms_alone(trained):
    begun = dict(nutshell.load(trained / "sft")[0].named_parameters())
    changed = {name for name, p in nutshell.load(trained / "rl")[0].named_parameters() if not torch.equal(p, begun[name])}
    assert {"lm_head.weight", "model.layers.1.mlp.gate_proj.weight"} <= changed
    assert not [name for name in changed if name.endswith("norm.weight")]


@pytest.mark.parametrize("tied", [False, True])
def test_transformers_opens_the_folder_and_says_the_same(transformers, trained, tmp_path, tied):
    model, tok = nutshell.load(trained)
    model = noisy(build_model(replace(model.config, tied=tied, rotary_base=10_000.0))).eval()
    folder = checkpoint.save_model_folder(tmp_path / "model", model, tok)
    peer, facts = transformers.AutoModelForCausalLM.from_pretrained(folder, output_loading_info=True, dtype=torch.float32)
    assert type(peer).__name__ == "Qwen3ForCausalLM"
    assert not any(facts.values()), facts
    assert sum(p.numel() for p in peer.parameters()) == sum(p.numel() for p in model.parameters())
    assert peer.generation_config.eos_token_id == tok.special_id("<|assistant_end|>")

    words = transformers.AutoTokenizer.from_pretrained(folder)
    text = "What is 12 + 30? It's naïve, 日本語\n\n  so"
    assert words(text)["input_ids"] == tok.encode(text)
    prompts = [[tok.bos_id, *tok.encode(text)] for text in ("Once upon a time", "It", "The sum of 2 and 3 is", "Cats")]
    replies = nutshell.Engine(model, tok).sample(prompts, 1, sampling(20))
    assert max(len(ours[0].ids) for ours in replies) > 3
    for prompt, ours in zip(prompts, replies, strict=True):
        ids = torch.tensor([prompt])
        with torch.no_grad():
            assert (model(ids) - peer(ids).logits).abs().max() < 1e-4
        mask = torch.ones_like(ids)
        theirs = peer.generate(ids, attention_mask=mask, max_new_tokens=20, do_sample=False, pad_token_id=tok.bos_id)
        theirs = theirs[0, len(prompt) :].tolist()
        assert theirs[: len(ours[0].ids)] == ours[0].ids


def sampling(max_tokens):
    from nutshell.infer.sampling import Sampling

    return Sampling(max_tokens=max_tokens, temperature=0)


def test_what_transformers_saves_is_opened_too(transformers, trained, tmp_path):
    """Its config.json has other keys (rope_parameters), its tensors the same names."""
    from safetensors.torch import load_file

    peer = transformers.AutoModelForCausalLM.from_pretrained(checkpoint.latest(trained))
    peer.save_pretrained(tmp_path)
    model = build_model(config_from_json(json.loads((tmp_path / "config.json").read_text())))
    model.load_state_dict(load_file(tmp_path / "model.safetensors"))
    ours, _ = nutshell.load(trained)
    assert model.config == ours.config
    for name, value in model.state_dict().items():
        assert torch.equal(value, ours.state_dict()[name])


def test_the_tied_model_trains(tmp_path):
    run = run_stages(recipe(tmp_path / "run", **SHAPE, tied=True), RUNTIME, ("pretrain",))
    losses = [line["loss"] for line in lines(tmp_path / "run", "pretrain") if "loss" in line]
    assert losses[0] == pytest.approx(math.log(run.plan.model.vocab_size), rel=0.02)
    assert losses[-1] < losses[0]
    assert "lm_head.weight" not in checkpoint.load_file(checkpoint.latest(tmp_path / "run") / "model.safetensors")


def test_one_dial_makes_both_architectures_about_as_large():
    for depth in (2, 4, 12, 20):
        sizes = [
            matrix_parameters(make_shape(Recipe(architecture=name, depth=depth), depth, 8192)) for name in ("speed", "portable")
        ]
        assert sizes[1] == pytest.approx(sizes[0], rel=0.06)
    plan = make_plan(Recipe(architecture="portable", depth=4, tied=True), Hardware(), vocab_size=4096)
    assert "portable, depth 4, width 256, heads 4 (4 kv) x 64, context 512, windows 512," in describe(plan)
    assert "norms" in plan.parameters


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"architecture": "portable", "window_pattern": "SL"}, "window_pattern is 'SL'; portable has no windows"),
        ({"tied": True}, "tied is True; speed has neither. Leave them out, or use portable"),
        ({"mlp_width": 99}, "mlp_width is 99"),
    ],
)
def test_what_an_architecture_does_not_have_is_refused(settings, message):
    with pytest.raises(ValueError, match=message):
        make_plan(Recipe(depth=2, **settings), Hardware(), vocab_size=512)


def test_a_plan_from_before_its_shape_had_switches_is_resumed(tmp_path):
    """It says nothing of qk_norm and norm_eps, which were as their defaults are."""
    asked = recipe(tmp_path / "run", architecture="portable")
    whole = run_stages(asked, RUNTIME, ("pretrain",)).plan
    file = tmp_path / "run" / "plan.json"
    old = json.loads(file.read_text())
    for part in (old["model"], old["recipe"]):
        del part["qk_norm"], part["norm_eps"]
    file.write_text(json.dumps(old))
    assert load_plan(tmp_path / "run") == whole
    run_stages(asked, RUNTIME, ("midtrain",))
    assert checkpoint.latest(tmp_path / "run").parent.name == "midtrain"
