"""Reinforcement learning on answers that can be checked: GRPO (arXiv 2402.03300), on-policy, no reference model by default.

A step draws `samples` answers to each of `prompts` problems, grades them, and makes what is better than the mean of its
problem likelier and what is worse less likely. That is the policy gradient, grad E[r] = E[(r - b) grad log p(answer)]: a
baseline b that does not depend on the answer leaves the expectation as it is, and the mean of the group, which no second model
has to learn, takes most of the noise away. The advantage r - b is not divided by the group's spread, which would weigh nearly
solved and hopeless problems most (arXiv 2503.20783), and the mean is over all tokens of the step (arXiv 2503.14476). Forced tool
output carries no gradient. A step where no problem's answers differ in reward changes nothing.

With one update a step the sampling model is the one that learns, and the ratio of their probabilities is 1. Options of the
recipe: `updates` (the ratio is then clipped as in PPO, arXiv 1707.06347, with more room upwards), `draws`, `mean_over`, `kl`.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass, field
from random import Random

import torch
from torch import Tensor, nn

from nutshell.infer.request import Completion
from nutshell.plan.stages import RLConfig
from nutshell.run.folder import Run
from nutshell.tasks.practice import open_practice
from nutshell.tasks.reward import Grader
from nutshell.train.build import open_stage, starting_model
from nutshell.train.prefetch import MicroBatch
from nutshell.train.rollout import Group, Policy, Watch, log_rollouts, open_rollouts, pass_rates, roll_out, rollout_stats
from nutshell.train.scoring import evaluate_stage, validate_if_due
from nutshell.train.stage import Stage
from nutshell.train.step import StepResult, merge_results, next_token_loss, pad_rows, pad_to_same_count, target_logprobs

Row = tuple[list[int], Completion, float]
"""Prompt, answer, advantage."""


def advantages(rewards: list[float | None]) -> list[float]:
    """Reward minus the mean of a problem's answers; zero where all answers are alike, and for one without a reward (None)."""
    known = [reward for reward in rewards if reward is not None]
    mean = sum(known) / len(known) if known else 0.0
    return [0.0 if reward is None else reward - mean for reward in rewards]


def rows_of(groups: list[Group]) -> list[Row]:
    """Every answer that teaches: those whose advantage is 0 are left out."""
    return [
        (group.prompt, answer, advantage)
        for group in groups
        for answer, advantage in zip(group.answers, advantages(group.rewards), strict=True)
        if advantage and any(answer.mask)
    ]


def micro_batch(rows: list[Row], context: int, settings: RLConfig, device: torch.device) -> MicroBatch:
    """Rows with weights such that the step's loss is a mean over what `settings.mean_over` says.

    A step divides the sum of weighted losses by the number of targets of a micro-batch, and micro-batches count by target_count.
    """
    masked = [(prompt + answer.ids, [0] * len(prompt) + answer.mask) for prompt, answer, _ in rows]
    ids, targets = pad_rows(masked, context)
    weights = torch.tensor([[advantage] for _, _, advantage in rows]).repeat(1, ids.size(1))
    learned = (targets >= 0).sum(1, keepdim=True)  # of each answer, (N, 1)
    count = int(learned.sum())
    if settings.mean_over != "tokens":
        lengths = learned if settings.mean_over == "answers" else torch.full_like(learned, settings.max_tokens)
        weights, count = weights * count / (len(rows) * lengths.clamp(min=1)), len(rows)
    return MicroBatch(ids.to(device), targets.to(device), count, weights.to(device))


def update_batches(stage: Stage, groups: list[Group]) -> list[list[MicroBatch]]:
    """This rank's micro-batches of each update. Which rows an update has depends on (seed, step); long rows go together."""
    plan, settings, device = stage.run.plan, stage.run.plan.recipe.stages.rl, stage.run.runtime.device
    context = plan.model.context
    rows = rows_of(groups)
    Random(f"updates {plan.recipe.seed} {stage.step}").shuffle(rows)
    nothing = micro_batch([([0], Completion([0], [1], "", "stop"), 0.0)], context, settings, device)
    updates = []
    for number in range(settings.updates):
        part = sorted(rows[number :: settings.updates], key=lambda row: len(row[0]) + len(row[1].ids), reverse=True)
        batches = []
        while part:
            longest = min(context, len(part[0][0]) + len(part[0][1].ids))
            size = max(1, plan.micro_batch_size * context // longest)
            batches.append(micro_batch(part[:size], context, settings, device))
            part = part[size:]
        updates.append(pad_to_same_count(batches or [nothing._replace(target_count=0)], nothing, stage.run.runtime))
    return updates


@dataclass
class PolicyLoss:
    """The clipped surrogate and the KL term, for updates whose model is not the one that sampled, or that stay near a reference.

    For each token with advantage A and ratio q = p / p_old: -min(q A, clip(q, 1 - clip_low, 1 + clip_high) A). The KL divergence
    is estimated without bias and never below 0 by exp(d) - d - 1 with d = log(reference / p) (arXiv 2402.03300, eq. 4).
    """

    settings: RLConfig
    kl: list[float] = field(default_factory=list)
    clipped: list[float] = field(default_factory=list)

    def __call__(self, model: nn.Module, batch: MicroBatch) -> Tensor:
        learned = batch.targets >= 0
        assert batch.weights is not None
        logprobs, advantage = target_logprobs(model, batch)[learned], batch.weights[learned]
        ratio = (logprobs - (logprobs.detach() if batch.old is None else batch.old[learned])).exp()
        bounded = ratio.clamp(1 - self.settings.clip_low, 1 + self.settings.clip_high)
        gain = torch.minimum(ratio * advantage, bounded * advantage)
        loss = -gain.mean()
        if batch.reference is not None:
            distance = batch.reference[learned] - logprobs
            kl = (distance.exp() - distance - 1).mean()
            loss = loss + self.settings.kl * kl
        if batch.target_count:
            self.clipped.append((bounded * advantage < ratio * advantage).float().mean().item())
            self.kl += [kl.item()] if batch.reference is not None else []
        return loss

    def stats(self) -> dict[str, float]:
        """Means over the micro-batches of this rank."""
        values = {"kl": self.kl, "clipped": self.clipped if self.settings.updates > 1 else []}
        return {name: sum(found) / len(found) for name, found in values.items() if found}


def with_logprobs(stage: Stage, updates: list[list[MicroBatch]], reference: nn.Module | None) -> list[list[MicroBatch]]:
    """The micro-batches with what the options need: log-probabilities before the first update, and those of the reference."""

    @torch.no_grad()
    def completed(batch: MicroBatch) -> MicroBatch:
        old = target_logprobs(stage.step_model, batch) if len(updates) > 1 else None
        return batch._replace(old=old, reference=target_logprobs(reference, batch) if reference is not None else None)

    return [[completed(batch) for batch in batches] for batches in updates]


def learn_from(stage: Stage, groups: list[Group], share: float, reference: nn.Module | None) -> tuple[StepResult, dict]:
    """The updates of one step. `share` is the part of the step's problems that teaches: one of 32 must not make as large a step
    as 32 of them, since Muon's steps do not shrink with the gradient."""
    settings, updates = stage.run.plan.recipe.stages.rl, update_batches(stage, groups)
    loss: Callable[[nn.Module, MicroBatch], Tensor] = next_token_loss  # weighted by advantages it is the on-policy gradient
    if settings.updates > 1 or reference is not None:
        loss = PolicyLoss(settings)
        updates = with_logprobs(stage, updates, reference)
    results = [stage.learn(batches, share=share / len(updates), loss_of=loss) for batches in updates]
    return merge_results(results), loss.stats() if isinstance(loss, PolicyLoss) else {}


def reinforce(run: Run) -> None:
    """Run the RL stage to its last step, or go on where its newest checkpoint stands."""
    recipe, settings = run.plan.recipe, run.plan.recipe.stages.rl
    practice = open_practice(
        settings.tasks, reward=settings.reward, data_folder=recipe.eval_data or None, held_out=settings.held_out, seed=recipe.seed
    )
    stage, watch = open_stage(run, "rl"), Watch(run.log.note)
    if settings.max_tokens > run.plan.model.context:
        most = f"the model's context is {run.plan.model.context} tokens, question included: longer answers are cut there"
        run.log.remark("rl", f"stages.rl.max_tokens is {settings.max_tokens}; {most}")
    policy = Policy(stage, Grader(settings.reward_seconds, run.log.note))
    reference = None
    if settings.kl:
        reference = starting_model(run, "rl")[0].set_precision(run.runtime.dtype, run.runtime.attention).requires_grad_(False)
    open_rollouts(run, stage.step)
    tests = practice.held_out(settings.held_out) if settings.validations else []
    interval = -(-stage.steps // max(1, settings.validations - 1))
    while stage.step < stage.steps:
        if tests and settings.validations > 1:
            validate_if_due(stage, interval, lambda: pass_rates(policy, tests))
        start = time.perf_counter()
        rollout = roll_out(policy, practice)
        stats = rollout_stats(rollout, run.runtime)
        log_rollouts(run, stage.step + 1, rollout.groups)
        stats["rollout_seconds"] = time.perf_counter() - start
        teaching = [group for group in rollout.groups if group.teaches]
        own = -(-settings.prompts // run.runtime.world_size)
        share = run.runtime.total(torch.tensor(float(min(own, len(teaching))))).item() / settings.prompts
        result, more = learn_from(stage, teaching[:own], min(1.0, share), reference)
        stage.seconds += stats["rollout_seconds"]
        stage.record(result, [f"RL problems of seed {recipe.seed}, step {stage.step + 1}"], **stats, **more)
        watch(stats)
        stage.save_if_due(result)
    evaluate_stage(run, stage, **(pass_rates(policy, tests) if tests else {}))
