"""Scores of the model that was just saved: validation in the middle of a stage, and all that is measured at its end."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Mapping
from typing import Any

from nutshell.data.mixed import open_corpus
from nutshell.eval.run import evaluate_task as evaluate
from nutshell.files import write_text
from nutshell.infer.engine import Engine
from nutshell.infer.sampling import Sampling
from nutshell.metrics import read_metrics
from nutshell.plan.recipe import PRIMER
from nutshell.run.folder import Run
from nutshell.tasks import load_task
from nutshell.tokenizer.chat import render_prompt
from nutshell.train.stage import Stage, TrainingDiverged

PRACTISED = ("primer-sums", "primer-letters", "primer-vowels")  # what RL practises; their mean is logged as `primer-practised`
TARGETS = {"primer-facts": 0.90, "primer-sums": 0.85, "primer-letters": 0.85}  # of the demo, from fine-tuning on
HIGH = 0.95  # RL has to raise the mean of what it practises, or hold it above this
SAMPLE_TOKENS = 48
QUESTIONS = ("Hello! Who are you?", "What can you tell me?", "Tell me a short story.")
"""Put to a chat model that is scored on no task, so that the report shows how it answers."""


def evaluate_stage(run: Run, stage: Stage, **metrics: float) -> None:
    """Score the recipe's tasks and log them beside baselines, targets and samples. Rank 0 does it, the others wait.

    A signal ends it immediately: the model is saved already, and the same command begins with this evaluation.
    """

    def progress(done: int, total: int) -> None:
        if run.stop:
            stage.exit_run(alone=True)

    stage.wait_for_save()
    refuse_diverged(stage, metrics)
    whole = stage.whole_model()
    if run.runtime.is_main:
        start = time.perf_counter()
        recipe = run.plan.recipe
        model = whole.for_inference().to(run.runtime.device)
        values, baselines, intervals = dict(metrics), {}, {}
        samples, notes, items = [], [], []
        for name in recipe.tasks_after(stage.name):
            task = load_task(name, limit=recipe.eval_items, seed=recipe.seed, data_folder=recipe.eval_data or None)
            result = evaluate(task, model, run.tok, progress=progress)
            values[name], baselines[name], intervals[name] = result["accuracy"], task.baseline, result["interval"]
            notes += [f"{name}: {note}" for note in result["notes"]]
            items += [record.line() + "\n" for record in result["records"]]
            samples += [{"task": name, **example} for example in result["examples"]]
        for numbers in (values, baselines):
            if all(name in numbers for name in PRACTISED):
                numbers["primer-practised"] = sum(numbers[name] for name in PRACTISED) / len(PRACTISED)
        if not baselines and not recipe.eval_tasks:  # scored on no task
            samples = sample_replies(run, model, stage.name)
        if items:  # what two runs can be compared by; written first, since the stage is finished with the line in the log
            write_text(run.stage_folder(stage.name) / "items.jsonl", "".join(items))
        run.log.evaluation(
            stage.name,
            stage.step,
            values,
            baselines=baselines,
            targets={name: goal for name, goal in targets_for(run, stage.name).items() if name in values},
            samples=samples,
            eval_seconds=round(time.perf_counter() - start, 2),
            intervals=intervals,
            **({"notes": notes} if notes else {}),
        )
        run.log.sync()
    run.runtime.barrier()


def validate_if_due(stage: Stage, interval: int, score: Callable[[], dict[str, float]]) -> bool:
    """Score and log the model after every `interval` steps, once its checkpoint is on the disk; whether it was done.

    Called before a step and not after one: a run that was stopped between saving and validating goes on with validating.
    """
    run = stage.run
    if stage.step % interval or run.runtime.agree(run.log.has_evaluation(stage.name, stage.step)):
        return False
    stage.wait_for_save()
    start = time.monotonic()
    values = score()
    refuse_diverged(stage, values)
    run.log.evaluation(stage.name, stage.step, values, eval_seconds=time.monotonic() - start)
    return True


def refuse_diverged(stage: Stage, metrics: Mapping[str, float]) -> None:
    """TrainingDiverged where a score is not finite: no later step or stage could use the model.

    Where steps are skipped too, `Stage.record` counts them and names their data.
    """
    if stage.skipped_in_a_row and stage.step < stage.steps:
        return
    for name, value in metrics.items():
        if not math.isfinite(value):
            raise TrainingDiverged(
                f"{name} after step {stage.step} of {stage.steps} of {stage.name} is {value}: the weights have diverged. "
                "Start anew in another --out with a lower --optimizer.matrix-lr, or look at the data."
            )


def targets_for(run: Run, stage: str) -> dict[str, float]:
    """What a model of the primer alone should reach after this stage; other texts have no such targets."""
    recipe = run.plan.recipe
    if {recipe.data, recipe.sft} != {PRIMER} or any(config.mixture for config in vars(recipe.stages).values()):
        return {}
    if stage == "sft":
        return TARGETS
    if stage != "rl":
        return {}
    lines = [line["eval"] for line in read_metrics(run.folder) if line["stage"] == "sft" and "eval" in line]
    before = lines[-1].get("primer-practised") if lines else None
    return TARGETS if before is None else {**TARGETS, "primer-practised": min(HIGH, before)}


def sample_replies(run: Run, model: Any, stage: str) -> list[dict[str, str]]:
    """How the model goes on where validation documents begin, or from midtraining on what it answers; most likely tokens."""
    longest_prompt = max(1, model.config.context - SAMPLE_TOKENS)
    if stage == "pretrain":
        texts = [text[:200] for text in open_corpus(run.data, on_error="skip").read("val", 0)[:3]]
        prompts = [[run.tok.bos_id, *run.tok.encode(text)][: min(24, longest_prompt)] for text in texts]
        shown = [run.tok.decode(ids[1:]) for ids in prompts]
    else:
        prompts = [render_prompt([{"role": "user", "content": question}], run.tok)[-longest_prompt:] for question in QUESTIONS]
        shown = list(QUESTIONS)
    if not prompts:  # the first validation block is damaged
        return []
    longest = min(model.config.context, max(map(len, prompts)) + SAMPLE_TOKENS)
    engine = Engine(model, run.tok, max_rows=len(prompts), context=longest)
    replies = engine.sample(prompts, 1, Sampling(temperature=0, max_tokens=SAMPLE_TOKENS))
    return [{"prompt": prompt, "reply": of_one[0].text} for prompt, of_one in zip(shown, replies, strict=True)]
