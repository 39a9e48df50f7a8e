"""One JSON object a line into ``metrics.jsonl``, and the same numbers on the console.

Lines of a step hold ``stage, step, seconds, tokens, loss, lr, tokens_per_second, mfu`` and whatever else the stage has
(``reward``, ``gpu_utilisation`` ...). ``seconds`` counts from the beginning of the stage, over all restarts; ``tokens`` are those
of the one step. Other lines hold ``stage, step`` and one of ``eval`` (with ``baselines``, ``targets``, ``eval_seconds``),
``samples``, or ``stage_seconds`` (a stage without steps). NaN and infinity are written as null.
"""

from __future__ import annotations

import json
import math
import os
import time
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TaskID, TextColumn, TimeElapsedColumn
from rich.text import Text

FILE_NAME = "metrics.jsonl"

_SHOWN = ("loss", "reward", "lr", "tokens_per_second", "mfu")


class MetricsLog:
    """Writes and shows the metrics of one run. Ranks other than 0 may call everything; they write and show nothing.

    Readings of ``gpu`` are added to the steps, once a second at most. A terminal gets a progress bar with the time left, other
    outputs a line every ``interval_seconds``; both go to standard error, so that standard output stays free for results.
    """

    def __init__(
        self,
        run_folder: Path | str,
        rank: int = 0,
        *,
        interval_seconds: float = 10.0,
        console: Console | None = None,
        gpu: GpuSampler | None = None,
    ):
        self.path = Path(run_folder) / FILE_NAME
        self.active = rank == 0
        self.interval_seconds = interval_seconds
        self.console = console or Console(stderr=True)
        self.gpu = gpu
        self._gpu_read = -math.inf
        self._file: Any = None
        self._progress: Progress | None = None
        self._task: TaskID | None = None
        self._loss = DebiasedMean()
        self._stage = ""
        self._total_steps: int | None = None
        self._first_step = 0
        self._started = self._shown = 0.0

    def begin(self, stage: str, total_steps: int | None = None, step: int = 0) -> None:
        """Starts the console's view of a stage at ``step`` (above 0 after a resume) of ``total_steps``."""
        if not self.active:
            return
        self.end()
        self._stage, self._total_steps, self._first_step = stage, total_steps, step
        self._started, self._shown, self._loss = time.monotonic(), -math.inf, DebiasedMean()
        if self.console.is_terminal:
            self._progress = Progress(
                TextColumn("[bold]{task.description}"),
                BarColumn(bar_width=24),
                MofNCompleteColumn(),
                TextColumn("{task.fields[line]}"),
                TimeElapsedColumn(),
                TextColumn("{task.fields[eta]}"),
                console=self.console,
            )
            self._progress.start()
            self._task = self._progress.add_task(stage, total=total_steps, completed=step, line="", eta="")

    def end(self) -> None:
        """Ends the console's view of the stage; the progress bar stays as it stands."""
        if self._progress is not None:
            self._progress.stop()
        self._progress, self._task, self._stage = None, None, ""

    def step(self, record: Mapping[str, Any]) -> None:
        """Appends one step's record and shows it. It must have ``stage`` and ``step``, the number of steps done.

        Where it also has ``steps``, the number of all steps of the stage, `begin` need not be called.
        """
        if not self.active:
            return
        now = time.monotonic()
        if self.gpu is not None and now - self._gpu_read >= 1:
            self._gpu_read = now
            record = {**record, **(self.gpu.sample() or {})}
        self._write(record)
        if record["stage"] != self._stage:
            self.begin(record["stage"], record.get("steps"), record["step"] - 1)
        smooth = self._loss.update(record["loss"]) if record.get("loss") is not None else None
        shown = {**record, "loss": smooth} if smooth is not None else dict(record)
        line = "  ".join(_shown(name, shown[name]) for name in _SHOWN if shown.get(name) is not None)
        eta = self._eta(record)
        if self._progress is not None and self._task is not None:
            self._progress.update(self._task, completed=record["step"], line=line, eta=f"eta {eta}" if eta else "")
            return
        if now - self._shown >= self.interval_seconds or record["step"] == self._total_steps:
            self._shown = now
            total = f"/{self._total_steps}" if self._total_steps else ""
            times = f"{duration(now - self._started)} eta {eta}" if eta else duration(now - self._started)
            self._print(f"{self._stage} {record['step']}{total}  {line}  {times}")

    def evaluation(
        self,
        stage: str,
        step: int,
        values: Mapping[str, float | None],
        *,
        baselines: Mapping[str, float] | None = None,
        targets: Mapping[str, float] | None = None,
        **more: Any,
    ) -> None:
        """Appends an evaluation. ``baselines`` is what random guessing gives, ``targets`` what should be reached."""
        if not self.active:
            return
        record: dict[str, Any] = {"stage": stage, "step": step, "eval": dict(values), **more}
        if baselines:
            record["baselines"] = dict(baselines)
        if targets:
            record["targets"] = dict(targets)
        self._write(record)
        shown = "  ".join(f"{name} {'n/a' if value is None else f'{value:.4g}'}" for name, value in values.items())
        self._print(f"{stage} {step}  eval  {shown}")

    def samples(self, stage: str, step: int, samples: Sequence[Mapping[str, str]]) -> None:
        """Appends what the model answers: objects with ``prompt`` and ``reply``. They appear in the report."""
        if self.active:
            self._write({"stage": stage, "step": step, "samples": [dict(sample) for sample in samples]})

    def stage_seconds(self, stage: str, seconds: float) -> None:
        """Appends how long a stage without steps took, unless an earlier start of the run has already done so."""
        if self.active and not any(line["stage"] == stage and "stage_seconds" in line for line in self._read()):
            self._write({"stage": stage, "step": 0, "stage_seconds": round(seconds, 3)})

    def has_evaluation(self, stage: str, step: int) -> bool:
        """Whether an evaluation of this stage at this step is in the file (on any rank)."""
        return any(line["stage"] == stage and line["step"] == step and "eval" in line for line in self._read())

    def note(self, text: str) -> None:
        """Shows one line without disturbing a progress bar."""
        if self.active:
            self._print(text)

    def sync(self) -> None:
        """Makes sure that what was appended is on the disk: to be called when a checkpoint is saved, from any thread."""
        if self._file is not None:  # each line was flushed when it was written
            os.fsync(self._file.fileno())

    def close(self) -> None:
        self.end()
        if self._file is not None:
            self.sync()
            self._file.close()
            self._file = None

    def truncate_after(self, stage: str, step: int) -> None:
        """Drops the lines of ``stage`` beyond ``step``, so that a run that resumes there has no step twice.

        With step -1 the whole stage goes. The file is rewritten beside itself and renamed.
        """
        if not self.active or not self.path.exists():
            return
        if self._file is not None:
            self._file.close()
            self._file = None
        kept = [line for line in _lines(self.path) if line["stage"] != stage or line["step"] <= step]
        partial = self.path.with_name(f".{FILE_NAME}.partial")
        with partial.open("w", encoding="utf-8") as file:
            file.writelines(json.dumps(line) + "\n" for line in kept)
            file.flush()
            os.fsync(file.fileno())
        os.replace(partial, self.path)

    def __enter__(self) -> MetricsLog:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def _read(self) -> list[dict[str, Any]]:
        return read_metrics(self.path.parent)

    def _write(self, record: Mapping[str, Any]) -> None:
        if self._file is None:
            self.path.parent.mkdir(parents=True, exist_ok=True)
            _cut_torn_line(self.path)
            self._file = self.path.open("a", encoding="utf-8")
        self._file.write(json.dumps(_finite(record), allow_nan=False) + "\n")
        self._file.flush()

    def _print(self, text: str) -> None:
        self.console.print(Text(text), highlight=False, soft_wrap=True)

    def _eta(self, record: Mapping[str, Any]) -> str:
        done = record["step"] - self._first_step
        if record.get("eta_seconds") is not None:
            return duration(record["eta_seconds"])
        if not self._total_steps or done < 1:
            return ""
        return duration((time.monotonic() - self._started) / done * (self._total_steps - record["step"]))


def read_metrics(run_folder: Path | str) -> list[dict[str, Any]]:
    """All complete lines of a run's metrics, in order; empty if there is no file yet.

    A last line that a killed process left half-written is passed over. Raises ValueError for any other broken line.
    """
    path = Path(run_folder) / FILE_NAME
    return list(_lines(path)) if path.exists() else []


def seconds_by_stage(lines: Sequence[Mapping[str, Any]]) -> dict[str, float]:
    """Time of each stage: its steps, and what evaluations and stages without steps noted."""
    steps: dict[str, float] = {}
    other: dict[str, float] = {}
    for line in lines:
        stage = line["stage"]
        if "eval" in line or "stage_seconds" in line:
            other[stage] = other.get(stage, 0.0) + (line.get("eval_seconds") or 0.0) + (line.get("stage_seconds") or 0.0)
        else:
            steps[stage] = max(steps.get(stage, 0.0), line.get("seconds") or 0.0)
    stages = list(dict.fromkeys(line["stage"] for line in lines))
    return {stage: round(steps.get(stage, 0.0) + other.get(stage, 0.0), 2) for stage in stages}


def _lines(path: Path) -> Iterator[dict[str, Any]]:
    with path.open("rb") as file:
        for number, line in enumerate(file, 1):
            try:
                record = json.loads(line)
                if not (isinstance(record, dict) and "stage" in record and "step" in record):
                    raise ValueError("an object with 'stage' and 'step' is expected")
            except ValueError as error:
                if not line.endswith(b"\n"):
                    return
                raise ValueError(f"{path}, line {number}: {error}; remove the line or start a fresh run") from None
            yield record


def _cut_torn_line(path: Path) -> None:
    if not path.exists():
        return
    with path.open("rb+") as file:
        end = file.seek(0, os.SEEK_END)
        position = end
        while position > 0:
            start = max(0, position - 4096)
            file.seek(start)
            found = file.read(position - start).rfind(b"\n")
            if found >= 0:
                position = start + found + 1
                break
            position = start
        if position < end:
            file.truncate(position)


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


class GpuSampler:
    """Utilisation, memory and power of one NVIDIA GPU through NVML.

    ``uuid`` (as ``torch.cuda.get_device_properties(i).uuid`` gives it) finds the right card where CUDA_VISIBLE_DEVICES
    renumbers them; ``index`` counts all cards of the machine.
    """

    def __init__(self, index: int = 0, uuid: str | None = None):
        self._nvml: Any = None
        try:
            import pynvml
        except ImportError:
            return
        name = uuid if uuid is None or uuid.startswith(("GPU-", "MIG-")) else f"GPU-{uuid}"
        try:
            pynvml.nvmlInit()
            self._handle = pynvml.nvmlDeviceGetHandleByUUID(name) if name else pynvml.nvmlDeviceGetHandleByIndex(index)
        except pynvml.NVMLError:  # no driver, or no such card
            return
        self._nvml = pynvml

    def sample(self) -> dict[str, float] | None:
        """``gpu_utilisation`` (0 to 1), ``gpu_memory_gib`` and ``gpu_power_watts`` as far as known; None without a GPU."""
        if self._nvml is None:
            return None
        nvml, handle = self._nvml, self._handle
        readings = {
            "gpu_utilisation": lambda: nvml.nvmlDeviceGetUtilizationRates(handle).gpu / 100,
            "gpu_memory_gib": lambda: nvml.nvmlDeviceGetMemoryInfo(handle).used / 2**30,
            "gpu_power_watts": lambda: nvml.nvmlDeviceGetPowerUsage(handle) / 1000,
        }
        found = {}
        for name, read in readings.items():
            try:
                found[name] = read()
            except nvml.NVMLError:  # MIG slices and some cards lack a reading
                continue
        return found or None


def duration(seconds: float) -> str:
    """``0:07``, ``12:30`` or ``3:25:00``."""
    whole = max(0, round(seconds))
    hours, minutes = whole // 3600, whole // 60 % 60
    return f"{hours}:{minutes:02d}:{whole % 60:02d}" if hours else f"{minutes}:{whole % 60:02d}"


def _shown(name: str, value: Any) -> str:
    if name == "tokens_per_second":
        return f"{value:,.0f} tok/s"
    if name == "mfu":
        return f"mfu {value:.1%}"
    if name == "lr" and isinstance(value, Mapping):
        value = next(iter(value.values()))
    return f"{name} {value:.3g}" if name == "lr" else f"{name} {value:.4f}"


def _finite(value: Any) -> Any:
    """The value as JSON can hold it: numbers of numpy and torch become Python's, NaN and infinity None."""
    if isinstance(value, Mapping):
        return {str(key): _finite(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [_finite(item) for item in value]
    if hasattr(value, "item") and not isinstance(value, (str, bytes)):
        value = value.item()
    return None if isinstance(value, float) and not math.isfinite(value) else value
