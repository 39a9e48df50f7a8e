"""How long everything takes that a budget pays for: arithmetic on timings that were measured or assumed."""

from __future__ import annotations

import math

from nutshell.plan.hardware import Timing
from nutshell.plan.recipe import Recipe
from nutshell.plan.stages import DPOConfig, RLConfig

VALIDATION_SHARE = 0.03  # of the time of pretraining, for all its validations
FEWEST_VALIDATION_TOKENS, MOST_VALIDATION_TOKENS = 2**14, 2**20
SAVING_SHARE = 0.01  # of the time of training, for checkpoints that are due by time
SHORTEST_SAVE_SECONDS = 30.0
RESERVE = 0.05  # share of a budget for opening the stages, the report and what neighbours on the machine cost
SAVING_BYTES_PER_SECOND = 5e8  # hashing, writing and syncing a checkpoint (two CPU cores and their disk: 56 MB in 0.08 s)
COPYING_BYTES_PER_SECOND = 5e9  # what training itself waits for when a checkpoint is due: a thread writes it
EVALUATION_ROWS = 64  # replies decoded together (eval/chat.py)
ANSWER_SHARE = 0.35
"""Mean length of answers as a share of the longest allowed: 25 to 39 tokens of 96 in the runs of docs/experiments.md."""
LONGEST_REPLY = 128  # tokens, of a base model: it has not learned to end
REPLY = 34  # tokens, from midtraining on
CHOICE_TOKENS, PROMPT_TOKENS = 100, 40
"""Read for an item of the primer: four options with their question; a question to answer."""
FILE_CHOICE_TOKENS, FILE_PROMPT_TOKENS = 300, 90  # the same for ARC-Easy and GSM8K, where --eval-data names them


def rl_step_seconds(rl: RLConfig, timing: Timing) -> float:
    """One RL step: decoding all answers, of `ANSWER_SHARE` of the longest length on average, then one update on them.

    Answers that have ended leave the batch, so a step with fewer rows takes less.
    """
    length = ANSWER_SHARE * rl.max_tokens
    return timing.decode_seconds * length + rl.prompts * rl.samples * length / timing.tokens_per_second


def dpo_step_seconds(dpo: DPOConfig, timing: Timing, pair_tokens: float) -> float:
    """One DPO step: an update on a batch of pairs of `pair_tokens` tokens each."""
    return dpo.batch * pair_tokens / timing.tokens_per_second


def step_seconds(recipe: Recipe, stage: str, timing: Timing, tokens_per_step: int, pair_tokens: float) -> float:
    """One step of a stage."""
    if stage == "dpo":
        return dpo_step_seconds(recipe.stages.dpo, timing, pair_tokens)
    if stage == "rl":
        return rl_step_seconds(recipe.stages.rl, timing)
    return tokens_per_step / timing.tokens_per_second


def validation(recipe: Recipe, tokens: float) -> tuple[int, int]:
    """(validations, tokens of each) of pretraining on `tokens`: a power of two, since a forward pass takes a third of a step."""
    times = recipe.validations or (4 if tokens < 1e9 else 10)
    each = min(MOST_VALIDATION_TOKENS, max(FEWEST_VALIDATION_TOKENS, VALIDATION_SHARE * 3 * tokens / times))
    return times, recipe.validation_tokens or 2 ** int(math.log2(each))


def evaluation_seconds(recipe: Recipe, timing: Timing, stage: str, world_size: int = 1, validated: float = 0.0) -> float:
    """What a stage spends on scoring: the tasks after it, on one rank, and validations of `validated` tokens in all."""
    rl, items = recipe.stages.rl, recipe.eval_items
    forward = timing.forward_tokens_per_second or 3 * timing.tokens_per_second / world_size
    step = timing.reply_seconds or timing.decode_seconds * EVALUATION_ROWS / (rl.prompts * rl.samples)
    replies, read = 0, 0  # tokens
    for name in recipe.tasks_after(stage):
        own = name.startswith("primer")
        if name in ("primer-facts", "arc-easy", "arc-challenge"):
            read += items * (CHOICE_TOKENS if own else FILE_CHOICE_TOKENS)
        else:
            replies += items * (REPLY if own and stage != "pretrain" else LONGEST_REPLY)
            read += items * (PROMPT_TOKENS if own else FILE_PROMPT_TOKENS)
    seconds = replies / EVALUATION_ROWS * step + read / forward
    if stage == "rl":
        seconds += rl.validations * rl.held_out / rl.prompts * ANSWER_SHARE * rl.max_tokens * timing.decode_seconds
    return seconds + validated / (forward * world_size)


def saving_seconds(parameters: int, times: int = 1) -> float:
    """Checkpoints that a stage waits for, since it scores what is saved: weights and at most twice as much state, in fp32."""
    return 12 * parameters / SAVING_BYTES_PER_SECOND * times


def save_interval(recipe: Recipe, parameters: int, *, gpu: bool) -> float:
    """Seconds between checkpoints: the recipe's, else as few as cost at most `SAVING_SHARE` of the time, and at least 30."""
    return recipe.save_every_seconds or max(SHORTEST_SAVE_SECONDS, math.ceil(_saving_loss(parameters, gpu) / SAVING_SHARE))


def saving_share(recipe: Recipe, parameters: int, *, gpu: bool) -> float:
    """How much longer training takes for the checkpoints that it does not wait for."""
    return min(1.0, _saving_loss(parameters, gpu) / save_interval(recipe, parameters, gpu=gpu))


def _saving_loss(parameters: int, gpu: bool) -> float:
    """Seconds that a checkpoint takes from training: the copy; on CPU also the writing, which shares the cores."""
    return 12 * parameters * (1 / COPYING_BYTES_PER_SECOND + (0 if gpu else 1 / SAVING_BYTES_PER_SECOND))
