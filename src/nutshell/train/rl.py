"""Reinforcement learning on answers that can be checked: GRPO-style, on-policy, no reference model.

Each step draws `samples` answers to each of `prompts` problems, rewards the right ones with 1, and raises the probability of
answers above their problem's mean (arXiv 2402.03300), with a token-level mean over the batch (arXiv 2503.14476). One update per
batch, so the probability ratio is 1 and needs no clipping. Forced tool output carries no gradient.
"""

from __future__ import annotations

import time

import torch
from torch import Tensor

from nutshell.infer.conversation import fit_conversation
from nutshell.infer.engine import Engine
from nutshell.infer.request import Completion
from nutshell.infer.sampling import Sampling
from nutshell.run.folder import Run
from nutshell.tasks.primer import GRADERS, rl_items
from nutshell.train.scoring import evaluate_stage
from nutshell.train.stage import open_stage
from nutshell.train.step import MicroBatch


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


def reinforce(run: Run) -> None:
    """Run the RL stage to its last step, or go on where its newest checkpoint stands.

    Problems and samples are drawn from (seed, step) alone, so a resumed run draws the same.
    """
    if run.finished("rl"):
        return
    plan, runtime = run.plan, run.runtime
    settings = plan.recipe.stages.rl
    stage = open_stage(run, "rl")
    rows = settings.prompts * settings.samples
    facts: dict[str, float] = {}

    def micro_batch() -> MicroBatch:
        step_seed = plan.recipe.seed * 1_000_003 + stage.step
        start = time.perf_counter()
        problems = rl_items(step_seed, settings.prompts)
        own = problems[runtime.rank :: runtime.world_size]
        problems = own or problems[:1]  # a rank without a problem works along, and counts for nothing
        prompts = [fit_conversation(item.messages, run.tok, plan.model.context, settings.max_tokens).ids for _, item in problems]
        longest = min(plan.model.context, max(map(len, prompts)) + settings.max_tokens)
        frozen = stage.whole_model(everywhere=True).for_inference().to(runtime.device)
        engine = Engine(frozen, run.tok, max_rows=rows, context=longest)
        sampling = Sampling(max_tokens=settings.max_tokens, temperature=settings.temperature, seed=step_seed)
        answers = engine.sample(prompts, settings.samples, sampling)
        rewards = [
            [float(GRADERS[kind](item, answer.text)) for answer in group]
            for (kind, item), group in zip(problems, answers, strict=True)
        ]
        ids, targets, weights = pack_answers(prompts, answers, advantages(rewards), plan.model.context)
        flat = [reward for group in rewards for reward in group]
        right, answered = runtime.total(torch.tensor([sum(flat), len(flat)]) * bool(own)).tolist()
        facts["reward"] = right / answered
        facts["answer_tokens"] = sum(len(a.ids) for group in answers for a in group) / len(flat)
        facts["rollout_seconds"] = time.perf_counter() - start
        ids, targets, weights = (x.to(runtime.device) for x in (ids, targets, weights))
        # A row that only keeps the batch from being empty is no term of the mean.
        count = int(((targets >= 0) & (weights != 0)).sum()) * bool(own)
        return MicroBatch(lambda: stage.model(ids, targets, weights), count, int((targets >= 0).sum()))

    def sources() -> list[str]:
        return [f"RL problems of seed {plan.recipe.seed}, step {stage.step + 1}"]

    for result in stage.training_steps(micro_batch, accumulation=1, sources=sources):
        stage.record(result, **facts)
        stage.save_if_due(lambda: None)
    evaluate_stage(run, stage)
