"""Stages of conversations that learn from a mixture, hold some out, and go on where they stood."""

import json
import math
from collections import Counter
from dataclasses import replace

import pytest
from tiny_run import EVERY_STEP, RUNTIME, STEPS, at_step, lines, quick_evaluations, recipe, weights

from nutshell import checkpoint
from nutshell.cli.recipe import read_recipe
from nutshell.config import load_toml
from nutshell.plan.recipe import Recipe
from nutshell.plan.stages import MixturePart
from nutshell.report.facts import build_report
from nutshell.train.examples import examples_for, hold_out
from nutshell.train.pipeline import run_stages
from nutshell.train.prepare import check_recipe, open_run


@pytest.fixture(autouse=True)
def _quick():
    with quick_evaluations():
        yield


def chats(path, count, word, **more):
    rows = [{"prompt": f"{word} {n}?", "response": f"{word} {n} {n}.", **more} for n in range(count)]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return str(path)


def mixed(tmp_path, out, *parts, **changes):
    base = recipe(tmp_path / out)
    sft = replace(base.stages.sft, mixture=parts)
    none = replace(base.stages.midtrain, steps=0, share=0.0)
    return replace(base, stages=replace(base.stages, midtrain=none, sft=sft), **changes)


@pytest.fixture
def parts(tmp_path):
    rows = [{"question": f"What is {n} and 1?", "answer": f"<<{n}+1={n + 1}>>{n + 1}\n#### {n + 1}"} for n in range(30)]
    (tmp_path / "eval" / "gsm8k").mkdir(parents=True)
    (tmp_path / "eval" / "gsm8k" / "train.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return (
        MixturePart(data=chats(tmp_path / "many.jsonl", 300, "Apple"), weight=0.4),
        MixturePart(data=chats(tmp_path / "few.jsonl", 20, "Berry"), weight=0.2),
        MixturePart(task="gsm8k", weight=0.2),
        MixturePart(task="spelling", weight=0.1),
        MixturePart(data="primer", weight=0.1),
    )


def test_a_mixture_is_learned_by_its_weights(tmp_path, parts):
    asked = mixed(tmp_path, "run", *parts, eval_data=str(tmp_path / "eval"), eval_tasks=("none",))
    with open_run(asked, RUNTIME) as run:
        learned, held_out = examples_for(run, "sft")
        planned = run.plan.stages["sft"]
    tokens = Counter()
    for example in learned:
        text = str(example["messages"])
        kind = "many" if "Apple" in text else "few" if "Berry" in text else "gsm8k" if " and 1?" in text else "written"
        tokens[kind] += len(run.tok.encode(text))
    assert [part.name for part in planned.parts] == ["many", "few", "gsm8k", "spelling", "primer"]
    assert any(part["type"] == "python" for e in learned if " and 1?" in str(e) for part in e["messages"][1]["content"])
    assert held_out
    assert not [example for example in held_out if example in learned]
    assert {"Apple", "Berry"} >= {example["messages"][0]["content"].split()[0] for example in held_out}
    assert tokens["many"] / tokens["few"] == pytest.approx(2, rel=0.35)
    page = (tmp_path / "run" / "metrics.jsonl").read_text()
    assert "many: 300 rows of prompt/response" in page
    assert "gsm8k: 30 rows of the task gsm8k (train)" in page


def test_an_interrupted_mixture_ends_as_one_that_was_not(tmp_path, parts, monkeypatch):
    """The sources are gone when it goes on: the run has its copies."""

    def asked(out):
        return mixed(tmp_path, out, *parts, eval_data=str(tmp_path / "eval"), eval_tasks=("none",), **EVERY_STEP)

    run_stages(asked("whole"), RUNTIME, ("pretrain", "sft"))
    run_stages(asked("cut"), RUNTIME, ("pretrain",))
    at_step(monkeypatch, 3, stop)
    with pytest.raises(KeyboardInterrupt):
        run_stages(asked("cut"), RUNTIME, ("sft",))
    monkeypatch.undo()
    assert 0 < checkpoint.checkpoints(tmp_path / "cut" / "sft")[-1][0] < 3
    for name in ("many.jsonl", "few.jsonl", "eval/gsm8k/train.jsonl"):
        (tmp_path / name).unlink()
    run_stages(asked("cut"), RUNTIME, ("pretrain", "sft"))
    last = f"sft/step-{STEPS['sft']:06d}"
    assert weights(tmp_path / "whole" / last) == weights(tmp_path / "cut" / last)
    assert [line for line in lines(tmp_path / "cut", "sft") if "loss" in line] == [
        line for line in lines(tmp_path / "whole", "sft") if "loss" in line
    ]


def stop(stage):
    raise KeyboardInterrupt


def test_held_out_conversations_give_a_loss_in_log_and_report(tmp_path):
    own = chats(tmp_path / "own.jsonl", 200, "Cherry")
    asked = replace(mixed(tmp_path, "run"), sft=own, held_out=0.1, validations=5, eval_tasks=("none",))
    run_stages(asked, RUNTIME, ("pretrain", "sft"))
    found = {line["step"]: line["eval"]["val_loss"] for line in lines(tmp_path / "run", "sft") if "eval" in line}
    assert list(found) == [1, 2, 3, 4, 5]
    assert all(0 < loss < math.log(512) + 1 for loss in found.values())
    build_report(tmp_path / "run", environment={})
    report = (tmp_path / "run" / "report.md").read_text()
    assert "val_loss" in report
    assert "of your conversations are held out" in report
    assert "own: 200 rows of prompt/response" in report


def test_a_loss_that_rises_is_said(tmp_path, monkeypatch):
    losses = iter([1.0, 1.1, 1.2, 1.3, 1.4])
    monkeypatch.setattr("nutshell.train.sft.validation_loss", lambda stage, batches: next(losses))
    own = chats(tmp_path / "own.jsonl", 200, "Cherry")
    asked = replace(mixed(tmp_path, "run"), sft=own, held_out=0.1, validations=5, eval_tasks=("none",))
    run_stages(asked, RUNTIME, ("pretrain", "sft"))
    remarks = [line["remark"] for line in lines(tmp_path / "run", "sft") if "warning" in line.get("remark", "")]
    assert remarks[0].startswith("warning: val_loss rose 2 times in a row, to 1.2000 at step 3 from 1.0000 at step 1")


def test_what_is_held_out_depends_on_the_rows_alone():
    rows = [{"text": str(n)} for n in range(2000)]
    held = hold_out(rows, 0.05)[1]
    assert 60 < len(held) < 140
    assert hold_out(rows[::-1], 0.05)[1] == held[::-1]
    assert hold_out([*rows, {"text": "new"}], 0.05)[1][: len(held)] == held
    assert hold_out(held, 0.05) == (held, [])  # nothing would be left to learn
    assert hold_out(rows, 0.0)[1] == []


def test_bad_rows_stop_a_run_unless_they_are_skipped(tmp_path):
    path = chats(tmp_path / "own.jsonl", 30, "Date")
    with open(path, "a") as file:
        file.write('{"prompt": "", "response": "x"}\nno json\n')
    asked = replace(mixed(tmp_path, "run"), sft=path)
    with pytest.raises(ValueError, match=r"line 31: column 'prompt' must be text.*\n2 of 32 rows are bad \(1 × column"):
        run_stages(asked, RUNTIME, ("pretrain",))
    assert not (tmp_path / "run").exists()
    with open_run(replace(asked, skip_bad=True), RUNTIME) as run:
        assert run.plan.stages["sft"].parts[0].rows == 30
    assert "2 bad rows left out" in (tmp_path / "run" / "metrics.jsonl").read_text()


def test_documents_are_learned_whole(tmp_path):
    path = tmp_path / "pages.jsonl"
    path.write_text(json.dumps({"text": "word " * 500 + "end"}) + "\n" + json.dumps({"text": "short one"}) + "\n")
    with open_run(replace(mixed(tmp_path, "run", MixturePart(data=str(path)))), RUNTIME) as run:
        learned, _ = examples_for(run, "sft")
    assert "".join(part["text"] for part in learned[:-1]).strip() in ("word " * 500 + "end", "short one")


def test_rows_limit_a_part_in_one_stage_and_not_in_another(tmp_path):
    own = chats(tmp_path / "own.jsonl", 300, "Cherry")
    asked = mixed(tmp_path, "run", MixturePart(data=own, rows=50), held_out=0.0)
    midtrain = replace(asked.stages.midtrain, share=0.2, steps=40, mixture=(MixturePart(data=own),))
    asked = replace(asked, stages=replace(asked.stages, midtrain=midtrain))
    with open_run(asked, RUNTIME) as run:
        assert [run.plan.stages[name].parts[0].rows for name in ("midtrain", "sft")] == [300, 50]
        assert len({str(example) for example in examples_for(run, "midtrain")[0]}) == 300
        assert len({str(example) for example in examples_for(run, "sft")[0]}) == 50


def test_a_task_without_anything_to_learn_is_refused(tmp_path):
    for name in ("humaneval", "core"):
        with pytest.raises(ValueError, match=f"the task {name} has nothing to learn from"):
            check_recipe(mixed(tmp_path, "run", MixturePart(task=name)), RUNTIME)
    with pytest.raises(FileNotFoundError, match="gsm8k"):
        check_recipe(mixed(tmp_path, "run", MixturePart(task="gsm8k"), eval_data=str(tmp_path)), RUNTIME)


def test_a_recipes_file_has_mixtures(tmp_path):
    (tmp_path / "config.toml").write_text(
        '[[stages.midtrain.mixture]]\ndata = "a.csv"\nepochs = 2\n[[stages.midtrain.mixture]]\ntask = "gsm8k"\nepochs = 1\n'
    )
    found = load_toml(Recipe, tmp_path).stages.midtrain.mixture
    assert found == (MixturePart(data="a.csv", epochs=2), MixturePart(task="gsm8k", epochs=1))
    (tmp_path / "config.toml").write_text('[[stages.sft.mixture]]\nfile = "a.csv"\n')
    with pytest.raises(ValueError, match=r"unknown key stages\.sft\.mixture\.0\.file"):
        load_toml(Recipe, tmp_path)


def test_an_identity_that_nothing_would_learn_is_refused(tmp_path):
    own = chats(tmp_path / "own.jsonl", 200, "Cherry")
    asked = mixed(tmp_path, "run", MixturePart(data=own), identity="name=Acorn", data=str(tmp_path / "a.txt"), sft=own)
    (tmp_path / "a.txt").write_text("Some words. " * 5000)
    asked = replace(asked, stages=replace(asked.stages, midtrain=replace(asked.stages.midtrain, primer_share=0.0)))
    with pytest.raises(ValueError, match="no stage reads the primer"):
        check_recipe(asked, RUNTIME)


def test_fine_tuning_begins_with_another_model_without_pretraining(tmp_path, monkeypatch):
    """Its batch and steps follow its own conversations, no text is prepared, and the same command goes on."""
    run_stages(recipe(tmp_path / "old", eval_tasks=("none",)), RUNTIME, ("pretrain",))
    model = checkpoint.latest(tmp_path / "old").rename(tmp_path / "model")  # a folder of its own
    own = chats(tmp_path / "own.jsonl", 400, "Cherry")
    flags = ["--init-from", str(model), "--sft", own, "--out", str(tmp_path / "mine"), "--eval-tasks", "none"]
    asked = read_recipe("sft", flags, "")
    assert [asked.first_stage, asked.stages.pretrain.share, asked.stages.midtrain.share] == ["sft", 0, 0]
    run = run_stages(asked, RUNTIME, ("sft",))
    planned = run.plan.stages["sft"]
    assert (run.plan.stages["pretrain"].steps, run.plan.stages["midtrain"].steps) == (0, 0)
    assert planned.epochs <= 3 + planned.tokens_per_step / planned.parts[0].tokens
    assert planned.steps >= 5
    assert not (tmp_path / "mine" / "data").exists()
    losses = [line["loss"] for line in lines(tmp_path / "mine", "sft") if "loss" in line]
    assert losses[-1] < losses[0]
    assert run_stages(read_recipe("sft", flags, ""), RUNTIME, ("sft",)).plan == run.plan
    after = read_recipe("rl", ["--out", str(tmp_path / "mine")], "")
    assert after.first_stage == "sft"


def texts(path, count, word):
    path.write_text("\n\n".join(f"{word} number {n} grows on tree {n * n}." * 4 for n in range(count)))
    return str(path)


def test_pretraining_on_a_mixture_gives_bits_per_byte_of_each_and_goes_on(tmp_path, monkeypatch):
    base = recipe(tmp_path, eval_tasks=("none",), validations=2, **EVERY_STEP)
    corpora = (
        MixturePart(data=texts(tmp_path / "apples.txt", 1200, "Apple"), weight=2),
        MixturePart(data=texts(tmp_path / "pears.txt", 300, "Pear"), weight=1),
        MixturePart(data="primer", weight=1),
    )
    stages = replace(base.stages, pretrain=replace(base.stages.pretrain, mixture=corpora))

    def asked(out):
        return replace(base, out=str(tmp_path / out), stages=stages)

    run = run_stages(asked("whole"), RUNTIME, ("pretrain",))
    shares = {part.name: part.share for part in run.plan.stages["pretrain"].parts}
    assert shares == pytest.approx({"apples": 0.5, "pears": 0.25, "primer": 0.25})
    found = [line["eval"] for line in lines(tmp_path / "whole", "pretrain") if "eval" in line][-1]
    assert set(found) == {"val_bpb", "val_bpb-apples", "val_bpb-pears", "val_bpb-primer"}
    mean = found["val_bpb-apples"] / 2 + (found["val_bpb-pears"] + found["val_bpb-primer"]) / 4
    assert found["val_bpb"] == pytest.approx(mean)
    at_step(monkeypatch, 4, stop)
    with pytest.raises(KeyboardInterrupt):
        run_stages(asked("cut"), RUNTIME, ("pretrain",))
    monkeypatch.undo()
    for name in ("apples.txt", "pears.txt"):
        (tmp_path / name).unlink()
    run_stages(asked("cut"), RUNTIME, ("pretrain",))
    last = f"pretrain/step-{STEPS['pretrain']:06d}"
    assert weights(tmp_path / "whole" / last) == weights(tmp_path / "cut" / last)
