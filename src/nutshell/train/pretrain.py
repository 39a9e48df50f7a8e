"""Pretraining: documents from shards, next-token loss, bits per byte on held-out text."""

from __future__ import annotations

from functools import partial

import torch

from nutshell.data.loader import PretrainLoader
from nutshell.data.mixed import MixedShards, open_corpus
from nutshell.data.stream import Batch
from nutshell.eval.bpb import bits_per_byte
from nutshell.run.checkpoints import keep_best
from nutshell.run.folder import Run
from nutshell.train.build import open_stage
from nutshell.train.prefetch import ToDevice
from nutshell.train.scoring import evaluate_stage, validate_if_due
from nutshell.train.stage import Stage

Validation = dict[str, tuple[float, list[Batch]]]
"""Share and held-out batches of each corpus by its name; one without a name where there is only one."""


def pretrain(run: Run) -> None:
    """Train from drawn weights to the plan's last step, or go on where the newest checkpoint stands."""
    plan, runtime = run.plan, run.runtime
    stage = open_stage(run, "pretrain")
    shards = open_corpus(run.data, on_error=plan.recipe.damaged_shards)
    make_loader = partial(
        PretrainLoader,
        encode_batch=run.tok.encode_batch,
        bos_id=run.tok.bos_id,
        rows=plan.micro_batch_size,
        row_tokens=plan.model.context + 1,
        seed=plan.recipe.seed,
        rank=runtime.rank,
        world_size=runtime.world_size,
        prefetched_batches=max(4, plan.grad_accum_steps),
        prepare=ToDevice(runtime.device, run.tok.bos_id, stage.model.attention_kernel),
    )
    loader = make_loader(shards)
    if stage.loader_state:
        loader.load_state_dict(stage.loader_state)
    validation: Validation
    if isinstance(shards, MixedShards):  # several corpora, each validated by itself
        validation = {
            part.name: (part.share, make_loader(shards.parts[part.name]).val_batches(int(plan.validation_tokens * part.share)))
            for part in plan.stages["pretrain"].parts
        }
    else:
        validation = {"": (1.0, loader.val_batches(plan.validation_tokens))}
    interval = max(1, -(-stage.steps // plan.validations))
    noted = 0  # damaged blocks of the data that the log has named
    with loader:
        while stage.step < stage.steps:
            if stage.step:
                validate_if_due(stage, interval, lambda: validation_bpb(stage, validation))
            batches = [next(loader) for _ in range(plan.grad_accum_steps)]
            result = stage.learn(batches)
            for problem in shards.problems[noted:]:
                run.log.note(f"skipped: {problem}")
            noted = len(shards.problems)
            stage.record(result, loader.sources, **({"damaged_blocks": noted} if noted else {}))
            stage.save_if_due(result, loader, anyway=stage.step % interval == 0)  # so that the best can be kept
    stage.wait_for_save()
    evaluate_stage(run, stage, **validation_bpb(stage, validation))


def validation_bpb(stage: Stage, validation: Validation) -> dict[str, float]:
    """Bits per byte of the model as it is now; this step's checkpoint is kept if none scored better.

    Of several corpora each one's bits per byte are returned too, and the mean weighted by their shares is the whole.
    """
    byte_lengths = torch.from_numpy(stage.run.tok.token_byte_lengths())
    reduce = stage.run.runtime.total
    found = {name: bits_per_byte(stage.model, batches, byte_lengths, reduce=reduce) for name, (_, batches) in validation.items()}
    bpb = sum(share * found[name] for name, (share, _) in validation.items())
    if stage.run.runtime.is_main:
        keep_best(stage.run.stage_folder("pretrain"), stage.step, bpb)
    return {"val_bpb": bpb, **{f"val_bpb-{name}": value for name, value in found.items() if name}}
