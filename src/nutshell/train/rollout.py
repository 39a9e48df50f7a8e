"""Rollouts of RL: many problems answered many times by the batched engine, graded, counted, kept as JSON lines."""

from __future__ import annotations

import json
import os
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import torch

from nutshell.eval.chat import pass_at_k
from nutshell.files import naming, write_text
from nutshell.infer.conversation import fit_conversation
from nutshell.infer.engine import Engine
from nutshell.infer.request import Completion
from nutshell.infer.sampling import Sampling
from nutshell.model.decoder import Decoder
from nutshell.run.folder import Run
from nutshell.runtime import Runtime
from nutshell.tasks.practice import Practice, Problem
from nutshell.tasks.reward import Grader
from nutshell.tasks.task import Item
from nutshell.text_files import json_rows
from nutshell.train.stage import Stage
from nutshell.train.step import pad_rows

FILE_NAME = "rollouts.jsonl"
MOST_BYTES = 16 << 20
"""Of rollouts.jsonl; the one before it is kept as rollouts.old.jsonl, older ones are not."""
ENTROPY_ANSWERS = 16  # of a step, that the entropy is measured on
WATCHED_STEPS = 10
ROOM = 64  # tokens: the context of an engine is a multiple, so that the next step's longest prompt seldom needs a new engine
FEW = 0.1  # share of problems that teach, below which the user is warned


@dataclass(frozen=True)
class Group:
    """A problem with its answers, graded."""

    task: str
    item: Item
    prompt: list[int]
    answers: list[Completion]
    rewards: list[float | None]
    """None where the reward gave no grade."""

    @property
    def teaches(self) -> bool:
        """Whether the answers differ in reward: otherwise there is nothing to prefer."""
        return len({reward for reward in self.rewards if reward is not None}) > 1


class Rollout(NamedTuple):
    """What a step has drawn on this rank."""

    groups: list[Group]
    entropies: list[float]
    """Of the model's choice of each sampled token of some answers, in nats."""


class Policy:
    """The stage's model, answering problems. On CPU one engine stays through the stage and follows the weights; on a GPU each
    batch of answers makes its own, since training needs the memory of its cache in between."""

    def __init__(self, stage: Stage, grader: Grader) -> None:
        self.stage, self.grader = stage, grader
        self.model: Decoder | None = None
        self.engine: Engine | None = None

    def follow(self) -> Decoder:
        """The frozen model, with the stage's weights as they are now."""
        whole = self.stage.whole_model(everywhere=True)
        if self.model is None:
            self.model = whole.for_inference().to(self.stage.run.runtime.device)
        else:
            self.model.follow(whole)
        if self.engine is not None:
            self.engine.weights_changed()
        return self.model

    def answer(self, problems: list[Problem], seed: int) -> list[Group]:
        """`samples` answers to each problem, graded; all of them in one batch."""
        if not problems:
            return []
        plan, tok = self.stage.run.plan, self.stage.run.tok
        settings = plan.recipe.stages.rl
        prompts = [fit_conversation(item.messages, tok, plan.model.context, settings.max_tokens).ids for _, item, _ in problems]
        engine = self._engine(max(map(len, prompts)) + settings.max_tokens)
        sampling = Sampling(max_tokens=settings.max_tokens, temperature=settings.temperature, seed=seed)
        groups = []
        for problem, prompt, replies in zip(problems, prompts, engine.sample(prompts, settings.samples, sampling), strict=True):
            task, item, grade = problem
            groups.append(Group(task, item, prompt, replies, [self.grader(grade, item, reply.text) for reply in replies]))
        if self.stage.run.runtime.device.type != "cpu":
            self.engine = None
        return groups

    def _engine(self, longest: int) -> Engine:
        """One for prompt and reply of that many tokens: a new one where the last had less room."""
        plan, settings = self.stage.run.plan, self.stage.run.plan.recipe.stages.rl
        longest = min(plan.model.context, longest)
        if self.engine is None or self.engine.context < longest:
            room = min(plan.model.context, -(-longest // ROOM) * ROOM)
            rows = settings.prompts * settings.samples
            self.engine = Engine(self.model or self.follow(), self.stage.run.tok, max_rows=rows, context=room)
        return self.engine


@torch.inference_mode()
def token_entropies(model: Decoder, groups: list[Group]) -> list[float]:
    """Entropy in nats of the distribution that each sampled token of some answers came from, at a temperature of 1."""
    some = [(group.prompt, group.answers[0]) for group in groups[:ENTROPY_ANSWERS]]
    if not some:
        return []
    masked = [(prompt + reply.ids, [0] * len(prompt) + reply.mask) for prompt, reply in some]
    ids, targets = pad_rows(masked, model.config.context)
    device = next(model.parameters()).device
    logprobs = model(ids.to(device))[(targets >= 0).to(device)].log_softmax(-1)  # (tokens, V)
    return (-(logprobs.exp() * logprobs).sum(-1)).tolist()


def roll_out(policy: Policy, practice: Practice) -> Rollout:
    """This rank's problems of a step, answered. They depend on (seed, step) alone, so a resumed run draws the same.

    Dynamic sampling: up to `draws` times, until as many problems as a step wants have answers that differ in reward.
    """
    plan, runtime = policy.stage.run.plan, policy.stage.run.runtime
    settings = plan.recipe.stages.rl
    step_seed = plan.recipe.seed * 1_000_003 + policy.stage.step
    model = policy.follow()
    groups: list[Group] = []
    for draw in range(settings.draws):
        seed = step_seed + draw * 1_000_000_007
        problems = practice.draw(seed, settings.prompts)[runtime.rank :: runtime.world_size]
        groups += policy.answer(problems, seed)
        if sum(group.teaches for group in groups) >= len(problems):
            break
    return Rollout(groups, token_entropies(model, groups))


def rollout_stats(rollout: Rollout, runtime: Runtime) -> dict[str, float]:
    """Over all ranks: mean reward, share of problems whose answers are all alike in reward, tokens an answer, share of answers
    that ended by themselves, entropy of a token; and how many answers had no grade, where there were any."""
    answers = [reply for group in rollout.groups for reply in group.answers]
    rewards = [reward for group in rollout.groups for reward in group.rewards if reward is not None]
    own = {
        "reward": sum(rewards),
        "graded": len(rewards),
        "alike": sum(not group.teaches for group in rollout.groups),
        "problems": len(rollout.groups),
        "tokens": sum(len(reply.ids) for reply in answers),
        "finished": sum(reply.finish == "stop" for reply in answers),
        "answers": len(answers),
        "entropy": sum(rollout.entropies),
        "measured": len(rollout.entropies),
    }
    sums = runtime.total(torch.tensor(list(own.values()), dtype=torch.float64).to(runtime.wire)).tolist()
    total = dict(zip(own, sums, strict=True))
    stats = {
        "reward": total["reward"] / max(1, total["graded"]),
        "zero_variance": total["alike"] / total["problems"],
        "answer_tokens": total["tokens"] / total["answers"],
        "finished": total["finished"] / total["answers"],
        "entropy": total["entropy"] / max(1, total["measured"]),
    }
    ungraded = total["answers"] - total["graded"]
    return {**stats, "ungraded": ungraded} if ungraded else stats


def pass_rates(policy: Policy, problems: list[Problem]) -> dict[str, float]:
    """pass@1 and pass@k of held-out problems with `samples` answers each, and their mean reward. Right is a reward from 1 on."""
    run = policy.stage.run
    runtime, samples = run.runtime, run.plan.recipe.stages.rl.samples
    policy.follow()
    groups = policy.answer(problems[runtime.rank :: runtime.world_size], run.plan.recipe.seed)
    rewards = [of_one for part in runtime.gather([group.rewards for group in groups]) for of_one in part]
    rights = [sum(reward is not None and reward >= 1 for reward in of_one) for of_one in rewards]
    known = [reward for of_one in rewards for reward in of_one if reward is not None]
    rates = {f"pass@{k}": sum(pass_at_k(samples, right, k) for right in rights) / len(rights) for k in (1, samples)}
    return {**rates, "held_out_reward": sum(known) / max(1, len(known))}


# ---- rollouts.jsonl ------------------------------------------------------------------------------------------------


def open_rollouts(run: Run, step: int) -> None:
    """Drop lines beyond `step`, which will be drawn again."""
    path = run.folder / FILE_NAME
    if run.runtime.is_main and path.exists():
        kept = [row for row in _whole_lines(path) if row["step"] <= step]
        write_text(path, "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in kept))


def _whole_lines(path: Path) -> list[dict[str, Any]]:
    """All but a last line that a killed process left half-written."""
    content = path.read_bytes()
    os.truncate(path, content.rfind(b"\n") + 1)
    return [row for _, row in json_rows(path)]


def log_rollouts(run: Run, step: int, groups: list[Group]) -> None:
    """One line a problem of any rank: what was asked, the answers, their rewards and whether they ended by themselves."""
    rows = [
        {
            "step": step,
            "task": group.task,
            "index": group.item.index,
            "question": group.item.messages[-1]["content"],
            "answers": [reply.text for reply in group.answers],
            "rewards": group.rewards,
            "finished": [reply.finish == "stop" for reply in group.answers],
            "tokens": [len(reply.ids) for reply in group.answers],
        }
        for group in groups
    ]
    parts = run.runtime.gather(rows)
    if not run.runtime.is_main:
        return
    path = run.folder / FILE_NAME
    if path.exists() and path.stat().st_size > MOST_BYTES:
        os.replace(path, path.with_name("rollouts.old.jsonl"))
    with naming(path), path.open("a", encoding="utf-8", errors="replace") as file:
        file.writelines(json.dumps(row, ensure_ascii=False) + "\n" for part in parts for row in part)


class Watch:
    """Warns, once each, where the last steps say that little is learned."""

    def __init__(self, note: Callable[[str], object]) -> None:
        self.note, self.last, self.told = note, deque[dict[str, float]](maxlen=WATCHED_STEPS), set[str]()

    def __call__(self, stats: dict[str, float]) -> None:
        self.last.append(stats)
        if len(self.last) < WATCHED_STEPS:
            return
        mean = {name: sum(step[name] for step in self.last) / len(self.last) for name in ("zero_variance", "finished", "reward")}
        if mean["zero_variance"] > 1 - FEW:
            cure = "Give harder ones." if mean["reward"] > 0.9 else "Give others, more --stages.rl.samples, or fine-tune first."
            if ungraded := sum(step.get("ungraded", 0.0) for step in self.last) / len(self.last):
                cure = f"The reward gave no grade to {ungraded:.0f} answers a step: mend it first."
            problem = f"{mean['zero_variance']:.0%} of the problems had answers of one reward each (mean {mean['reward']:.2f})"
            self._tell("zero_variance", f"{problem}: they teach nothing. {cure}")
        if mean["finished"] < 0.5:
            self._tell("finished", f"only {mean['finished']:.0%} of the answers ended within --stages.rl.max-tokens. Give more.")

    def _tell(self, name: str, text: str) -> None:
        if name not in self.told:
            self.told.add(name)
            self.note(f"rl: in the last {WATCHED_STEPS} steps {text}")
