"""Pretraining: documents from shards, next-token loss, bits per byte on held-out text."""

from __future__ import annotations

import time

import torch

from nutshell.data.loader import PretrainLoader
from nutshell.data.shards import open_shards
from nutshell.data.stream import Batch
from nutshell.eval.bpb import bits_per_byte
from nutshell.run.checkpoints import keep_best
from nutshell.run.folder import Run
from nutshell.train.prefetch import ToDevice
from nutshell.train.scoring import evaluate_stage
from nutshell.train.stage import Stage, open_stage


def pretrain(run: Run) -> None:
    """Train from drawn weights to the plan's last step, or go on where the newest checkpoint stands."""
    if run.finished("pretrain"):
        return
    plan, runtime = run.plan, run.runtime
    stage = open_stage(run, "pretrain")
    shards = open_shards(run.data, on_error=plan.recipe.damaged_shards)
    loader = PretrainLoader(
        shards, run.tok.encode_batch, run.tok.bos_id, plan.micro_batch_size, plan.model.context + 1, seed=plan.recipe.seed,
        rank=runtime.rank, world_size=runtime.world_size, prefetched_batches=max(4, plan.grad_accum_steps),
        prepare=ToDevice(runtime.device, run.tok.bos_id, stage.model.attention_kernel),
    )  # fmt: skip
    if stage.loader_state:
        loader.load_state_dict(stage.loader_state)
    validation = loader.val_batches(plan.validation_tokens)
    interval = max(1, -(-stage.steps // plan.validations))
    if 0 < stage.step < stage.steps and stage.step % interval == 0 and not run.log.has_evaluation("pretrain", stage.step):
        validate(stage, validation)  # the run was stopped between saving and validating

    told = 0
    with loader:
        while stage.step < stage.steps:
            batches = [next(loader) for _ in range(plan.grad_accum_steps)]
            result = stage.learn(batches)
            for problem in shards.problems[told:]:
                run.log.note(f"skipped: {problem}")
            told = len(shards.problems)
            stage.record(result, loader.sources, **({"damaged_blocks": told} if told else {}))
            due = stage.step % interval == 0
            stage.save_if_due(result, loader, anyway=due)  # before validating, and so that the best can be kept
            if due and stage.step < stage.steps:
                validate(stage, validation)
    stage.wait_for_save()
    evaluate_stage(run, stage, val_bpb=validation_bpb(stage, validation))


def validation_bpb(stage: Stage, batches: list[Batch]) -> float:
    """Bits per byte now; the checkpoint of this step is kept if none scored better."""
    byte_lengths = torch.from_numpy(stage.run.tok.token_byte_lengths())
    bpb = bits_per_byte(stage.model, batches, byte_lengths, reduce=stage.run.runtime.total)
    if stage.run.runtime.is_main:
        keep_best(stage.run.stage_folder("pretrain"), stage.step, bpb)
    return bpb


def validate(stage: Stage, batches: list[Batch]) -> None:
    """Score and log a step in the middle of the stage, when its checkpoint is on the disk."""
    stage.wait_for_save()
    start = time.monotonic()
    bpb = validation_bpb(stage, batches)
    stage.run.log.evaluation("pretrain", stage.step, {"val_bpb": bpb}, eval_seconds=time.monotonic() - start)
