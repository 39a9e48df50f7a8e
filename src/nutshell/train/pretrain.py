"""Pretraining: documents from shards, next-token loss, bits per byte on held-out text."""

from __future__ import annotations

import time

import torch

from nutshell.data.loader import PretrainLoader
from nutshell.data.shards import open_shards
from nutshell.eval.bpb import bits_per_byte
from nutshell.plan.cost import VALIDATION_TOKENS, VALIDATIONS
from nutshell.run.folder import Run
from nutshell.train.scoring import evaluate_stage
from nutshell.train.stage import open_stage


def pretrain(run: Run) -> None:
    """Train from drawn weights to the plan's last step, or go on where the newest checkpoint stands."""
    if run.finished("pretrain"):
        return
    plan, runtime = run.plan, run.runtime
    stage = open_stage(run, "pretrain")
    shards = open_shards(run.data, on_error=plan.recipe.damaged_shards)
    loader = PretrainLoader(
        shards, run.tok.encode_batch, run.tok.bos_id, plan.rows, plan.row_tokens + 1,
        seed=plan.recipe.seed, rank=runtime.rank, world_size=runtime.world_size,
    )  # fmt: skip
    if stage.loader_state:
        loader.load_state_dict(stage.loader_state)
    validation = loader.val_batches(VALIDATION_TOKENS)
    byte_lengths = torch.from_numpy(run.tok.token_byte_lengths())

    def validation_bpb() -> float:
        return bits_per_byte(stage.model, validation, byte_lengths, reduce=runtime.total)

    def validate() -> None:
        stage.settle()
        start = time.monotonic()
        bpb = validation_bpb()
        stage.note_best(bpb)
        run.log.evaluation("pretrain", stage.step, {"val_bpb": bpb}, eval_seconds=time.monotonic() - start)

    every = max(1, -(-stage.steps // VALIDATIONS))
    if 0 < stage.step < stage.steps and stage.step % every == 0 and not run.log.has_evaluation("pretrain", stage.step):
        validate()  # the run was stopped between saving and validating
    skipped = 0
    with loader:
        steps = stage.training_steps(stage.learn_from(loader), accumulation=plan.accumulation, sources=lambda: loader.sources)
        for result in steps:
            for problem in shards.problems[skipped:]:
                run.log.note(f"skipped: {problem}")
                skipped += 1
            stage.record(result, **({"damaged_blocks": skipped} if skipped else {}))
            due = stage.step % every == 0
            stage.save_if_due(loader.state_dict, anyway=due)  # before validating, and so that the best can be kept
            if due and stage.step < stage.steps:
                validate()
    stage.settle()
    bpb = validation_bpb()
    stage.note_best(bpb)
    evaluate_stage(run, stage, val_bpb=bpb)
