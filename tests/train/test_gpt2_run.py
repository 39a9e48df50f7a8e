"""A run of the `gpt2` architecture through all stages, and one that begins with a GPT-2's weights."""

import math
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from decoding import Rows
from tiny_run import RUNTIME, STEPS, lines, quick_evaluations, recipe

import nutshell
from nutshell import checkpoint
from nutshell.cli.recipe import with_shape_of
from nutshell.config import load_toml
from nutshell.model.build import build_model
from nutshell.model.config import ModelConfig
from nutshell.plan.plan import draft_plan
from nutshell.plan.recipe import Recipe
from nutshell.plan.shape import make_shape
from nutshell.train.pipeline import run_stages

RECIPES = Path(__file__).parents[2] / "recipes"
SHAPE = {"architecture": "gpt2", "depth": 2, "heads": 2}


def test_every_stage_trains_it(tmp_path):
    with quick_evaluations():
        run = run_stages(recipe(tmp_path / "run", **SHAPE), RUNTIME)
    assert run.plan.model == make_shape(run.plan.recipe, 2, run.plan.model.vocab_size, run.plan.model.bos_id)
    assert (run.plan.model.tied, run.plan.model.mlp_width, run.plan.model.window_pattern) == (True, 256, "L")
    losses = [line["loss"] for line in lines(tmp_path / "run", "pretrain") if "loss" in line]
    assert losses[0] == pytest.approx(math.log(run.plan.model.vocab_size), rel=0.02)
    assert losses[-1] < losses[0] - 0.3
    for stage, steps in STEPS.items():
        assert checkpoint.latest(tmp_path / "run" / stage).name == f"step-{steps:06d}"
    begun, last = (dict(nutshell.load(tmp_path / "run" / stage)[0].named_parameters()) for stage in ("sft", "rl"))
    fixed = {name for name, p in last.items() if torch.equal(p, begun[name])}
    assert "blocks.1.mlp.up.weight" not in fixed
    assert fixed == {name for name in last if name.endswith((".bias", "norm.weight"))}, "RL leaves them alone"


def test_the_reproduction_recipe_is_gpt2s_smallest():
    plan = draft_plan(load_toml(Recipe, RECIPES / "gpt2-124m"))
    assert (plan.model.mlp_width, plan.model.tied, plan.model.head_dim) == (3072, True, 64)
    assert sum(plan.parameters.values()) == 124_439_808 + (50304 - 50257) * 768  # Radford et al. 2019, and a rounder vocabulary


@pytest.mark.parametrize("stage", ["pretrain", "sft"])
def test_fine_tuning_begins_with_its_weights(tmp_path, stage):
    tok = nutshell.Tokenizer.train(["once upon a time"] * 9, vocab_size=280, pattern="gpt2")
    config = ModelConfig(
        vocab_size=tok.vocab_size, depth=2, width=64, heads=2, kv_heads=2, head_dim=32, mlp_width=96, context=128, tied=True,
        bos_id=tok.bos_id, architecture="gpt2", window_pattern="L",
    )  # fmt: skip
    model = build_model(config)
    folder = checkpoint.save_model_folder(tmp_path / "model", model, tok)
    asked = with_shape_of(replace(load_toml(Recipe, RECIPES / "gpt2-finetune"), init_from=str(folder)), str(folder))
    assert make_shape(asked, asked.depth, tok.vocab_size, tok.bos_id) == config
    changes = {name: getattr(asked, name) for name in ("init_from", "tokenizer", "vocab_size", *SHAPE, "mlp_width", "tied")}
    run_stages(recipe(tmp_path / "run", **changes, kv_heads=2, head_dim=32, window_pattern="L"), RUNTIME, (stage,))
    first = next(line["loss"] for line in lines(tmp_path / "run", stage) if "loss" in line)
    assert first == pytest.approx(math.log(tok.vocab_size), rel=0.05)
    assert checkpoint.latest(tmp_path / "run").parent.name == stage


def test_decoding_equals_whole_rows():
    torch.manual_seed(0)
    shape = {"depth": 2, "width": 48, "heads": 3, "kv_heads": 3, "head_dim": 16, "mlp_width": 64, "context": 32, "tied": True}
    model = build_model(ModelConfig(vocab_size=50, architecture="gpt2", window_pattern="L", **shape))
    for parameter in model.parameters():
        parameter.data.add_(0.1 * torch.randn(parameter.shape))
    ids = torch.randint(1, 50, (3, 32))
    whole, decoding, rows = model(ids), Rows(model, 3), torch.arange(3)
    counts = torch.tensor([5, 20, 1])
    for row, count in enumerate(counts.tolist()):
        first = decoding.feed(ids[row : row + 1, :count], slice(row, row + 1), last_only=True)
        assert torch.allclose(first[0, 0], whole[row, count - 1], atol=1e-5)
    for _ in range(12):
        new = ids[rows, counts].unsqueeze(1)
        assert torch.allclose(decoding.feed(new)[:, 0], whole[rows, counts], atol=1e-5)
        counts += 1
    frozen = model.for_inference()
    assert torch.equal(frozen(ids), whole)
    assert (model.set_precision(torch.bfloat16).for_inference()(ids) - whole).abs().max() < 0.3
