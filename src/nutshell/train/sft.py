"""Midtraining and supervised fine-tuning: conversations, loss on what the assistant says, validated on some that are held out."""

from __future__ import annotations

from itertools import pairwise

import torch

from nutshell.data.loader import ConversationLoader
from nutshell.data.stream import Batch
from nutshell.metrics import read_metrics
from nutshell.plan.mixture import GENERATED, parts_of
from nutshell.run.folder import Run
from nutshell.tokenizer.chat import render_example
from nutshell.train.build import open_stage
from nutshell.train.examples import examples_for
from nutshell.train.prefetch import ToDevice
from nutshell.train.scoring import evaluate_stage, validate_if_due
from nutshell.train.stage import Stage

RISES = 2  # evaluations in a row whose loss rose before a warning


def sft(run: Run, name: str) -> None:
    """Run stage `name` ("midtrain" or "sft") to its last step, or go on where its newest checkpoint stands."""
    plan, runtime = run.plan, run.runtime
    stage = open_stage(run, name)
    examples, held_out = examples_for(run, name)
    loader = ConversationLoader(
        examples,
        lambda example: render_example(example, run.tok),
        bos_id=run.tok.bos_id,
        rows=plan.micro_batch_size,
        row_tokens=plan.model.context + 1,
        seed=plan.recipe.seed,
        rank=runtime.rank,
        world_size=runtime.world_size,
        prefetched_batches=max(4, plan.grad_accum_steps),
        prepare=ToDevice(runtime.device, run.tok.bos_id, stage.model.attention_kernel),
    )
    if stage.loader_state:
        loader.load_state_dict(stage.loader_state)
    validation = loader.val_batches(held_out, plan.validation_tokens) if held_out else []
    interval = max(1, -(-stage.steps // plan.validations)) if validation else stage.steps  # never, but for the end
    cropping = loader.losses() if reads_own_data(run, name) else {}
    remark_on_data(run, name, loader, len(held_out), cropping)
    with loader:
        while stage.step < stage.steps:
            if stage.step and validate_if_due(stage, interval, lambda: {"val_loss": validation_loss(stage, validation)}):
                warn_of_rises(stage)
            batches = [next(loader) for _ in range(plan.grad_accum_steps)]
            result = stage.learn(batches)
            stage.record(result, loader.sources, **cropping)
            stage.save_if_due(result, loader, anyway=stage.step % interval == 0)  # before it is validated
    stage.wait_for_save()
    evaluate_stage(run, stage, **({"val_loss": validation_loss(stage, validation)} if validation else {}))
    warn_of_rises(stage)


def reads_own_data(run: Run, name: str) -> bool:
    """Whether a stage learns from the user's data, not only from what nutshell generates."""
    return any(part.key not in GENERATED for part in parts_of(run.plan.recipe, name))


def remark_on_data(run: Run, name: str, loader: ConversationLoader, held_out: int, cropping: dict[str, int]) -> None:
    """Say in log and report how much is held out, and how much the context crops or leaves out."""
    if reads_own_data(run, name):
        validated = f"{held_out} of your conversations are held out, by a hash of each, and give val_loss"
        run.log.remark(name, validated if held_out else "no conversation is held out: there are too few, or held_out is 0")
    if cropping:
        longer = f"are longer than the context of {run.plan.model.context} tokens and lose their end"
        run.log.remark(
            name,
            f"of {len(loader.conversations)} conversations {cropping['cropped_conversations']} {longer} "
            f"({cropping['cropped_tokens']} tokens); {cropping['left_out_conversations']} are left out, since no answer remains "
            "of them. A longer --context keeps more.",
        )


@torch.no_grad()
def validation_loss(stage: Stage, batches: list[Batch]) -> float:
    """Mean loss of the targets of all batches, over all ranks."""
    device = stage.run.runtime.device
    total = torch.zeros(2, dtype=torch.float64)
    for ids, targets in batches:
        count = int((targets >= 0).sum())
        # A batch that only fills up still runs: ranks that hold a part of the weights each must compute equally often.
        loss = float(stage.model(ids.to(device), targets.to(device)))
        total += torch.tensor([loss * count if count else 0.0, count], dtype=torch.float64)
    nats, count = stage.run.runtime.total(total).tolist()
    return nats / count


def warn_of_rises(stage: Stage) -> None:
    """A remark where the loss on held-out conversations has risen several times in a row: they are being learned by heart."""
    lines = [line for line in read_metrics(stage.run.folder) if line["stage"] == stage.name]
    losses = {line["step"]: line["eval"]["val_loss"] for line in lines if "val_loss" in line.get("eval", {})}
    last = list(losses.values())[-RISES - 1 :]
    if len(last) > RISES and all(earlier < later for earlier, later in pairwise(last)):
        best = min(losses, key=lambda step: losses[step])
        stage.run.log.remark(
            stage.name,
            f"warning: val_loss rose {RISES} times in a row, to {last[-1]:.4f} at step {stage.step} from "
            f"{losses[best]:.4f} at step {best}: the conversations are learned by heart. Fewer steps "
            f"(--stages.{stage.name}.steps {best}), lower rates or more data help.",
        )
