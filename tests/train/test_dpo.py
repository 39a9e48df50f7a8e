"""DPO: the formula in float64 with its gradient, pairs whose preferred answer becomes likelier, the same bits after a crash."""

import json
import math
import shutil
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from plain import assert_same_gradient, in_float64, logprobs_of, random_model
from tiny_run import RUNTIME, at_step, lines, recipe, weights

from nutshell import checkpoint
from nutshell.data import primer
from nutshell.data.preferences import read_pairs
from nutshell.eval.score import score
from nutshell.model.gpt import GPT
from nutshell.plan.stages import DPOConfig
from nutshell.tokenizer.chat import parse_messages
from nutshell.train.dpo import Answers, PairLoss, pack_pairs, pair_at, pair_stats, to_tokens
from nutshell.train.pipeline import run_stages

PAIRS = [Answers([1, 2, 3], [7, 8], [9, 10, 11]), Answers([4], [12, 13, 14, 15], [16]), Answers([5, 6], [17], [18, 19])]
CPU = torch.device("cpu")


def plain_logprob(model: GPT, prompt: list[int], answer: list[int]) -> torch.Tensor:
    """One answer at a time, in float64, with no padding."""
    return logprobs_of(model, [*prompt, *answer][:-1])[len(prompt) - 1 :].gather(1, torch.tensor(answer)[:, None]).sum()


def test_loss_and_gradient_are_those_of_the_formula_in_float64():
    model, before = random_model(1), in_float64(random_model(2))
    with torch.no_grad():
        reference = torch.stack([plain_logprob(before, pair.prompt, answer) for pair in PAIRS for answer in pair[1:]]).view(-1, 2)
    loss = PairLoss(beta=0.3)
    value = loss(model, pack_pairs(PAIRS, reference.float(), CPU))
    value.backward()

    plain, expected = in_float64(model), torch.zeros((), dtype=torch.float64)
    margins = []
    for pair, (chosen, rejected) in zip(PAIRS, reference, strict=True):
        margins.append(
            0.3 * ((plain_logprob(plain, pair.prompt, pair.chosen) - chosen) - (plain_logprob(plain, *pair[::2]) - rejected))
        )
        expected = expected - torch.log(1 / (1 + torch.exp(-margins[-1]))) / len(PAIRS)
    expected.backward()
    assert value.item() == pytest.approx(expected.item(), rel=1e-5)
    stats = pair_stats(torch.cat(loss.rewards))
    assert stats["loss"] == pytest.approx(expected.item(), rel=1e-5)
    assert stats["margin"] == pytest.approx(torch.stack(margins).mean().item(), rel=1e-4)
    assert stats["accuracy"] == pytest.approx(sum(m > 0 for m in margins).item() / 3)
    assert_same_gradient(model, plain)


def test_the_reference_is_scored_as_training_computes():
    """`score` and the training step agree on the answers' log-probabilities, so the first margin is 0 and the loss ln 2."""
    model = random_model(3)
    scores = [found.logprob for found in score(model, [(pair.prompt, answer) for pair in PAIRS for answer in pair[1:]])]
    loss = PairLoss(beta=0.1)
    assert loss(model, pack_pairs(PAIRS, torch.tensor(scores).view(-1, 2), CPU)).item() == pytest.approx(math.log(2), abs=1e-5)
    assert torch.cat(loss.rewards).abs().max() < 1e-5


def test_every_epoch_has_each_pair_once_in_another_order():
    order = [pair_at(7, 10, place) for place in range(30)]
    assert [sorted(order[i : i + 10]) for i in (0, 10, 20)] == [list(range(10))] * 3
    assert order[:10] != order[10:20]
    assert order == [pair_at(7, 10, place) for place in range(30)]


def test_steps_follow_the_pairs():
    settings = DPOConfig(pairs="x.jsonl", batch=16, epochs=3, held_out=0.1)
    assert (settings.held_out_of(50), settings.steps_for(50)) == (5, 9)  # 3 x 45 pairs
    assert (settings.held_out_of(5), settings.steps_for(5)) == (0, 3)  # one batch holds all
    assert settings.held_out_of(10**6) == 256
    assert replace(settings, steps=4).steps_for(50) == 4
    with pytest.raises(ValueError, match="no pairs are named"):
        DPOConfig(steps=4)


# ---- a stage -------------------------------------------------------------------------------------------------------


@pytest.fixture
def pairs(tmp_path) -> Path:
    """The primer's facts: the right reply is preferred to the first wrong one."""
    file = tmp_path / "pairs.jsonl"
    with file.open("w") as out:
        for problem in primer.held_out("facts", 3, 24):
            wrong = next(option for option in problem.options if option != problem.answer)
            row = {"prompt": problem.messages, "chosen": problem.answer, "rejected": wrong}
            out.write(json.dumps(row) + "\n")
    return file


def dpo_recipe(begun_from: Path, out: Path, pairs: Path, **changes):
    settings = recipe(out, init_from=str(begun_from))
    dpo = DPOConfig(pairs=str(pairs), batch=4, beta=0.5, held_out=0.125, lr_fraction=0.3, **changes)
    return replace(settings, stages=replace(settings.stages, dpo=dpo))


def test_the_preferred_answers_of_the_primer_become_likelier(finished, pairs, tmp_path):
    run = run_stages(dpo_recipe(finished / "sft", tmp_path / "mine", pairs, epochs=6), RUNTIME, ("dpo",))
    steps = [line for line in lines(run.folder, "dpo") if "loss" in line]
    evals = [line for line in lines(run.folder, "dpo") if "eval" in line]
    assert len(steps) == -(-6 * 21 // 4)
    assert steps[0]["loss"] == pytest.approx(math.log(2), abs=1e-3)  # the model is the reference
    assert steps[-1]["margin"] > 1 > steps[0]["margin"]
    assert evals[0]["eval"]["pairs_loss"] == pytest.approx(math.log(2), abs=1e-3)
    assert evals[-1]["eval"].keys() >= {"pairs_margin", "pairs_accuracy", "pairs_loss", "primer-facts"}
    assert len(evals) == 5
    # Scored apart from the stage: what it says of its own reference and of its result is so.
    (before, tok), (after, _) = checkpoint.load(finished / "sft"), checkpoint.load(run.folder)
    rows = [json.loads(line) for line in (run.folder / "dpo" / "pairs.jsonl").read_text().splitlines()]
    answers = [to_tokens(pair, tok) for pair in read_pairs(run.folder / "dpo" / "pairs.jsonl", parse_messages)]
    old, new = (
        torch.tensor([s.logprob for s in score(model, [(a.prompt, text) for a in answers for text in a[1:]])]).view(-1, 2)
        for model in (before, after)
    )
    assert torch.allclose(old, torch.tensor([row["reference"] for row in rows]), atol=1e-2)
    moved = new - old
    assert ((moved[:, 0] - moved[:, 1]) > 0).float().mean() > 0.9


def test_a_stage_that_was_killed_goes_on_to_the_same_bits_without_its_file(finished, pairs, tmp_path, monkeypatch):
    whole = run_stages(dpo_recipe(finished / "sft", tmp_path / "whole", pairs), RUNTIME, ("dpo",))
    asked = replace(dpo_recipe(finished / "sft", tmp_path / "cut", pairs), save_every_seconds=1e-9)

    def crash(stage):
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        at_step(patch, 7, crash)
        with pytest.raises(KeyboardInterrupt):
            run_stages(asked, RUNTIME, ("dpo",))
    shutil.move(pairs, tmp_path / "gone.jsonl")
    cut = run_stages(replace(asked, save_every_seconds=1e9), RUNTIME, ("dpo",))
    ends = [checkpoint.latest(run.folder) for run in (whole, cut)]
    assert ends[0].name == ends[1].name
    assert weights(ends[0]) == weights(ends[1])
    assert lines(whole.folder, "dpo") == lines(cut.folder, "dpo")


def test_it_stands_between_sft_and_rl_where_the_recipe_names_pairs(begun, pairs):
    folder = begun("midtrain")
    shutil.rmtree(folder / "pretrain")
    (folder / "metrics.jsonl").unlink()
    asked = recipe(folder)
    stages = replace(asked.stages, dpo=DPOConfig(pairs=str(pairs), batch=8, epochs=1, lr_fraction=0.02))
    run = run_stages(replace(asked, stages=stages), RUNTIME)
    assert list(dict.fromkeys(line["stage"] for line in lines(folder)))[-4:] == ["midtrain", "sft", "dpo", "rl"]
    assert run.plan.stages["dpo"].steps == 3


def test_pairs_that_cannot_be_learned_are_left_out_and_said(finished, tmp_path, capsys):
    file = tmp_path / "odd.jsonl"
    rows = [("Hi?", "Hello.", "No."), ("Hi?", "Same.", "Same."), ("Hi? " * 200, "Yes.", "No.")]
    file.write_text("".join(json.dumps({"prompt": p, "chosen": c, "rejected": r}) + "\n" for p, c, r in rows))
    run = run_stages(dpo_recipe(finished / "sft", tmp_path / "mine", file), RUNTIME, ("dpo",))
    assert (
        "dpo: 2 of 3 pairs are left out: longer than the context of 128 tokens, or their answers are equal"
        in capsys.readouterr().err
    )
    assert len((run.folder / "dpo" / "pairs.jsonl").read_text().splitlines()) == 1
