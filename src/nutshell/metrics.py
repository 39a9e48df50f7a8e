"""One JSON object a line into metrics.jsonl, and each of them to sinks: the console, and wandb or TensorBoard where asked for.

A line of a step holds `stage, step, seconds, tokens, loss, lr, tokens_per_second, mfu` and whatever else the stage has (`reward`,
`gpu_utilisation` ...). `seconds` counts from the beginning of the stage, over all restarts; `tokens` are those of the step. Other
lines hold `stage, step` and `eval` (with `baselines`, `targets`, `samples`, `eval_seconds`), or `stage_seconds` (a stage without
steps). NaN and infinity are written as null.
"""

from __future__ import annotations

import errno
import importlib.util
import json
import math
import os
import secrets
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, Protocol

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TaskID, TextColumn, TimeElapsedColumn
from rich.text import Text

from nutshell.files import naming, write_text

FILE_NAME = "metrics.jsonl"
_SHOWN = ("loss", "reward", "lr", "tokens_per_second", "mfu")
Record = Mapping[str, Any]


class Sink(Protocol):
    """A place that records go to besides the file. Each is a class, named in `LOGGERS`."""

    def log(self, record: Record) -> None: ...

    def close(self) -> None: ...


class ConsoleSink:
    """A progress bar with the time left in a terminal, elsewhere a line every `interval_seconds`."""

    def __init__(self, console: Console, interval_seconds: float):
        self.console, self.interval_seconds = console, interval_seconds
        self.stage, self.first_step, self.started, self.shown = "", 0, 0.0, 0.0
        self.total_steps: int | None = None
        self.bar: Progress | None = None
        self.task = TaskID(0)

    def begin(self, stage: str, total_steps: int | None, step: int) -> None:
        """Start the view of a stage at `step`, above 0 after a resume."""
        self.close()
        self.stage, self.total_steps, self.first_step = stage, total_steps, step
        self.started, self.shown, self.loss = time.monotonic(), -math.inf, DebiasedMean()
        if self.console.is_terminal:
            texts = [TextColumn("{task.fields[line]}"), TimeElapsedColumn(), TextColumn("{task.fields[eta]}")]
            columns = [TextColumn("[bold]{task.description}"), BarColumn(bar_width=24), MofNCompleteColumn(), *texts]
            self.bar = Progress(*columns, console=self.console)
            self.bar.start()
            self.task = self.bar.add_task(stage, total=total_steps, completed=step, line="", eta="")

    def log(self, record: Record) -> None:
        if record.get("eval"):
            values = (f"{name} {'n/a' if value is None else f'{value:.4g}'}" for name, value in record["eval"].items())
            self.print(f"{record['stage']} {record['step']}  eval  {'  '.join(values)}")
        elif "loss" in record:
            self.step(record)

    def step(self, record: Record) -> None:
        stage, step, now = record["stage"], record["step"], time.monotonic()
        if stage != self.stage:
            self.begin(stage, record.get("steps"), step - 1)
        shown = {**record, "loss": self.loss.update(record.get("loss"))}
        line = "  ".join(_shown(name, shown[name]) for name in _SHOWN if shown.get(name) is not None)
        left = (now - self.started) / max(1, step - self.first_step) * (self.total_steps - step) if self.total_steps else None
        eta = "" if left is None else f"eta {duration(left)}"
        if self.bar is not None:
            self.bar.update(self.task, completed=step, line=line, eta=eta)
        elif now - self.shown >= self.interval_seconds or step == self.total_steps:
            self.shown = now
            total = f"/{self.total_steps}" if self.total_steps else ""
            self.print(f"{stage} {step}{total}  {line}  {duration(now - self.started)} {eta}".rstrip())

    def print(self, text: str) -> None:
        self.console.print(Text(text), highlight=False, soft_wrap=True)

    def close(self) -> None:
        if self.bar is not None:
            self.bar.stop()
        self.bar, self.stage = None, ""


class WandbSink:
    """One run of Weights & Biases for a run folder, gone on with where the run goes on. Each stage has its own axis of steps."""

    def __init__(self, folder: Path):
        import wandb

        kept = folder / "wandb" / "run-id"
        kept.parent.mkdir(parents=True, exist_ok=True)
        if not kept.exists():
            write_text(kept, secrets.token_hex(4))
        self.plan, self.stages = folder / "plan.json", set[str]()
        self.run = wandb.init(
            project=os.environ.get("WANDB_PROJECT", "nutshell"), name=folder.resolve().name, dir=str(folder),
            id=kept.read_text(encoding="utf-8"), resume="allow", settings=wandb.Settings(console="off"),
        )  # fmt: skip

    def log(self, record: Record) -> None:
        stage = record["stage"]
        if not self.stages and self.plan.exists():
            self.run.config.update(json.loads(self.plan.read_text(encoding="utf-8")), allow_val_change=True)
        if stage not in self.stages:
            self.stages.add(stage)
            self.run.define_metric(f"{stage}/*", step_metric=f"{stage}/step")
        self.run.log({f"{stage}/{name}": value for name, value in {"step": record["step"], **_numbers(record)}.items()})

    def close(self) -> None:
        self.run.finish()


class TensorBoardSink:
    """Event files in RUN/tensorboard, a folder for each stage. Steps that a resumed run makes again replace the old ones."""

    def __init__(self, folder: Path):
        from torch.utils.tensorboard import SummaryWriter

        self.folder, self.open, self.writers = folder / "tensorboard", SummaryWriter, dict[str, Any]()

    def log(self, record: Record) -> None:
        stage, step = record["stage"], record["step"]
        if stage not in self.writers:
            self.writers[stage] = self.open(str(self.folder / stage), purge_step=step + ("eval" in record))
        for name, value in _numbers(record).items():
            self.writers[stage].add_scalar(name, value, step)
        self.writers[stage].flush()

    def close(self) -> None:
        for writer in self.writers.values():
            writer.close()


LOGGERS: dict[str, Callable[[Path], Sink]] = {"wandb": WandbSink, "tensorboard": TensorBoardSink}


def check_loggers(names: Sequence[str]) -> None:
    """ValueError where a logger's package is not installed."""
    for name in names:
        spec = importlib.util.find_spec(name)
        if spec is None or spec.origin is None:  # a folder of that name is no package
            raise ValueError(f"--loggers {name}: the package {name} is not installed. Run pip install {name}, or leave it out.")


class MetricsLog:
    """Writes the metrics of one run and hands them to its sinks. Ranks other than 0 may call everything; they write nothing.

    Readings of `gpu` are added to the steps, once a second at most. The console's view goes to standard error, so that standard
    output stays free for results. A sink that fails is left out from there on: training does not end because a logger does.
    """

    def __init__(
        self,
        run_folder: Path | str,
        rank: int = 0,
        *,
        loggers: Sequence[str] = (),
        gpu: Callable[[], Mapping[str, float]] | None = None,
        console: Console | None = None,
        interval_seconds: float = 10.0,
    ):
        self.path = Path(run_folder) / FILE_NAME
        self.active = rank == 0
        self.console = ConsoleSink(console or Console(stderr=True), interval_seconds)
        self.sinks = [LOGGERS[name](Path(run_folder)) for name in loggers if self.active]
        self.gpu, self._gpu_read = gpu, -math.inf
        self._file: Any = None

    def step(self, record: Record) -> None:
        """Log one step. `record` must have `stage` and `step`, the number of steps done; `steps` is that of all steps."""
        if self.gpu is not None and self.active and time.monotonic() - self._gpu_read >= 1:
            self._gpu_read = time.monotonic()
            record = {**record, **self.gpu()}
        self.log(record)

    def evaluation(self, stage: str, step: int, values: Mapping[str, float | None], **more: Any) -> None:
        """Log an evaluation, and `more` about it: `baselines` is what random guessing gives, `targets` what should be reached.
        Empty ones are left out."""
        self.log({"stage": stage, "step": step, "eval": values, **{name: value for name, value in more.items() if value != {}}})

    def stage_seconds(self, stage: str, seconds: float) -> None:
        """Log how long a stage without steps took, unless an earlier start of the run has already done so."""
        if self.active and not any(line["stage"] == stage and "stage_seconds" in line for line in read_metrics(self.path.parent)):
            self.log({"stage": stage, "step": 0, "stage_seconds": round(seconds, 3)})

    def has_evaluation(self, stage: str, step: int) -> bool:
        """Whether an evaluation of this stage at this step is in the file (on any rank)."""
        lines = read_metrics(self.path.parent)
        return any(line["stage"] == stage and line["step"] == step and "eval" in line for line in lines)

    def note(self, text: str) -> None:
        """Show one line without disturbing a progress bar."""
        if self.active:
            self.console.print(text)

    def remark(self, stage: str, text: str) -> None:
        """A note that the report has too; once, however often the run starts again."""
        self.note(f"{stage}: {text}")
        if self.active and not any(line.get("remark") == text for line in read_metrics(self.path.parent)):
            self.log({"stage": stage, "step": 0, "remark": text})

    def sync(self) -> None:
        """Wait until what was logged is on the disk: to be called when a checkpoint is saved, from any thread."""
        if self._file is not None:
            os.fsync(self._file.fileno())

    def close(self) -> None:
        self.console.close()
        for sink in list(self.sinks):
            self._guarded(sink, sink.close)
        if self._file is not None:
            self.sync()
            self._file.close()
            self._file = None

    def truncate_after(self, stage: str, step: int) -> None:
        """Drop the lines of `stage` beyond `step`, so that a run that resumes there has no step twice; with -1 all of them."""
        if self.active and self.path.exists():
            if self._file is not None:
                self._file.close()
                self._file = None
            kept = [line for line in read_metrics(self.path.parent) if line["stage"] != stage or line["step"] <= step]
            write_text(self.path, "".join(json.dumps(line) + "\n" for line in kept))

    def __enter__(self) -> MetricsLog:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def log(self, record: Record) -> None:
        """Write a line, and hand it to the console and the sinks."""
        if not self.active:
            return
        record = _finite(record)
        with naming(self.path):  # a full disk
            if self._file is None:
                self.path.parent.mkdir(parents=True, exist_ok=True)
                if self.path.is_file():  # a line that a killed process left half-written
                    os.truncate(self.path, self.path.read_bytes().rfind(b"\n") + 1)
                self._file = self.path.open("ab", buffering=0)
            line = (json.dumps(record, allow_nan=False) + "\n").encode()
            if self._file.write(line) < len(line):
                raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        self.console.log(record)
        for sink in list(self.sinks):
            self._guarded(sink, sink.log, record)

    def _guarded(self, sink: Sink, call: Callable[..., None], *arguments: Any) -> None:
        try:
            call(*arguments)
        except Exception as error:
            self.sinks.remove(sink)
            self.note(f"{type(sink).__name__} failed and is left out from here on ({error}); {self.path} has everything")


def read_metrics(run_folder: Path | str) -> list[dict[str, Any]]:
    """All complete lines of a run's metrics, in order; empty if there is no file yet.

    A last line that a killed process left half-written is passed over. Raises ValueError for any other broken line.
    """
    path, records = Path(run_folder) / FILE_NAME, []
    for number, line in enumerate(path.read_bytes().splitlines(keepends=True) if path.exists() else (), 1):
        try:
            record = json.loads(line)
            if not (isinstance(record, dict) and "stage" in record and "step" in record):
                raise ValueError("an object with 'stage' and 'step' is expected")
            records.append(record)
        except ValueError as error:
            if line.endswith(b"\n"):
                raise ValueError(f"{path}, line {number}: {error}; remove the line or start a fresh run") from None
    return records


def seconds_by_stage(lines: Sequence[Record]) -> dict[str, float]:
    """Time of each stage: its steps, and what evaluations and stages without steps noted."""
    steps: dict[str, float] = {}
    other: dict[str, float] = {}
    for line in lines:
        stage = line["stage"]
        steps[stage] = max(steps.get(stage, 0.0), line.get("seconds") or 0.0)
        other[stage] = other.get(stage, 0.0) + (line.get("eval_seconds") or 0.0) + (line.get("stage_seconds") or 0.0)
    return {stage: round(steps[stage] + other[stage], 2) for stage in steps}


class DebiasedMean:
    """Exponential moving average without the pull towards zero at the start; values that are not finite are skipped."""

    def __init__(self, decay: float = 0.95):
        self.decay = decay
        self.weighted = self.weight = 0.0

    def update(self, value: float | None) -> float | None:
        """The average after this value; None as long as there was no finite one."""
        if value is not None and math.isfinite(value):
            self.weighted = self.decay * self.weighted + (1 - self.decay) * float(value)
            self.weight = self.decay * self.weight + (1 - self.decay)
        return self.weighted / self.weight if self.weight else None


def duration(seconds: float) -> str:
    """`0:07`, `12:30` or `3:25:00`."""
    whole = max(0, round(seconds))
    hours, minutes = whole // 3600, whole // 60 % 60
    return f"{hours}:{minutes:02d}:{whole % 60:02d}" if hours else f"{minutes}:{whole % 60:02d}"


def _shown(name: str, value: float) -> str:
    """A metric as the console shows it."""
    forms = {"tokens_per_second": "{:,.0f} tok/s", "mfu": "mfu {:.1%}", "lr": "lr {:.3g}"}
    return forms.get(name, name + " {:.4f}").format(value)


def _numbers(record: Record) -> dict[str, float]:
    """The numbers of a record, those of its evaluation among them."""
    found = {**record, **record.get("eval", {})}
    return {name: value for name, value in found.items() if isinstance(value, (int, float)) and name not in ("step", "steps")}


def _finite(value: Any) -> Any:
    """The value as JSON can hold it: numbers of numpy and torch become Python's, NaN and infinity None."""
    if isinstance(value, Mapping):
        return {str(key): _finite(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [_finite(item) for item in value]
    if hasattr(value, "item") and not isinstance(value, (str, bytes)):
        value = value.item()
    return None if isinstance(value, float) and not math.isfinite(value) else value
