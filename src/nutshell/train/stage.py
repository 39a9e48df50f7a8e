"""One training stage: opened in visible steps, then for each step learn, record, save. Every stage's own loop calls these."""

from __future__ import annotations

import math
import signal
import time
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, NoReturn, cast

import torch
from torch import Tensor, nn

from nutshell import checkpoint
from nutshell.data.stream import PackedStream
from nutshell.files import STAGES, write_text
from nutshell.model.build import build_model
from nutshell.model.decoder import Decoder
from nutshell.plan.recipe import ON_ANSWERS
from nutshell.run.checkpoints import open_newest, prune, quarantine, truncate_after
from nutshell.run.folder import Preempted, Run
from nutshell.runtime import Runtime, peak_memory_bytes
from nutshell.tokenizer import Tokenizer
from nutshell.train.optim import MuonAdamW, group_parameters
from nutshell.train.prefetch import MicroBatch
from nutshell.train.step import LossScaler, StepResult, next_token_loss, train_step
from nutshell.train.zero import Zero

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


def last_of_previous(run: Run, name: str) -> Path:
    """The last checkpoint of the stage before `name`; stages without steps are passed over."""
    previous = [stage for stage in STAGES[: STAGES.index(name)] if run.plan.stages[stage].steps][-1]
    saved, steps = checkpoint.checkpoints(run.stage_folder(previous)), run.plan.stages[previous].steps
    done, source = saved[-1] if saved else (0, Path())
    if done < steps:
        raise ValueError(
            f"{name} starts from the end of {previous}, which stands at step {done} of {steps} in {run.folder}. "
            f"Run: nutshell {previous} first."
        )
    return source


def open_stage(run: Run, name: str) -> Stage:
    """Go on from the stage's newest checkpoint, or start it from the stage before it (pretrain: from drawn weights)."""
    model, training, tensors, damaged = load_or_build(run, name)
    runtime = replace(run.runtime, compiled=False, fp8=False) if name in ON_ANSWERS else run.runtime
    model.set_precision(runtime.dtype, runtime.attention, fp8=runtime.fp8).train()
    zero = parallelize(model, runtime, run.shards_weights)
    step_model = compile_model(model, runtime) if not run.shards_weights else model
    optimizer = make_optimizer(model, run, name, zero)
    if tensors is not None:
        optimizer.load_state_dict(tensors, training["optimizer_steps"])
    run.runtime.barrier()  # every rank has opened the same checkpoint before rank 0 changes the folder
    if run.runtime.is_main:
        quarantine(damaged)
        truncate_after(run.stage_folder(name), training["step"])
        prune(run.stage_folder(name), run.plan.recipe.keep_checkpoints)
        run.log.truncate_after(name, training["step"])
        run.log.console.begin(name, run.plan.stages[name].steps, training["step"])
        (run.folder / "preempted").unlink(missing_ok=True)
    scaler = LossScaler.for_dtype(run.runtime.dtype, training.get("loss_scale"))
    return Stage(
        run=run,
        name=name,
        model=model,
        step_model=step_model,
        optimizer=optimizer,
        scaler=scaler,
        step=training["step"],
        seconds=training["seconds"],
        loader_state=training["loader"],
    )


def load_or_build(run: Run, name: str) -> tuple[Decoder, dict, dict | None, list[Path]]:
    """Model, training state, optimizer state (None at the start of a stage), and the damaged checkpoints passed over."""
    plan = run.plan
    device = torch.device("cpu") if run.shards_weights else run.runtime.device  # sharding moves the parts
    go_back = plan.recipe.damaged_checkpoint == "previous"
    newest, damaged = open_newest(run.stage_folder(name), device, go_back=go_back, note=run.log.note)
    training: dict = {"step": 0, "seconds": 0.0, "loader": None, "optimizer_steps": 0}
    tensors = None
    if newest is not None:
        model, tok, training, tensors = newest
    else:
        model, tok = starting_model(run, name, device)
    if tok.fingerprint != run.tok.fingerprint:
        raise ValueError(
            f"{run.folder}/tokenizer is not the one that the checkpoints in {run.folder} were trained with. "
            "Put that one back (every checkpoint holds a copy), or give another --out to start anew."
        )
    if model.config != plan.model:
        raise ValueError(f"the checkpoint in {run.folder} has another shape than its plan.json. Give another --out.")
    return model, training, tensors, damaged


def starting_model(run: Run, name: str, device: torch.device | None = None) -> tuple[Decoder, Tokenizer]:
    """The model that a stage begins with: the last one of the stage before it, that of --init-from, or drawn weights."""
    recipe, device = run.plan.recipe, device or run.runtime.device
    before = STAGES[: STAGES.index(name)]
    if recipe.init_from and not any(checkpoint.checkpoints(run.stage_folder(stage)) for stage in before):
        return checkpoint.load_model(checkpoint.find(recipe.init_from), device)[:2]
    if name != "pretrain":
        return checkpoint.load_model(last_of_previous(run, name), device)[:2]
    torch.manual_seed(recipe.seed)
    return build_model(run.plan.model).to(device), run.tok


def parallelize(model: Decoder, runtime: Runtime, sharded: bool) -> Zero:
    """Who owns which parameters: whole weights on every rank and sharded optimizer state, or sharded weights too."""
    ranks = {"rank": runtime.rank, "world_size": runtime.world_size}
    if not sharded:
        return Zero(**ranks)
    from nutshell.train.fsdp import Fsdp, shard_weights

    shard_weights(model, runtime.device, compiled=runtime.compiled)
    return Fsdp(**ranks)


def compile_model(model: Decoder, runtime: Runtime, backend: str = "inductor") -> nn.Module:
    """The model as training calls it. Shapes never change within a stage, so one graph is enough: another is an error."""
    if not runtime.compiled:
        if runtime.device.type == "cuda":  # attention and loss are compiled by themselves, for some shapes and not for all
            torch._dynamo.config.fail_on_recompile_limit_hit = False
        return model
    torch._dynamo.reset()  # graphs of timed or earlier models would count towards the limit
    torch._dynamo.config.fail_on_recompile_limit_hit = True
    return cast(nn.Module, torch.compile(model, dynamic=False, backend=backend))


def make_optimizer(model: Decoder, run: Run, name: str, zero: Zero) -> MuonAdamW:
    """Groups at the plan's rates. Weights decay in pretraining alone; DPO and RL leave out the groups that the table says."""
    plan, step_tokens = run.plan, run.plan.stages[name].tokens_per_step
    groups = group_parameters(model, plan.optimizer, width=plan.model.width, tokens_per_step=step_tokens)
    for group in groups:
        if name != "pretrain":
            group.weight_decay = 0.0
        if name in ON_ANSWERS and not group.row.trained_in_rl:
            group.lr = 0.0
    return MuonAdamW(groups, run.runtime.dtype, zero, muon_beta2=plan.optimizer.muon_beta2)
