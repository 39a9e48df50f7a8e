"""RL: advantages, what carries a gradient, the policy gradient and its options against plain computations in float64."""

import json
import math
from dataclasses import replace

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from plain import assert_same_gradient, in_float64, logprobs_of, random_model
from tiny_run import RUNTIME, at_step, lines, recipe, weights

from nutshell import checkpoint
from nutshell.infer.engine import Engine
from nutshell.infer.request import Completion
from nutshell.model.gpt import GPT
from nutshell.plan.stages import RLConfig
from nutshell.tasks.task import Item
from nutshell.train import rollout
from nutshell.train.pipeline import run_stages
from nutshell.train.rl import PolicyLoss, advantages, micro_batch, rows_of
from nutshell.train.rollout import Group, Watch
from nutshell.train.step import target_logprobs

CPU = torch.device("cpu")


def completion(ids, mask=None) -> Completion:
    return Completion(ids, mask or [1] * len(ids), "", "stop")


def group(prompt, answers, rewards) -> Group:
    return Group("test", Item(messages=[{"role": "user", "content": "?"}]), prompt, answers, rewards)


def test_advantages_are_rewards_less_their_groups_mean():
    assert advantages([1, 0, 0, 0]) == [0.75, -0.25, -0.25, -0.25]
    assert advantages([1, 1]) == advantages([0, 0]) == advantages([None, 0.5]) == [0, 0]
    assert advantages([1, None, 0]) == [0.5, 0, -0.5]  # an answer without a grade counts neither way


@given(st.lists(st.sampled_from([0.0, 1.0, 0.25, None]), min_size=1, max_size=9))
def test_advantages_of_a_group_add_up_to_nothing(rewards):
    known = [reward for reward in rewards if reward is not None]
    assert sum(advantages(rewards)) == pytest.approx(0, abs=1e-9)
    assert all(
        a == 0 if r is None else (a > 0) == (r > sum(known) / len(known))
        for a, r in zip(advantages(rewards), rewards, strict=True)
    )


def test_only_what_the_model_sampled_is_learned():
    """nc 570, 582: the prompt and forced tool output carry no gradient."""
    prompt, answer = [1, 2, 3], completion([10, 11, 20, 21, 12], [1, 1, 0, 0, 1])
    ids, targets, _, weights = micro_batch([(prompt, answer, 0.5), (prompt, completion([13]), -0.5)], 32, RLConfig(), CPU)[:4]
    assert ids.tolist() == [[1, 2, 3, 10, 11, 20, 21], [1, 2, 3, 0, 0, 0, 0]]
    assert targets.tolist() == [[-1, -1, 10, 11, -1, -1, 12], [-1, -1, 13, -1, -1, -1, -1]]
    assert (weights * (targets >= 0)).tolist() == [[0, 0, 0.5, 0.5, 0, 0, 0.5], [0, 0, -0.5, 0, 0, 0, 0]]


def test_answers_without_an_advantage_are_left_out():
    alike = group([1], [completion([5]), completion([6])], [1.0, 1.0])
    differ = group([2], [completion([7]), completion([8]), completion([9])], [0.0, 1.0, None])
    assert not alike.teaches
    assert differ.teaches
    assert [(prompt, answer.ids, advantage) for prompt, answer, advantage in rows_of([alike, differ])] == [
        ([2], [7], -0.5),
        ([2], [8], 0.5),
    ]


def test_rows_never_exceed_the_context():
    rows = [([1] * 6, completion([2] * 6), 0.5), ([1] * 6, completion([3]), -0.5)]
    ids, targets = micro_batch(rows, 8, RLConfig(), CPU)[:2]
    assert ids.shape == (2, 8)
    assert (targets >= 0).sum(1).tolist() == [3, 1]


PROMPTS = [[1, 2, 3, 4], [5, 6]]
ANSWERS = [
    [completion([7, 8, 9], [1, 0, 1]), completion([10]), completion([11, 12])],
    [completion([13, 14, 15, 16, 17], [1, 1, 0, 0, 1]), completion([18, 19])],
]
ROWS = rows_of([group(PROMPTS[0], ANSWERS[0], [1, 0, 0]), group(PROMPTS[1], ANSWERS[1], [0, 1])])


def plain_logprobs(model: GPT, row) -> torch.Tensor:
    """Of the sampled tokens of one answer, in float64."""
    tokens = row[0] + row[1].ids
    logprobs = logprobs_of(model, tokens[:-1])
    places = [len(row[0]) + i for i, sampled in enumerate(row[1].mask) if sampled]
    return torch.stack([logprobs[place - 1, tokens[place]] for place in places])


@pytest.mark.parametrize("mean_over", ["tokens", "answers", "constant"])
def test_the_policy_gradient_equals_a_plain_computation_in_float64(mean_over):
    """-advantage * log p of each sampled token, one answer at a time; two micro-batches count as one."""
    model = random_model(3)
    settings = RLConfig(mean_over=mean_over, max_tokens=9)
    parts = [micro_batch(rows, 16, settings, CPU) for rows in (ROWS[:2], ROWS[2:])]
    total = sum(part.target_count for part in parts)
    for part in parts:
        (model(part.ids, part.targets, part.weights) * part.target_count / total).backward()

    plain = in_float64(model)
    terms = [-row[2] * plain_logprobs(plain, row) for row in ROWS]
    loss = {
        "tokens": sum(term.sum() for term in terms) / sum(map(len, terms)),
        "answers": sum(term.mean() for term in terms) / len(terms),
        "constant": sum(term.sum() for term in terms) / (9 * len(terms)),
    }[mean_over]
    loss.backward()
    assert_same_gradient(model, plain)


def test_clipping_and_kl_equal_a_plain_computation_in_float64():
    model, old, before = random_model(3), random_model(4), random_model(5)
    settings = RLConfig(updates=2, clip_low=0.2, clip_high=0.5, kl=0.3)
    batch = micro_batch(ROWS, 16, settings, CPU)
    with torch.no_grad():
        batch = batch._replace(old=target_logprobs(old, batch), reference=target_logprobs(before, batch))
    loss = PolicyLoss(settings)
    value = loss(model, batch)
    value.backward()

    plain, terms, kls, clipped = in_float64(model), [], [], []
    for row in ROWS:
        new = plain_logprobs(plain, row)
        with torch.no_grad():
            was, reference = plain_logprobs(in_float64(old), row), plain_logprobs(in_float64(before), row)
        for p, p_old, p_before in zip(new, was, reference, strict=True):
            ratio, advantage = torch.exp(p - p_old), row[2]
            use = ratio * advantage if (advantage > 0 and ratio <= 1.5) or (advantage < 0 and ratio >= 0.8) else None
            terms.append(-use if use is not None else torch.tensor(-advantage * (1.5 if advantage > 0 else 0.8)))
            clipped.append(use is None)
            kls.append(torch.exp(p_before - p) - (p_before - p) - 1)
    expected = torch.stack(terms).mean() + 0.3 * torch.stack(kls).mean()
    expected.backward()
    assert 0 < sum(clipped) < len(clipped)
    assert value.item() == pytest.approx(expected.item(), rel=1e-5)
    assert loss.stats() == {
        "kl": pytest.approx(torch.stack(kls).mean().item(), rel=1e-4),
        "clipped": pytest.approx(sum(clipped) / len(clipped)),
    }
    assert_same_gradient(model, plain)


def test_on_policy_the_surrogate_has_the_gradient_of_the_plain_loss():
    model, other = random_model(6), random_model(6)
    batch = micro_batch(ROWS, 16, RLConfig(), CPU)
    PolicyLoss(RLConfig())(model, batch).backward()
    other(batch.ids, batch.targets, batch.weights).backward()
    assert_same_gradient(model, other.double())


# ---- a stage -------------------------------------------------------------------------------------------------------


def rl_recipe(finished, folder, **changes):
    asked = recipe(folder, init_from=str(finished / "sft"))
    return replace(asked, stages=replace(asked.stages, rl=replace(asked.stages.rl, **changes)))


def test_a_step_with_nothing_to_learn_changes_nothing_and_is_warned_about(finished, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr("nutshell.tasks.practice.GRADERS", dict.fromkeys(("sums", "letters", "vowels"), lambda item, text: 1.0))
    folder = run_stages(rl_recipe(finished, tmp_path / "mine", steps=11, updates=2), RUNTIME, ("rl",)).folder
    before, after = (checkpoint.load(saved)[0].state_dict() for saved in (finished / "sft", folder))
    assert all(torch.equal(before[name], value) for name, value in after.items())
    steps = [line for line in lines(folder, "rl") if "loss" in line]
    assert all(line["zero_variance"] == 1 and line["skipped"] for line in steps)
    assert (
        capsys.readouterr().err.count("100% of the problems had answers of one reward each (mean 1.00): they teach nothing") == 1
    )


OPTIONS = {"draws": 3, "updates": 2, "kl": 0.05, "mean_over": "constant"}


def test_all_options_resume_to_the_same_bits_and_the_same_rollouts(finished, tmp_path, monkeypatch):
    whole = run_stages(rl_recipe(finished, tmp_path / "whole", **OPTIONS), RUNTIME, ("rl",)).folder
    asked = rl_recipe(finished, tmp_path / "cut", **OPTIONS)

    def crash(stage):
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        at_step(patch, 4, crash)
        with pytest.raises(KeyboardInterrupt):
            run_stages(replace(asked, save_every_seconds=1e-9), RUNTIME, ("rl",))
    folder = run_stages(asked, RUNTIME, ("rl",)).folder
    logs = lines(folder, "rl")
    assert weights(checkpoint.latest(folder)) == weights(checkpoint.latest(whole))
    assert lines(whole, "rl") == logs
    assert (folder / "rollouts.jsonl").read_text() == (whole / "rollouts.jsonl").read_text()
    assert all({"kl", "clipped", "entropy", "finished"} <= line.keys() for line in logs if "loss" in line)
    evals = [line for line in logs if "eval" in line]
    assert [line["step"] for line in evals] == [0, 3, 5]
    assert all({"pass@1", "pass@4"} <= line["eval"].keys() for line in evals)
    assert all(line["eval"]["pass@1"] <= line["eval"]["pass@4"] for line in evals)


def test_one_engine_answers_with_the_weights_of_each_step(finished, tmp_path, monkeypatch):
    """Its answers are those of engines that are made anew."""
    by_length = dict.fromkeys(("sums", "letters", "vowels"), lambda item, text: float(len(text) % 2))
    monkeypatch.setattr("nutshell.tasks.practice.GRADERS", by_length)
    made, follow = [], rollout.Policy.follow
    monkeypatch.setattr(rollout, "Engine", lambda *args, **more: made.append(more) or Engine(*args, **more))
    options = {"steps": 5}
    kept = run_stages(rl_recipe(finished, tmp_path / "kept", **options), RUNTIME, ("rl",)).folder
    assert len(made) == 1

    def follow_anew(policy):
        policy.model = policy.engine = None
        return follow(policy)

    monkeypatch.setattr(rollout.Policy, "follow", follow_anew)
    anew = run_stages(rl_recipe(finished, tmp_path / "anew", **options), RUNTIME, ("rl",)).folder
    assert len(made) > 5
    assert weights(checkpoint.latest(kept)) == weights(checkpoint.latest(anew)) != weights(checkpoint.latest(finished / "sft"))
    assert (kept / "rollouts.jsonl").read_text() == (anew / "rollouts.jsonl").read_text()


def test_a_frozen_model_follows_in_its_own_dtype():
    first, second = (random_model(seed).set_precision(torch.bfloat16) for seed in (1, 2))
    frozen = first.for_inference()
    frozen.follow(second)
    ids = torch.arange(1, 9).unsqueeze(0)
    assert torch.equal(frozen(ids), second.for_inference()(ids))
    assert not torch.equal(frozen(ids), first.for_inference()(ids))


def test_dynamic_sampling_draws_until_enough_problems_teach(finished, tmp_path, monkeypatch):
    rarely = dict.fromkeys(("sums", "letters", "vowels"), lambda item, text: float(len(text) % 5 == 0))
    monkeypatch.setattr("nutshell.tasks.practice.GRADERS", rarely)
    folder = run_stages(rl_recipe(finished, tmp_path / "mine", draws=4, prompts=3, steps=8), RUNTIME, ("rl",)).folder
    rows = [json.loads(line) for line in (folder / "rollouts.jsonl").read_text().splitlines()]
    counts = set()
    for step in range(1, 9):
        teaching = [len(set(row["rewards"])) > 1 for row in rows if row["step"] == step]
        counts.add(len(teaching))
        assert len(teaching) % 3 == 0
        assert sum(teaching[:-3]) < 3  # it would have stopped before
        assert sum(teaching) >= 3 or len(teaching) == 12
    assert len(counts) > 1


def test_rollouts_are_bounded(tmp_path, monkeypatch):
    monkeypatch.setattr(rollout, "MOST_BYTES", 2000)

    class Run:
        folder, runtime = tmp_path, RUNTIME

    each = group([1], [Completion([5], [1], "an answer \u2603", "stop")] * 2, [1.0, None])
    for step in range(60):
        rollout.log_rollouts(Run, step, [each])
    files = [tmp_path / name for name in ("rollouts.jsonl", "rollouts.old.jsonl")]
    assert all(file.stat().st_size < 2400 for file in files)
    rows = [json.loads(line) for line in files[0].read_text(encoding="utf-8").splitlines()]
    assert rows[-1]["step"] == 59
    assert rows[-1]["answers"] == ["an answer \u2603"] * 2
    assert rows[-1]["rewards"] == [1.0, None]
    with files[0].open("a") as file:
        file.write('{"step": 60, "ans')
    rollout.open_rollouts(Run, rows[-2]["step"])
    assert [json.loads(line) for line in files[0].read_text(encoding="utf-8").splitlines()] == rows[:-1]


def test_entropy_is_that_of_the_distributions_that_were_sampled_from():
    model = random_model(7).for_inference()
    groups = [group(prompt, answers, [0.0] * len(answers)) for prompt, answers in zip(PROMPTS, ANSWERS, strict=True)]
    plain = in_float64(random_model(7))
    expected = []
    for each in groups:
        p = logprobs_of(plain, each.prompt + each.answers[0].ids).exp()
        entropies = -(p * p.log()).sum(-1)
        expected += [entropies[len(each.prompt) - 1 + i].item() for i, sampled in enumerate(each.answers[0].mask) if sampled]
    assert rollout.token_entropies(model, groups) == pytest.approx(expected, rel=1e-3)


def test_the_watch_warns_once_and_only_after_a_while():
    told = []
    watch = Watch(told.append)
    for _ in range(30):
        watch({"zero_variance": 0.97, "finished": 0.2, "reward": 0.01})
    assert len(told) == 2
    assert "Give others, more" in told[0]
    assert "only 20% of the answers ended" in told[1]
    assert math.isclose(len(watch.last), 10)
    watch = Watch(told.append)
    for _ in range(10):
        watch({"zero_variance": 1.0, "finished": 1.0, "reward": 0.0, "ungraded": 24.0})
    assert told[-1].endswith("The reward gave no grade to 24 answers a step: mend it first.")
