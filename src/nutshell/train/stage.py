"""One training stage: opened, stepped, recorded, saved. What every stage does alike."""

from __future__ import annotations

import signal
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NoReturn

import torch

from nutshell import checkpoint
from nutshell.data.stream import PackedStream
from nutshell.model.build import build_model
from nutshell.model.decoder import Decoder
from nutshell.run.checkpoints import forget_after, note_best, open_newest, prune, put_aside
from nutshell.run.folder import Preempted, Run, plan_hash
from nutshell.runtime import peak_memory_bytes
from nutshell.train.optim import MuonAdamW, group_parameters
from nutshell.train.precision import LossScale
from nutshell.train.prefetch import Sent, Transfer
from nutshell.train.step import MicroBatch, StepResult, train_steps
from nutshell.train.zero import Shards


@dataclass
class Stage:
    """One stage's model and optimizer, started fresh from the stage before it or from this stage's newest checkpoint."""

    run: Run
    name: str
    model: Decoder
    optimizer: MuonAdamW
    step: int
    seconds: float
    loader_state: dict | None
    loss_scale: LossScale = field(default_factory=LossScale)
    last_save: float = field(default_factory=time.monotonic)

    @property
    def steps(self) -> int:
        return self.run.plan.stages[self.name].steps

    @property
    def divided(self) -> bool:
        """The ranks hold a part of the weights each."""
        return self.run.plan.recipe.shard == "weights" and self.run.runtime.world_size > 1

    def whole_model(self, *, everywhere: bool = False) -> Decoder:
        """The model with all its weights, to save or evaluate, on rank 0 or everywhere. All ranks call it at once."""
        if not self.divided:
            return self.model
        from nutshell.train.fsdp import whole_model  # importing FSDP2 takes a second or two

        return whole_model(self.model, everywhere=everywhere)

    def record(self, result: StepResult, **more: Any) -> None:
        """Count a step and log it."""
        self.step, self.seconds = result.step, self.seconds + result.seconds
        runtime, plan = self.run.runtime, self.run.plan
        rate, peak = result.tokens / result.seconds, runtime.peak_flops
        record = {
            "stage": self.name,
            "step": result.step,
            "steps": self.steps,
            "seconds": round(self.seconds, 3),
            "tokens": result.tokens,
            "loss": result.loss,
            "lr": result.lr_scale * min(group.lr for group in self.optimizer.groups if group.kind == "muon"),
            "grad_norm": result.grad_norm,
            "tokens_per_second": rate,
            "mfu": rate * plan.flops_per_token / (peak * runtime.world_size) if peak and self.name != "rl" else None,
            "peak_memory_bytes": peak_memory_bytes(runtime.device),
            **more,
        }
        if self.loss_scale.dynamic:
            record["loss_scale"] = self.loss_scale.scale
        if result.skipped:
            record["skipped"] = True
        self.run.log.step(record)

    def learn_from(self, loader: PackedStream) -> Callable[[], MicroBatch]:
        """The micro-batch of `training_steps` for a stage that reads batches: the next one."""
        runtime = self.run.runtime
        model = torch.compile(self.model) if runtime.compiled and not self.divided else self.model
        loader.transfer = transfer = Transfer(runtime.device, self.model.config.bos_id, self.model.attention_kernel)

        def micro_batch() -> MicroBatch:
            sent: Sent = next(loader)  # type: ignore[assignment] # what `start` made of the batch
            ids, targets, offsets = transfer.finish(sent)
            return MicroBatch(lambda: model(ids, targets, None, offsets), sent.targets, ids.numel())

        return micro_batch

    def training_steps(
        self, micro_batch: Callable[[], MicroBatch], *, accumulation: int, sources: Callable[[], list[str]]
    ) -> Iterator[StepResult]:
        """The steps from where the stage stands to its last, by the plan's schedule and rates."""
        plan = self.run.plan
        return train_steps(
            self.model, self.optimizer, micro_batch, accumulation=accumulation, schedule=plan.schedule,
            lr_scale=plan.stages[self.name].lr_scale, first_step=self.step, steps=self.steps, runtime=self.run.runtime,
            describe=lambda: self.describe(sources()), loss_scale=self.loss_scale,
        )  # fmt: skip

    def describe(self, sources: list[str]) -> str:
        """What somebody needs to know who finds this stage diverged: the last batch, and where to go back to."""
        self.run.writer.wait()
        saved = checkpoint.checkpoints(self.run.stage_folder(self.name))
        kept = f"The last good checkpoint is {saved[-1][1]}" if saved else f"{self.name} has saved no checkpoint yet"
        return f"Data of the last batch: {', '.join(sources)}. {kept}"

    def save_if_due(self, loader_state: Callable[[], dict | None], *, anyway: bool = False) -> None:
        """Save `anyway`, when the interval is over, at the last step, and when told to stop (then raise Preempted).

        Rank 0's clock decides. Where its last save is still being written, one that is only due by time waits for a later step.
        A signal to any rank stops all of them.
        """
        run = self.run
        run.writer.check()
        over = time.monotonic() - self.last_save >= run.plan.recipe.save_every_seconds
        due = run.runtime.is_main and over and not run.writer.busy
        due, stopping = (run.runtime.total(torch.tensor([float(due), float(bool(run.stop))])) > 0).tolist()
        if due or stopping or anyway or self.step == self.steps:
            self.save(loader_state())
        if stopping and not run.stop:
            run.stop.append(signal.SIGTERM)
        if stopping and self.step < self.steps:
            self.leave()

    def leave(self, *, alone: bool = False) -> NoReturn:
        """End the run when everything is saved, with the marker that tells a preemption from a failure.

        All ranks call it, since launchers end the others as soon as one is gone; or rank 0 `alone`, while the others wait.
        """
        self.run.writer.wait()
        if self.run.runtime.is_main:
            (self.run.folder / "preempted").write_text(f"{self.name} step {self.step}\n", encoding="utf-8")
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
            snapshot = checkpoint.take_snapshot(
                model,
                run.tok,
                meta={
                    "stage": self.name,
                    "step": self.step,
                    "steps": self.steps,
                    "world_size": run.runtime.world_size,
                    "config": plan_hash(run.plan),
                    "data": (loader_state or {}).get("data"),
                },
                training={
                    "step": self.step,
                    "seconds": self.seconds,
                    "loader": loader_state,
                    "optimizer_steps": self.optimizer.steps,
                    "loss_scale": self.loss_scale.state,
                },
                tensors=tensors,
            )

            def write() -> None:
                run.log.sync()  # what the metrics say up to this step is on the disk before the checkpoint
                checkpoint.write_snapshot(checkpoint.step_folder(folder, snapshot.meta["step"]), snapshot)
                prune(folder, run.plan.recipe.keep_checkpoints)

            run.writer.start(write)
        self.last_save = time.monotonic()
        self.seconds += self.last_save - start

    def settle(self) -> None:
        """Wait, on all ranks, until what was saved is on the disk."""
        self.run.writer.wait()
        self.run.runtime.barrier()

    def note_best(self, val_bpb: float) -> None:
        """Keep the checkpoint of this step if none scored better; to be called when it is on the disk."""
        if self.run.runtime.is_main:
            note_best(self.run.stage_folder(self.name), self.step, val_bpb)


def last_of_previous(run: Run, name: str) -> Path:
    """The last checkpoint of the stage before `name`; stages without steps are passed over."""
    previous = [stage for stage in checkpoint.STAGES[: checkpoint.STAGES.index(name)] if run.plan.stages[stage].steps][-1]
    source = checkpoint.latest(run.stage_folder(previous)) if run.stage_folder(previous).is_dir() else None
    manifest = checkpoint.read_manifest(source) if source else None
    done, steps = manifest["meta"]["step"] if manifest else 0, run.plan.stages[previous].steps
    if source is None or done < steps:
        raise ValueError(f"{name} starts from the end of {previous}, which stands at step {done} of {steps} in {run.folder}. "
                         f"Run: nutshell {previous} first.")  # fmt: skip
    return source


def open_stage(run: Run, name: str) -> Stage:
    """Go on from the stage's newest checkpoint, or start it from the stage before it (pretrain: from drawn weights)."""
    plan, runtime = run.plan, run.runtime
    divided = plan.recipe.shard == "weights" and runtime.world_size > 1
    home = torch.device("cpu") if divided else runtime.device  # dividing moves the parts
    training: dict = {"step": 0, "seconds": 0.0, "loader": None, "optimizer_steps": 0}
    tensors = None
    go_back = plan.recipe.damaged_checkpoint == "previous"
    newest, damaged = open_newest(run.stage_folder(name), home, go_back=go_back, note=run.log.note)
    if newest is not None:
        model, tok, training, tensors = newest
    elif name != "pretrain":
        model, tok, _ = checkpoint.load_model(last_of_previous(run, name), home)
    else:
        torch.manual_seed(plan.recipe.seed)
        model, tok = build_model(plan.model).to(home), run.tok
    if tok.fingerprint != run.tok.fingerprint:
        raise ValueError(
            f"{run.folder}/tokenizer is not the one that the checkpoints in {run.folder} were trained with. "
            "Put that one back (every checkpoint holds a copy), or give another --out to start anew."
        )
    if model.config != plan.model:
        raise ValueError(
            f"the checkpoint in {run.folder} has another shape than its plan.json. Give another --out to start anew."
        )
    model.set_precision(runtime.dtype, runtime.attention, fp8=runtime.fp8 and name != "rl")
    model.train()
    ranks = {"rank": runtime.rank, "world_size": runtime.world_size}
    if divided:
        from nutshell.train.fsdp import WeightShards, shard_weights

        shard_weights(model, runtime.device)
        shards: Shards = WeightShards(**ranks)
    else:
        shards = Shards(**ranks)
    step_tokens = plan.stages[name].tokens_per_step
    groups = group_parameters(model, plan.optimizer, width=plan.model.width, tokens_per_step=step_tokens)
    for group in groups:
        if name != "pretrain":
            group.weight_decay = 0.0
        if name == "rl" and not group.row.trained_in_rl:
            group.lr = 0.0
    optimizer = MuonAdamW(groups, runtime.dtype, shards)
    if tensors is not None:
        optimizer.load_state_dict(tensors, training["optimizer_steps"])
    runtime.barrier()  # every rank has opened the same checkpoint before rank 0 changes the folder
    if runtime.is_main:
        put_aside(damaged)
        forget_after(run.stage_folder(name), training["step"])
        prune(run.stage_folder(name), plan.recipe.keep_checkpoints)
        run.log.truncate_after(name, training["step"])
        run.log.begin(name, plan.stages[name].steps, training["step"])
        (run.folder / "preempted").unlink(missing_ok=True)
    return Stage(
        run=run, name=name, model=model, optimizer=optimizer, step=training["step"], seconds=training["seconds"],
        loader_state=training["loader"], loss_scale=LossScale.for_dtype(runtime.dtype, training.get("loss_scale")),
    )  # fmt: skip
