"""Reinforcement learning on answers that can be checked: GRPO-style, on-policy, no reference model.

Each step draws `samples` answers to each of `prompts` problems, rewards the right ones with 1, and raises the probability of
answers above their problem's mean (arXiv 2402.03300), with a token-level mean over the batch (arXiv 2503.14476). One update per
batch, so the probability ratio is 1 and needs no clipping. Forced tool output carries no gradient.
"""

from __future__ import annotations

import time
from typing import NamedTuple

import torch
from torch import Tensor

from nutshell.infer.conversation import fit_conversation
from nutshell.infer.engine import Engine
from nutshell.infer.request import Completion
from nutshell.infer.sampling import Sampling
from nutshell.run.folder import Run
from nutshell.runtime import Runtime
from nutshell.tasks.primer import GRADERS, rl_items
from nutshell.train.prefetch import MicroBatch
from nutshell.train.scoring import evaluate_stage
from nutshell.train.stage import Stage, open_stage


def advantages(rewards: list[list[float]]) -> list[list[float]]:
    """Reward minus the mean of its problem's answers; zero where all answers are alike."""
    return [[reward - sum(group) / len(group) for reward in group] for group in rewards]


def pack_answers(
    prompts: list[list[int]], answers: list[list[Completion]], advantage: list[list[float]], context: int
) -> tuple[Tensor, Tensor, Tensor]:
    """Rows of prompt + answer, padded on the right: ids, targets (-1 but for sampled tokens) and weights, all (N, T).

    Answers whose advantage is 0 teach nothing and are left out (one row stays, so that the batch is never empty).
    """
    rows = [
        (prompt, answer, weight)
        for prompt, group, weights in zip(prompts, answers, advantage, strict=True)
        for answer, weight in zip(group, weights, strict=True)
    ]
    rows = [row for row in rows if row[2] != 0] or rows[:1]
    T = min(context, max(len(prompt) + len(answer.ids) for prompt, answer, _ in rows) - 1)
    ids = torch.zeros(len(rows), T, dtype=torch.long)
    targets = torch.full((len(rows), T), -1, dtype=torch.long)
    weights = torch.zeros(len(rows), T)
    for i, (prompt, answer, weight) in enumerate(rows):
        tokens = torch.tensor(prompt + answer.ids)
        learned = torch.tensor([0] * len(prompt) + answer.mask, dtype=torch.bool)
        length = min(T, len(tokens) - 1)
        ids[i, :length] = tokens[:length]
        targets[i, :length] = torch.where(learned[1 : length + 1], tokens[1 : length + 1], -1)
        weights[i, :length] = weight
    return ids, targets, weights


class Rollout(NamedTuple):
    """Answers of this rank, graded."""

    prompts: list[list[int]]
    answers: list[list[Completion]]
    rewards: list[list[float]]
    counted: bool  # False: this rank had no problem of its own and works along on another's


def roll_out(stage: Stage) -> Rollout:
    """Draw and grade answers to this rank's problems. They depend on (seed, step) alone, so a resumed run draws the same."""
    plan, runtime, tok = stage.run.plan, stage.run.runtime, stage.run.tok
    settings = plan.recipe.stages.rl
    step_seed = plan.recipe.seed * 1_000_003 + stage.step
    problems = rl_items(step_seed, settings.prompts)
    own = problems[runtime.rank :: runtime.world_size]
    problems = own or problems[:1]
    prompts = [fit_conversation(item.messages, tok, plan.model.context, settings.max_tokens).ids for _, item in problems]
    longest = min(plan.model.context, max(map(len, prompts)) + settings.max_tokens)
    frozen = stage.whole_model(everywhere=True).for_inference().to(runtime.device)
    engine = Engine(frozen, tok, max_rows=settings.prompts * settings.samples, context=longest)
    sampling = Sampling(max_tokens=settings.max_tokens, temperature=settings.temperature, seed=step_seed)
    answers = engine.sample(prompts, settings.samples, sampling)
    graded = zip(problems, answers, strict=True)
    rewards = [[float(GRADERS[kind](item, answer.text)) for answer in group] for (kind, item), group in graded]
    return Rollout(prompts, answers, rewards, bool(own))


def rollout_batch(rollout: Rollout, context: int, device: torch.device) -> MicroBatch:
    """Every answer that teaches, its advantage as the weight of each of its sampled tokens."""
    ids, targets, weights = pack_answers(rollout.prompts, rollout.answers, advantages(rollout.rewards), context)
    # A row that only keeps the batch from being empty is no term of the mean.
    count = int(((targets >= 0) & (weights != 0)).sum()) * rollout.counted
    return MicroBatch(ids.to(device), targets.to(device), count, weights.to(device))


def reinforce(run: Run) -> None:
    """Run the RL stage to its last step, or go on where its newest checkpoint stands."""
    if run.finished("rl"):
        return
    stage = open_stage(run, "rl")
    while stage.step < stage.steps:
        start = time.perf_counter()
        rollout = roll_out(stage)
        batch = rollout_batch(rollout, run.plan.model.context, run.runtime.device)
        stats = rollout_stats(rollout, run.runtime)
        stats["rollout_seconds"] = time.perf_counter() - start
        # One informative problem of 32 must not make as large a step as 32 of them: Muon's steps do not shrink with the gradient.
        result = stage.learn([batch], share=stats["informative"])
        stage.seconds += stats["rollout_seconds"]
        stage.record(result, [f"RL problems of seed {run.plan.recipe.seed}, step {stage.step + 1}"], **stats)
        stage.save_if_due(result)
    evaluate_stage(run, stage)


def rollout_stats(rollout: Rollout, runtime: Runtime) -> dict[str, float]:
    """Over all ranks: mean reward, the share of problems whose answers differ in reward, and tokens an answer (this rank's)."""
    rewards = [reward for group in rollout.rewards for reward in group]
    informative = sum(len(set(group)) > 1 for group in rollout.rewards)
    sums = torch.tensor([sum(rewards), len(rewards), informative, len(rollout.rewards)]) * rollout.counted
    total, count, informative, problems = runtime.total(sums).tolist()
    tokens = sum(len(answer.ids) for group in rollout.answers for answer in group) / len(rewards)
    return {"reward": total / count, "informative": informative / problems, "answer_tokens": tokens}
