"""Variants on the same text from the same seeds: what may be varied, what is compared, and going on."""

import json
import statistics
from dataclasses import replace
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from tiny_run import RUNTIME, recipe

from nutshell import checkpoint
from nutshell.metrics import read_metrics
from nutshell.plan.recipe import Recipe
from nutshell.plan.record import load_plan
from nutshell.plan.studies import Ablation
from nutshell.plan.variants import read_variants, read_vary
from nutshell.report.ablation import page, summarise
from nutshell.run.folder import Preempted
from nutshell.train import ablate, cells
from nutshell.train.ablate import plan_cells, run_ablation
from nutshell.train.stage import TrainingDiverged


def ablation(out, *vary: str, **changes) -> Ablation:
    return Ablation(**{**vars(recipe(out)), "vary": vary, "seeds": 2, **changes})


def test_a_variant_in_another_dtype_knows_the_peak_of_its_gpu(tmp_path, monkeypatch):
    """Its cells had no MFU on a GPU, whose peak comes from a table that nobody passed on."""
    asked: dict = {}
    monkeypatch.setattr(ablate, "start_runtime", lambda **settings: asked.update(settings) or RUNTIME)
    variant = read_variants(ablation(tmp_path / "out", "dtype=bfloat16,float32"))[0]
    assert ablate.runtime_for(variant, RUNTIME) == RUNTIME
    assert asked["gpu_peak_flops"]("NVIDIA H100 80GB HBM3") > 5e14


def test_an_ablation_compares_variants_and_goes_on(tmp_path, monkeypatch):
    out = tmp_path / "out"
    asked = ablation(out, "smear=true,false")
    trained, run_stages = [], cells.run_stages

    def stopped_at_the_third(recipe, runtime, stages):
        trained.append(Path(recipe.out).name)
        if len(trained) == 3:
            raise Preempted("stopped")
        return run_stages(recipe, runtime, stages)

    monkeypatch.setattr(cells, "run_stages", stopped_at_the_third)
    with pytest.raises(Preempted):
        run_ablation(asked, RUNTIME)
    variants = json.loads((out / "ablation.json").read_text())["variants"]
    assert [row["seeds"] for row in variants] == [1, 1]  # grows with every cell
    record = run_ablation(asked, RUNTIME)
    assert trained == ["base-seed42", "smear=false-seed42", "base-seed43", "base-seed43", "smear=false-seed43"]

    # One text, one tokenizer, one number of steps; weights and order differ by seed.
    runs = [out / f"{name}-seed{seed}" for name in ("base", "smear=false") for seed in (42, 43)]
    manifests = [checkpoint.read_manifest(checkpoint.latest(run))["meta"] for run in runs]
    assert manifests[0]["data"] == manifests[2]["data"]
    assert {manifest["step"] for manifest in manifests} == {7}
    assert len({(run / "pretrain" / "step-000007" / "tokenizer.json").read_bytes() for run in runs}) == 1
    assert len({next(line["loss"] for line in read_metrics(run) if "loss" in line) for run in runs}) == 4
    assert all(list(line["eval"]) == ["val_bpb"] for line in read_metrics(runs[0]) if "eval" in line)

    # The table is what the runs say.
    bpb = [[line["eval"]["val_bpb"] for line in read_metrics(run) if "eval" in line][-1] for run in runs]
    row = record["variants"][1]
    pairs = [bpb[2] - bpb[0], bpb[3] - bpb[1]]
    assert row["difference"] == pytest.approx(statistics.mean(pairs))
    assert row["standard_error"] == pytest.approx(abs(pairs[0] - pairs[1]) / 2)
    assert record["variants"][0]["difference"] is None
    assert json.loads((out / "ablation.json").read_text()) == json.loads(json.dumps(record))
    assert f"| smear=false | 2 | {row['bpb']:.4f} |" in (out / "ablation.md").read_text()

    # One setting more: what is there counts. Another recipe in the folder is refused by name.
    del trained[:]
    trained += ["-"] * 3
    run_ablation(replace(asked, vary=("smear=true,false", "optimizer.matrix_lr=0.2"), each=True, seeds=1), RUNTIME)
    assert trained[3:] == ["optimizer.matrix_lr=0.2-seed42"]
    assert load_plan(out / trained[3]).recipe.optimizer.matrix_lr == 0.2
    with pytest.raises(
        ValueError, match=r"base-seed42 was trained with other settings: schedule\.warmup_steps was 40, now it is 3"
    ):
        run_ablation(replace(asked, schedule=replace(asked.schedule, warmup_steps=3)), RUNTIME)
    with pytest.raises(ValueError, match="is the folder of a run"):
        run_ablation(ablation(runs[0], "smear=false"), RUNTIME)


def test_a_variant_that_diverges_is_named_and_the_others_go_on(tmp_path, monkeypatch):
    def diverge(recipe, runtime, stages):
        if recipe.optimizer.matrix_lr > 1:
            raise TrainingDiverged("ten steps without a finite loss")
        return run_stages(recipe, runtime, stages)

    run_stages = cells.run_stages
    monkeypatch.setattr(cells, "run_stages", diverge)
    record = run_ablation(ablation(tmp_path / "out", "optimizer.matrix_lr=100", seeds=1), RUNTIME)
    assert [(row["bpb"] is None, row["diverged"]) for row in record["variants"]] == [(False, 0), (True, 1)]
    assert "| optimizer.matrix_lr=100.0 | 1 | diverged |" in (tmp_path / "out" / "ablation.md").read_text()


def test_a_grid_or_each_setting_alone():
    asked = ablation("out", "depth=1,2,3", "smear=true,false", "window_pattern=L,SSL")
    assert len(read_variants(asked)) == 12
    alone = read_variants(replace(asked, each=True))
    assert [variant.folder for variant in alone] == [
        "window_pattern=L", "window_pattern=SSL", "window_pattern=L,smear=false",
        "depth=2,window_pattern=L", "depth=3,window_pattern=L",
    ]  # fmt: skip
    assert alone[0].name == "depth=1, smear=true, window_pattern=L"
    nested = read_variants(ablation("out", "stages.pretrain.lr_fraction=0.5", "schedule.warmup_steps=1"))
    assert [v.recipe.stages.pretrain.lr_fraction for v in nested] == [1.0, 1.0, 0.5, 0.5]
    assert [v.recipe.schedule.warmup_steps for v in nested] == [40, 1, 40, 1]
    assert nested[3].recipe.stages.pretrain.steps == 7
    assert all(type(v.recipe) is Recipe for v in nested)


def test_variants_train_on_as_many_tokens():
    own = plan_cells(read_variants(ablation("out", "depth=1,2")), Path("out"), RUNTIME)
    assert [(cell["tokens_per_step"], cell["stages"].pretrain.steps) for cell in own] == [(512, 7)] * 2
    own = plan_cells(read_variants(ablation("out", "tokens_per_step=512,1024")), Path("out"), RUNTIME)
    assert [cell["stages"].pretrain.steps for cell in own] == [7, 4]
    (_, longer) = plan_cells(read_variants(ablation("out", "stages.pretrain.steps=7,9")), Path("out"), RUNTIME)
    assert longer == {}  # its own
    (_, larger) = plan_cells(read_variants(ablation("out", "vocab_size=512,600")), Path("out"), RUNTIME)
    assert (larger["tokenizer"], larger["vocab_size"]) == ("", 600)


@pytest.mark.parametrize(
    ("vary", "message"),
    [
        ((), "nothing to vary"),
        (("smaer=true,false",), "no setting 'smaer'. Did you mean smear?"),
        (("matrix_lr=1,2",), r"Did you mean optimizer\.matrix_lr\?"),
        (("smear=yes,no",), "accepted for smear are true or false"),
        (("depth=1,1.5",), "accepted for depth are whole numbers"),
        (("optimizer.matrix_lr=0.1,much",), "are numbers"),
        (("optimizer.matrix_lr=0.1,-1",), "matrix_lr is -1.0; accepted"),
        (("smear=true",), "one that differs from True"),
        (("smear",), "two or more values"),
        (("optimizer.matrix_lr=0.1,0.10",), "two or more values that differ"),
        (("smear=false", "smear=false"), "names smear twice"),
        (("architecture=speed,fast",), "architecture is 'fast'"),
        (("damaged_shards=stop,never",), "damaged_shards is 'never'"),
        (("seed=1,2",), "trains exactly as seed=1.*--seeds"),
        (("sft=a.jsonl,b.jsonl",), "trains exactly as"),
        (("eval_items=1,2",), "trains exactly as"),
        (("stages.rl.steps=1,2",), "trains exactly as"),
        (("width=64,65",), "not a multiple of head_dim"),
    ],
)
def test_what_cannot_be_varied_is_refused_before_anything_is_made(tmp_path, vary, message):
    with pytest.raises(ValueError, match=message):
        run_ablation(ablation(tmp_path / "out", *vary), RUNTIME)
    assert not (tmp_path / "out").exists()


def test_a_budget_needs_a_depth(tmp_path):
    with pytest.raises(ValueError, match="needs --depth"):
        run_ablation(ablation(tmp_path / "out", "smear=false", depth=0, budget="1h"), RUNTIME)


@given(st.lists(st.floats(1e-6, 1e3), min_size=2, max_size=5, unique=True))
def test_numbers_are_read_as_they_are_written(values):
    assert read_vary("optimizer.head_lr=" + ",".join(map(repr, values)), Recipe()) == ("optimizer.head_lr", values)


def test_tuples_are_written_in_brackets():
    assert read_vary("eval_tasks=[gsm8k, arc-easy],(none)", Recipe())[1] == [("gsm8k", "arc-easy"), ("none",)]


@given(st.lists(st.tuples(st.floats(0.5, 5), st.floats(-0.1, 0.1)), min_size=2, max_size=6))
def test_what_a_seed_does_to_both_cancels_out(seeds):
    """However far the seeds lie apart, a constant difference has no standard error."""
    result = {"tokens_per_second": 1.0, "seconds": 1.0}
    cells = {
        "a": {str(n): {"bpb": base, **result} for n, (base, _) in enumerate(seeds)},
        "b": {str(n): {"bpb": base + 0.25, **result} for n, (base, _) in enumerate(seeds)},
        "c": {str(n): {"bpb": base + noise, **result} for n, (base, noise) in enumerate(seeds)},
        "d": {"0": {"bpb": None}},
    }
    rows = {row["variant"]: row for row in summarise(cells, "a")}
    assert rows["b"]["difference"] == pytest.approx(0.25)
    assert rows["b"]["standard_error"] == pytest.approx(0, abs=1e-12)
    noises = [noise for _, noise in seeds]
    assert rows["c"]["standard_error"] == pytest.approx(statistics.stdev(noises) / len(noises) ** 0.5, abs=1e-9)
    assert "| d | 1 | diverged |" in page({"variants": list(rows.values()), "baseline": "a"})
