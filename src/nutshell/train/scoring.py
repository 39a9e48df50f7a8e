"""What is measured after each stage, on the model that was just saved."""

from __future__ import annotations

import time

from nutshell.eval.chat import evaluate
from nutshell.metrics import read_metrics
from nutshell.plan.recipe import PRIMER
from nutshell.run.folder import Run
from nutshell.tasks import load_task
from nutshell.train.stage import Stage

PRIMER_TASKS = ("primer-facts", "primer-sums", "primer-letters")
FILE_TASKS = ("arc-easy", "gsm8k")
"""Only with --eval-data, which names their files."""
PRACTISED = ("primer-sums", "primer-letters")
"""What RL practises; their mean is logged as `primer-practised`."""
TARGETS = {"primer-facts": 0.90, "primer-sums": 0.85, "primer-letters": 0.85}
"""Of the demo, from fine-tuning on."""
HIGH = 0.95
"""RL has to raise the mean of what it practises, or hold it above this."""


def evaluate_stage(run: Run, stage: Stage, **metrics: float) -> None:
    """Score the tasks and log them beside baselines, targets and samples. Rank 0 does it, the others wait.

    A signal ends it at once: the model is saved, and the same command begins with this evaluation.
    """

    def progress(done: int, total: int) -> None:
        if run.stop:
            stage.leave(alone=True)

    stage.settle()
    whole = stage.whole_model()
    if run.runtime.is_main:
        start = time.perf_counter()
        recipe = run.plan.recipe
        model = whole.for_inference().to(run.runtime.device)
        values, baselines, samples = dict(metrics), {}, []
        for name in PRIMER_TASKS + (FILE_TASKS if recipe.eval_data else ()):
            task = load_task(name, limit=recipe.eval_items, seed=recipe.seed, data_folder=recipe.eval_data or None)
            result = evaluate(task, model, run.tok, progress=progress)
            values[name], baselines[name] = result["accuracy"], task.baseline
            samples += [{"task": name, **example} for example in result["examples"]]
        for numbers in (values, baselines):
            numbers["primer-practised"] = sum(numbers[name] for name in PRACTISED) / len(PRACTISED)
        run.log.evaluation(
            stage.name, stage.step, values, baselines=baselines, targets=targets_for(run, stage.name), samples=samples,
            eval_seconds=round(time.perf_counter() - start, 2),
        )  # fmt: skip
        run.log.sync()
    run.runtime.barrier()


def targets_for(run: Run, stage: str) -> dict[str, float]:
    """What a model of the primer alone should reach after this stage; other texts have no such targets."""
    if run.plan.recipe.data != PRIMER or run.plan.recipe.sft != PRIMER:
        return {}
    if stage == "sft":
        return TARGETS
    if stage != "rl":
        return {}
    before = [line["eval"]["primer-practised"] for line in read_metrics(run.folder) if line["stage"] == "sft" and "eval" in line]
    return {**TARGETS, "primer-practised": min(HIGH, before[-1])} if before else TARGETS
