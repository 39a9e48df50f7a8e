"""One training stage: what its loop calls for each step (learn, record, save), and how far it is. `build.py` opens one."""

from __future__ import annotations

import math
import signal
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, NoReturn

from torch import Tensor, nn

from nutshell import checkpoint
from nutshell.data.stream import PackedStream
from nutshell.files import write_text
from nutshell.model.decoder import Decoder
from nutshell.plan.recipe import ON_ANSWERS
from nutshell.run.checkpoints import prune
from nutshell.run.folder import Preempted, Run
from nutshell.runtime import peak_memory_bytes
from nutshell.train.optim import MuonAdamW
from nutshell.train.prefetch import MicroBatch
from nutshell.train.step import LossScaler, StepResult, next_token_loss, train_step

MOST_SKIPPED_IN_A_ROW = 10


class TrainingDiverged(RuntimeError):
    """Too many steps in a row had no finite loss or gradient."""

    exit_code = 1


@dataclass
class Stage:
    """A stage that is being trained: model, optimizer, and how far they are. `open_stage` makes it."""

    run: Run
    name: str
    model: Decoder
    step_model: nn.Module  # the model as training calls it: compiled where the runtime says so
    optimizer: MuonAdamW
    scaler: LossScaler
    step: int  # steps done
    seconds: float  # spent on steps and saves, over all starts of the run
    loader_state: dict | None  # where the data stood in the checkpoint; None at the start of the stage
    last_save: float = field(default_factory=time.monotonic)
    skipped_in_a_row: int = 0

    @property
    def steps(self) -> int:
        return self.run.plan.stages[self.name].steps

    def whole_model(self, *, everywhere: bool = False) -> Decoder:
        """The model with all its weights, to save or evaluate, on rank 0 or everywhere. A collective."""
        if not self.run.shards_weights:
            return self.model
        from nutshell.train.fsdp import whole_model  # importing FSDP2 takes a second or two

        return whole_model(self.model, everywhere=everywhere)

    def learn(
        self,
        batches: list[MicroBatch],
        *,
        share: float = 1.0,
        loss_of: Callable[[nn.Module, MicroBatch], Tensor] = next_token_loss,
    ) -> StepResult:
        """One optimizer step at the plan's rates.

        `share` is the part of the step's samples that teaches: rates follow the root of the batch, as they do with its size.
        """
        plan = self.run.plan
        rates = plan.schedule.at(self.step, self.steps, plan.stages[self.name].lr_fraction * math.sqrt(share))
        return train_step(
            self.step_model,
            self.optimizer,
            batches,
            rates,
            self.run.runtime,
            self.scaler,
            clip_norm=plan.optimizer.clip_norm,
            loss_of=loss_of,
            save_due=self.save_due(),
            stop=bool(self.run.stop),
        )

    def record(self, result: StepResult, sources: list[str], **more: Any) -> None:
        """Count a step and log it, with `more` metrics of the stage.

        TrainingDiverged after `MOST_SKIPPED_IN_A_ROW` steps without a finite loss or gradient; it names `sources`, the data of
        the last one.
        """
        self.step += 1
        self.seconds += result.seconds
        overflowed = self.scaler.update(result.loss, result.finite) if result.targets else False
        if not overflowed:  # in fp16 a smaller loss scale may be all that is needed
            self.skipped_in_a_row = 0 if result.finite else self.skipped_in_a_row + 1
        record = {
            "stage": self.name,
            "step": self.step,
            "steps": self.steps,
            "seconds": round(self.seconds, 3),
            "tokens": result.tokens,
            "loss": result.loss,
            "grad_norm": result.grad_norm,
            "lr": result.lr * min(group.lr for group in self.optimizer.groups if group.row.name == "matrices"),
            "tokens_per_second": result.tokens / result.seconds,
            "mfu": self.mfu(result),
            "peak_memory_bytes": peak_memory_bytes(self.run.runtime.device),
            **more,
        }
        if self.scaler.dynamic:
            record["loss_scale"] = self.scaler.scale
        if not result.updated:
            record["skipped"] = True
        self.run.log.step(record)
        if self.skipped_in_a_row >= MOST_SKIPPED_IN_A_ROW:
            self.run.writer.wait()
            saved = checkpoint.latest(self.run.stage_folder(self.name))
            raise TrainingDiverged(
                f"the last {self.skipped_in_a_row} steps up to step {self.step} had no finite loss or gradient "
                f"(loss {result.loss}, gradient norm {result.grad_norm}). Data of the last batch: {', '.join(sources)}. "
                f"The last good checkpoint is {saved or 'not there yet'}. Look at that data, or lower --optimizer.matrix-lr."
            )

    def mfu(self, result: StepResult) -> float | None:
        """Share of the processors' peak that the step used; None where the peak is not known, and in stages that decode too."""
        runtime = self.run.runtime
        if not runtime.peak_flops or self.name in ON_ANSWERS:
            return None
        flops = result.tokens / result.seconds * self.run.plan.flops_per_token
        return flops / (runtime.peak_flops * runtime.world_size)

    def save_due(self) -> bool:
        """Whether a save is due by rank 0's clock; not while the last one is still being written."""
        over = time.monotonic() - self.last_save >= self.run.plan.save_every_seconds
        return self.run.runtime.is_main and over and not self.run.writer.busy

    def save_if_due(self, result: StepResult, loader: PackedStream | None = None, *, anyway: bool = False) -> None:
        """Save when `save_every_seconds` are over, at the last step, when told to stop (then Preempted is raised), or `anyway`.

        A signal to any rank stops all of them.
        """
        run = self.run
        run.writer.check()
        due, stopping = self.save_due(), bool(run.stop)
        if run.runtime.world_size > 1:  # what all of them know: a rank that looks again may see what the others do not
            due, stopping = result.save_due, result.stop
        if due or stopping or anyway or self.step == self.steps:
            self.save(loader.state_dict() if loader else None)
        if stopping and not run.stop:
            run.stop.append(signal.SIGTERM)
        if stopping and self.step < self.steps:
            self.exit_run()

    def exit_run(self, *, alone: bool = False) -> NoReturn:
        """Raise Preempted when everything is on the disk. A file `preempted` in the run tells launchers that this is no failure.

        All ranks call it, since launchers end the others as soon as one is gone; or rank 0 `alone`, while the others wait.
        """
        self.run.writer.wait()
        if self.run.runtime.is_main:
            write_text(self.run.folder / "preempted", f"{self.name} step {self.step}\n")
        if not alone:
            self.run.runtime.barrier()
        raise Preempted(f"stopped after step {self.step} of {self.name}; everything is saved. The same command goes on.")

    def save(self, loader_state: dict | None) -> None:
        """Copy the state in memory; the writer's thread puts it on the disk while training goes on."""
        start = time.monotonic()
        run, folder = self.run, self.run.stage_folder(self.name)
        run.writer.wait()  # at most one copy at a time
        model, tensors = self.whole_model(), self.optimizer.state_dict()  # of all ranks, so all take part
        if run.runtime.is_main:
            ranks, data = run.runtime.world_size, (loader_state or {}).get("data")
            meta = {"stage": self.name, "step": self.step, "steps": self.steps, "world_size": ranks, "data": data}
            training = {
                "step": self.step,
                "seconds": self.seconds,
                "loader": loader_state,
                "optimizer_steps": self.optimizer.steps,
                "loss_scale": self.scaler.state,
            }
            snapshot = checkpoint.take_snapshot(model, run.tok, meta=meta, training=training, tensors=tensors, copied=ranks > 1)

            def write() -> None:
                run.log.sync()  # the metrics up to this step are on the disk before the checkpoint is
                checkpoint.write_snapshot(checkpoint.step_folder(folder, snapshot.meta["step"]), snapshot)
                prune(folder, run.plan.recipe.keep_checkpoints)

            run.writer.start(write)
        self.last_save = time.monotonic()
        self.seconds += self.last_save - start

    def wait_for_save(self) -> None:
        """Wait, on all ranks, until what was saved is on the disk."""
        self.run.writer.wait()
        self.run.runtime.barrier()
