"""Direct preference optimization (DPO, arXiv 2305.18290): learn which of two answers is preferred, without a reward model.

    loss = -log sigmoid(m),    m = beta [(log p(chosen) - log r(chosen)) - (log p(rejected) - log r(rejected))]

p is the model, r the reference: the same model before this stage. Why this works: among all models, the one with the most reward
that stays near r (reward less beta times the KL divergence) is p ~ r exp(reward / beta). So beta log(p / r) is the reward that a
model stands for, up to a constant of the prompt, which two answers to one prompt share. The margin m is thus a difference of
rewards, and sigmoid(m) is the chance that the chosen answer wins (Bradley and Terry): the loss is the likelihood of the choices.
beta says how far the model may go: the smaller it is, the farther it goes for the same margin.
"""

from __future__ import annotations

import json
from dataclasses import dataclass, field
from typing import NamedTuple

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from nutshell.data.preferences import Pair, read_pairs
from nutshell.eval.score import score
from nutshell.files import write_text
from nutshell.model.decoder import Decoder
from nutshell.run.folder import Run
from nutshell.runtime import Runtime
from nutshell.text_files import json_rows
from nutshell.tokenizer import Tokenizer
from nutshell.tokenizer.chat import parse_messages, render
from nutshell.train.build import open_stage, starting_model
from nutshell.train.prefetch import MicroBatch
from nutshell.train.scoring import evaluate_stage, validate_if_due
from nutshell.train.stage import Stage
from nutshell.train.step import pad_rows, pad_to_same_count, target_logprobs

VALIDATIONS = 3  # during the stage, after its first and before its last
LOGITS_AT_ONCE = 1 << 26  # elements in fp32 of one micro-batch


class Answers(NamedTuple):
    """Token ids of a pair: what both begin with, and the two answers with their end."""

    prompt: list[int]
    chosen: list[int]
    rejected: list[int]

    @property
    def length(self) -> int:
        """Tokens of the longer of the two, with the prompt."""
        return len(self.prompt) + max(len(self.chosen), len(self.rejected))


def to_tokens(pair: Pair, tok: Tokenizer) -> Answers:
    prompt = len(render(pair.chosen[:-1], tok)[0]) + 1  # <|assistant_start|>
    chosen, rejected = (render(messages, tok)[0] for messages in pair)
    return Answers(chosen[:prompt], chosen[prompt:], rejected[prompt:])


def answer_scores(model: Decoder, pairs: list[Answers], runtime: Runtime) -> Tensor:
    """Summed log-probabilities of (chosen, rejected), (P, 2), on the CPU. All ranks take part."""
    scores = score(model, [(pair.prompt, answer) for pair in pairs for answer in pair[1:]], runtime=runtime)
    return torch.tensor([value.logprob for value in scores]).view(-1, 2)


def own_pairs(run: Run) -> tuple[list[Answers], Tensor]:
    """The run's pairs, and the reference's log-probabilities of their answers, (P, 2).

    Both are kept in dpo/pairs.jsonl when the stage begins: the reference is asked once, and the file of the recipe may go.
    """
    path, context = run.stage_folder("dpo") / "pairs.jsonl", run.plan.model.context
    if not run.runtime.agree(path.exists()):
        given = read_pairs(run.plan.recipe.stages.dpo.pairs, parse_messages)
        both = [(pair, to_tokens(pair, run.tok)) for pair in given]
        both = [(pair, ids) for pair, ids in both if ids.chosen != ids.rejected and ids.length <= context + 1]
        reason = f"longer than the context of {context} tokens, or their answers are equal"
        if len(both) < len(given):
            run.log.note(f"dpo: {len(given) - len(both)} of {len(given)} pairs are left out: {reason}.")
        if not both:
            raise ValueError(f"no pair of {run.plan.recipe.stages.dpo.pairs} can be learned from: all are {reason}.")
        model = starting_model(run, "dpo")[0].set_precision(run.runtime.dtype, run.runtime.attention).for_inference()
        scores = answer_scores(model, [ids for _, ids in both], run.runtime).tolist()
        if run.runtime.is_main:
            path.parent.mkdir(parents=True, exist_ok=True)
            rows = [{**pair._asdict(), "reference": reference} for (pair, _), reference in zip(both, scores, strict=True)]
            write_text(path, "".join(json.dumps(row) + "\n" for row in rows))
        run.runtime.barrier()
    rows = [row for _, row in json_rows(path)]
    pairs = [to_tokens(Pair(row["chosen"], row["rejected"]), run.tok) for row in rows]
    return pairs, torch.tensor([row["reference"] for row in rows])


def rewards_of(logprobs: Tensor, reference: Tensor, beta: float) -> Tensor:
    """What the model's log-probabilities say that answers are worth, up to a constant of the prompt."""
    return beta * (logprobs - reference)


@dataclass
class PairLoss:
    """Mean loss of a micro-batch whose rows are chosen and rejected in turn; remembers the rewards of what it has seen."""

    beta: float
    rewards: list[Tensor] = field(default_factory=list)  # (P, 2) each

    def __call__(self, model: nn.Module, batch: MicroBatch) -> Tensor:
        assert batch.reference is not None
        logprobs = target_logprobs(model, batch).sum(1).view(-1, 2)
        rewards = rewards_of(logprobs, batch.reference, self.beta)
        if batch.target_count:
            self.rewards.append(rewards.detach())
        return -F.logsigmoid(rewards[:, 0] - rewards[:, 1]).mean()


def pair_stats(rewards: Tensor) -> dict[str, float]:
    """Of rewards (P, 2): loss, mean margin, share of pairs whose chosen answer has the larger one, and the mean of each side.

    Where both sides fall, the model only learns what not to say: lower the rate or the number of epochs.
    """
    margins = (rewards[:, 0] - rewards[:, 1]).double()
    return {
        "loss": -F.logsigmoid(margins).mean().item(),
        "margin": margins.mean().item(),
        "accuracy": (margins > 0).double().mean().item(),
        "chosen_reward": rewards[:, 0].mean().item(),
        "rejected_reward": rewards[:, 1].mean().item(),
    }


def pack_pairs(pairs: list[Answers], reference: Tensor, device: torch.device) -> MicroBatch:
    """Rows of prompt + answer, chosen and rejected in turn, padded on the right; the answers' tokens are the targets."""
    rows = [(pair.prompt + answer, [0] * len(pair.prompt) + [1] * len(answer)) for pair in pairs for answer in pair[1:]]
    ids, targets = pad_rows(rows, max(pair.length for pair in pairs))
    return MicroBatch(ids.to(device), targets.to(device), len(pairs), reference=reference.to(device))


def step_batches(stage: Stage, pairs: list[Answers], reference: Tensor) -> list[MicroBatch]:
    """This rank's micro-batches of the stage's next step. Which pairs they hold depends on (seed, step) alone."""
    plan, runtime = stage.run.plan, stage.run.runtime
    size = min(plan.recipe.stages.dpo.batch, len(pairs))
    places = [pair_at(plan.recipe.seed, len(pairs), stage.step * size + i) for i in range(size)]
    own = sorted(places[runtime.rank :: runtime.world_size], key=lambda place: pairs[place].length)
    longest = max(pair.length for pair in pairs)
    at_once = min(plan.micro_batch_size * plan.model.context // longest, LOGITS_AT_ONCE // (longest * plan.model.vocab_size))
    at_once = max(1, at_once // 2)
    groups = [own[start : start + at_once] for start in range(0, len(own), at_once)]
    batches = [pack_pairs([pairs[i] for i in group], reference[group], runtime.device) for group in groups]
    return pad_to_same_count(batches, pack_pairs(pairs[:1], reference[:1], runtime.device), runtime)


def pair_at(seed: int, pairs: int, place: int) -> int:
    """Which pair comes at `place` of an endless order, in which every epoch is shuffled differently."""
    epoch, place = divmod(place, pairs)
    return int(np.random.default_rng([seed, epoch]).permutation(pairs)[place])


def held_out_stats(stage: Stage, pairs: list[Answers], reference: Tensor) -> dict[str, float]:
    """`pair_stats` of the held-out pairs now, as metrics; nothing where there are none."""
    if not pairs:
        return {}
    model = stage.whole_model(everywhere=True).for_inference().to(stage.run.runtime.device)
    rewards = rewards_of(answer_scores(model, pairs, stage.run.runtime), reference, stage.run.plan.recipe.stages.dpo.beta)
    return {f"pairs_{name}": value for name, value in pair_stats(rewards).items()}


def dpo(run: Run) -> None:
    """Run the DPO stage to its last step, or go on where its newest checkpoint stands."""
    stage, settings = open_stage(run, "dpo"), run.plan.recipe.stages.dpo
    pairs, reference = own_pairs(run)
    order = np.random.default_rng(run.plan.recipe.seed).permutation(len(pairs)).tolist()
    held_out, learned = np.split(order, [settings.held_out_of(len(pairs))])
    tests, tests_reference = [pairs[i] for i in held_out], reference[held_out]
    pairs, reference = [pairs[i] for i in learned], reference[learned]
    interval = -(-stage.steps // (VALIDATIONS + 1))
    while stage.step < stage.steps:
        if tests:
            validate_if_due(stage, interval, lambda: held_out_stats(stage, tests, tests_reference))
        loss = PairLoss(settings.beta)
        result = stage.learn(step_batches(stage, pairs, reference), loss_of=loss)
        seen = torch.cat(run.runtime.gather(torch.cat([torch.zeros(0, 2), *(rewards.cpu() for rewards in loss.rewards)])))
        stats = pair_stats(seen)
        stats.pop("loss")  # the step's own
        stage.record(result, [f"pairs of {settings.pairs}"], **stats)
        stage.save_if_due(result)
    evaluate_stage(run, stage, **held_out_stats(stage, tests, tests_reference))
