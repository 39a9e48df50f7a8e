"""A run folder while it trains: its plan, lock, checkpoints and what every stage does alike."""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import IO, Any, NoReturn

import torch

from nutshell import checkpoint
from nutshell.data.stream import PackedStream
from nutshell.metrics import MetricsLog
from nutshell.model.gpt import GPT
from nutshell.runtime import Runtime, peak_memory_bytes
from nutshell.tokenizer import Tokenizer
from nutshell.train.distributed import Shards
from nutshell.train.loop import MicroBatch, StepResult, train_steps
from nutshell.train.optim import MuonAdamW, group_parameters
from nutshell.train.plan import Plan

SCALARS = ("smear", "backout", "residual_scale", "embedding_scale")
"""RL leaves these alone: AdamW moves them by the learning rate however faint the signal is, and all tokens feel each of them."""


class Preempted(Exception):
    """SIGTERM or Ctrl-C: the state is saved, the same command goes on."""


@dataclass
class Run:
    """Everything a stage needs; one object made by the verb and passed in."""

    folder: Path
    data: Path
    """Folder of train and val shards: the run's own, or the user's where --data names shards."""
    plan: Plan
    runtime: Runtime
    tok: Tokenizer
    log: MetricsLog
    stop: list[int] = field(default_factory=list)
    """Signals received; the next step boundary saves and leaves."""

    def stage_folder(self, stage: str) -> Path:
        return self.folder / stage

    def finished(self, stage: str) -> bool:
        """All steps of the stage are done and evaluated."""
        newest = checkpoint.latest(self.stage_folder(stage)) if self.stage_folder(stage).is_dir() else None
        manifest = checkpoint.read_manifest(newest) if newest else None
        done = manifest is not None and manifest["meta"].get("step") == self.plan.stages[stage].steps
        return done and self.log.has_evaluation(stage, self.plan.stages[stage].steps)


@contextmanager
def run_lock(folder: Path) -> Iterator[None]:
    """Refuse a second job on a run folder; the lock vanishes with its process, kill -9 included."""
    new = not folder.exists()
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / ".lock"
    file: IO[str] = open(path, "a+")  # noqa: SIM115 - held open as long as the run
    try:
        try:
            import fcntl

            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except ImportError:  # Windows
            import msvcrt

            msvcrt.locking(file.fileno(), msvcrt.LK_NBLCK, 1)  # type: ignore[attr-defined]
        if not os.path.samestat(os.fstat(file.fileno()), os.stat(path)):  # its last holder has just removed it
            raise OSError
    except OSError:
        file.close()
        raise ValueError(f"another job is working in {folder}. Wait for it, stop it, or give another --out.") from None
    try:
        yield
    finally:
        if new and list(folder.iterdir()) == [path]:  # bad input: leave nothing behind
            with suppress(OSError):
                path.unlink()
                folder.rmdir()
        file.close()


@contextmanager
def stop_signals(stop: list[int]) -> Iterator[None]:
    """Collect SIGTERM and the first Ctrl-C instead of dying in the middle of a step; a second Ctrl-C interrupts at once."""

    def note(number: int, _frame: object) -> None:
        stop.append(number)
        if stop.count(signal.SIGINT) > 1:
            raise KeyboardInterrupt

    old = {number: signal.signal(number, note) for number in (signal.SIGTERM, signal.SIGINT)}
    try:
        yield
    finally:
        for number, handler in old.items():
            signal.signal(number, handler)


@dataclass
class Stage:
    """One stage's model and optimizer, started fresh from the stage before it or from this stage's newest checkpoint."""

    run: Run
    name: str
    model: GPT
    optimizer: MuonAdamW
    step: int
    seconds: float
    loader_state: dict | None
    last_save: float = field(default_factory=time.monotonic)

    @property
    def steps(self) -> int:
        return self.run.plan.stages[self.name].steps

    @property
    def divided(self) -> bool:
        """The ranks hold a part of the weights each."""
        return self.run.plan.recipe.shard == "weights" and self.run.runtime.world_size > 1

    def whole_model(self, *, everywhere: bool = False) -> GPT:
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
        if result.skipped:
            record["skipped"] = True
        self.run.log.step(record)

    def learn_from(self, loader: PackedStream) -> Callable[[], MicroBatch]:
        """The micro-batch of `training_steps` for a stage that reads batches: the next one."""
        device = self.run.runtime.device
        model = torch.compile(self.model) if self.run.runtime.compiled and not self.divided else self.model

        def micro_batch() -> MicroBatch:
            ids, targets = next(loader)
            count = int((targets >= 0).sum())
            ids, targets = (x.to(device, non_blocking=True) for x in (ids, targets))
            return MicroBatch(lambda: model(ids, targets), count, ids.numel())

        return micro_batch

    def training_steps(
        self, micro_batch: Callable[[], MicroBatch], *, accumulation: int, sources: Callable[[], list[str]]
    ) -> Iterator[StepResult]:
        """The steps from where the stage stands to its last, by the plan's schedule and rates."""
        plan = self.run.plan
        return train_steps(
            self.model, self.optimizer, micro_batch, accumulation=accumulation, schedule=plan.schedule,
            lr_scale=plan.stages[self.name].lr_scale, first_step=self.step, steps=self.steps, runtime=self.run.runtime,
            describe=lambda: self.describe(sources()),
        )  # fmt: skip

    def describe(self, sources: list[str]) -> str:
        """What somebody needs to know who finds this stage diverged: the last batch, and where to go back to."""
        saved = checkpoint.checkpoints(self.run.stage_folder(self.name))
        kept = f"The last good checkpoint is {saved[-1][1]}" if saved else f"{self.name} has saved no checkpoint yet"
        return f"Data of the last batch: {', '.join(sources)}. {kept}"

    def save_if_due(self, loader_state: dict | None) -> None:
        """Save when the interval is over, at the last step, and when told to stop (then raise Preempted)."""
        runtime = self.run.runtime
        stopping = bool(runtime.agree(float(bool(self.run.stop))))
        due = bool(runtime.agree(float(time.monotonic() - self.last_save >= self.run.plan.recipe.save_every_seconds)))
        if due or stopping or self.step == self.steps:
            self.save(loader_state)
        if stopping and self.step < self.steps:
            self.leave()

    def leave(self) -> NoReturn:
        """End the run after what is saved: leave the marker that tells a preemption from a failure."""
        if self.run.runtime.is_main:
            (self.run.folder / "preempted").write_text(f"{self.name} step {self.step}\n", encoding="utf-8")
        raise Preempted(f"stopped after step {self.step} of {self.name}; everything is saved. The same command goes on.")

    def save(self, loader_state: dict | None) -> None:
        start = time.monotonic()
        model, tensors = self.whole_model(), self.optimizer.state_dict()  # of all ranks, so all take part
        if self.run.runtime.is_main:
            self.run.log.sync()
            checkpoint.save_model_folder(
                checkpoint.step_folder(self.run.stage_folder(self.name), self.step),
                model,
                self.run.tok,
                meta={"stage": self.name, "step": self.step, "steps": self.steps},
                training={
                    "step": self.step,
                    "seconds": self.seconds,
                    "loader": loader_state,
                    "optimizer_steps": self.optimizer.steps,
                },
                tensors=tensors,
            )
            checkpoint.prune(self.run.stage_folder(self.name))
        self.run.runtime.barrier()
        self.last_save = time.monotonic()
        self.seconds += self.last_save - start


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
    newest = checkpoint.latest(run.stage_folder(name)) if run.stage_folder(name).is_dir() else None
    divided = plan.recipe.shard == "weights" and runtime.world_size > 1
    home = torch.device("cpu") if divided else runtime.device  # dividing moves the parts
    training: dict = {"step": 0, "seconds": 0.0, "loader": None, "optimizer_steps": 0}
    tensors = None
    if newest is not None:
        model, tok, _ = checkpoint.load_model(newest, home)
        training, tensors = checkpoint.load_training(newest)
    elif name != "pretrain":
        model, tok, _ = checkpoint.load_model(last_of_previous(run, name), home)
    else:
        torch.manual_seed(plan.recipe.seed)
        model, tok = GPT(plan.model).to(home), run.tok
    if tok.fingerprint != run.tok.fingerprint:
        raise ValueError(
            f"{run.folder}/tokenizer is not the one that the checkpoints in {run.folder} were trained with. "
            "Put that one back (every checkpoint holds a copy), or give another --out to start anew."
        )
    if model.config != plan.model:
        raise ValueError(
            f"the checkpoint in {run.folder} has another shape than its plan.json. Give another --out to start anew."
        )
    model.use(runtime.dtype, runtime.attention)
    model.train()
    ranks = {"rank": runtime.rank, "world_size": runtime.world_size}
    if divided:
        from nutshell.train.fsdp import WeightShards, shard_weights

        shard_weights(model, runtime.device)
        shards: Shards = WeightShards(model, **ranks)
    else:
        shards = Shards(**ranks)
    step_tokens = plan.stages[name].tokens_per_step
    groups = group_parameters(model, plan.optimizer, width=plan.model.width, tokens_per_step=step_tokens)
    for group in groups:
        if name != "pretrain":
            group.weight_decay = 0.0
        if name == "rl" and group.names[0].startswith(SCALARS):
            group.lr = 0.0
    optimizer = MuonAdamW(groups, runtime.dtype, shards)
    if tensors is not None:
        optimizer.load_state_dict(tensors, training["optimizer_steps"])
    if runtime.is_main:
        checkpoint.prune(run.stage_folder(name))
        run.log.truncate_after(name, training["step"])
        run.log.begin(name, plan.stages[name].steps, training["step"])
        (run.folder / "preempted").unlink(missing_ok=True)
    return Stage(
        run=run, name=name, model=model, optimizer=optimizer, step=training["step"], seconds=training["seconds"],
        loader_state=training["loader"],
    )  # fmt: skip
