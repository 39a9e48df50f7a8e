"""What a stage is scored on follows what the run trains on (F19)."""

import json
from dataclasses import replace

import pytest
from tiny_run import RUNTIME, recipe

from nutshell.metrics import read_metrics
from nutshell.plan.recipe import PRIMER_TASKS, Recipe
from nutshell.train.pipeline import run_stages
from nutshell.train.prepare import check_tasks


def test_f19_tasks_follow_the_text():
    own, stages = Recipe(data="my.txt"), ("pretrain", "midtrain", "sft", "rl")
    assert [Recipe().tasks_after(stage) for stage in stages] == [PRIMER_TASKS] * 4
    assert [own.tasks_after(stage) for stage in stages] == [(), *[PRIMER_TASKS] * 3]  # --sft is the primer
    chats = replace(own, sft="my.jsonl")
    assert [chats.tasks_after(stage) for stage in stages] == [(), PRIMER_TASKS, PRIMER_TASKS, PRIMER_TASKS]  # it has a share
    alone = replace(chats, stages=replace(own.stages, sft=replace(own.stages.sft, primer_share=0.0)))
    assert alone.tasks_after("sft") == ()
    assert replace(alone, eval_data="arc").tasks_after("sft") == ("arc-easy", "gsm8k")
    assert replace(alone, eval_tasks=("custom",)).tasks_after("pretrain") == ("custom",)
    assert Recipe(eval_tasks=("none",)).tasks_after("rl") == ()


def test_f19_own_text_is_scored_by_bits_per_byte_and_shown(tmp_path):
    """Before, `pretrain` on a user's own text spent most of its time on the primer's tasks."""
    text, chats = tmp_path / "own.txt", tmp_path / "own.jsonl"
    text.write_text("\n\n".join(f"Ship {n} left the harbour at dawn and came back by night." for n in range(900)))
    turns = [{"role": "user", "content": "Where is the ship?"}, {"role": "assistant", "content": "In the harbour."}]
    chats.write_text("".join(json.dumps({"messages": turns}) + "\n" for _ in range(40)))
    asked = recipe(tmp_path / "run", data=str(text), sft=str(chats))
    stages = replace(asked.stages, **{n: replace(getattr(asked.stages, n), primer_share=0.0) for n in ("midtrain", "sft")})
    run_stages(replace(asked, stages=stages), RUNTIME, ("pretrain", "midtrain"))
    last = {line["stage"]: line for line in read_metrics(tmp_path / "run") if "samples" in line}
    assert list(last["pretrain"]["eval"]) == ["val_bpb"]
    assert [sample["prompt"][:5] for sample in last["pretrain"]["samples"]] == ["Ship "] * len(last["pretrain"]["samples"])
    assert last["midtrain"]["eval"] == {}
    assert last["midtrain"]["samples"][0]["prompt"] == "Hello! Who are you?"
    assert not any("targets" in line for line in last.values())


def test_named_tasks_replace_the_default_and_are_looked_up_first(tmp_path):
    asked = recipe(tmp_path / "run")
    with pytest.raises(ValueError, match="unknown task 'primer-fact'"):
        check_tasks(replace(asked, eval_tasks=("primer-fact",)))
    with pytest.raises(ValueError, match="custom reads a file"):
        check_tasks(replace(asked, eval_tasks=("custom",)))
    run_stages(replace(asked, eval_tasks=("primer-sums",)), RUNTIME, ("pretrain",))
    (line,) = [line for line in read_metrics(tmp_path / "run") if "samples" in line]
    assert list(line["eval"]) == ["val_bpb", "primer-sums"]


def test_a_run_that_goes_on_looks_up_new_tasks_before_it_trains(begun):
    """Of the kind of F27: a setting that may change in a run that goes on was found wrong after the stage had trained."""
    folder = begun("sft")
    with pytest.raises(ValueError, match="unknown task 'primer-fact'"):
        run_stages(recipe(folder, eval_tasks=("primer-fact",)), RUNTIME, ("sft",))
    assert not (folder / "sft").exists()
