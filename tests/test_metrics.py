import errno
import io
import json
import math
import os
from pathlib import Path

import numpy as np
import pytest
import torch
from rich.console import Console

from nutshell.metrics import DebiasedMean, MetricsLog, check_loggers, duration, read_metrics
from nutshell.plan.recipe import Recipe


def quiet():
    return Console(file=io.StringIO(), width=200)


def record(step, stage="pretrain", **more):
    return {"stage": stage, "step": step, "seconds": step * 0.5, "tokens": step * 64, "loss": 5.0 / step, **more}


def test_lines_are_json_without_nan(tmp_path):
    with MetricsLog(tmp_path, console=quiet()) as log:
        log.step(record(1, loss=math.nan, lr=np.float32(0.5), more={"x": [math.inf]}, norm=torch.tensor(2.0), worst=float("inf")))
        log.step(record(2, mfu=None))
        log.evaluation("pretrain", 2, {"val_bpb": 1.5}, baselines={"val_bpb": 8}, targets={"val_bpb": 2})
        log.evaluation("pretrain", 2, {}, samples=[{"prompt": "The sky", "reply": "is blü"}])
    lines = (tmp_path / "metrics.jsonl").read_text().splitlines()
    assert "NaN" not in "".join(lines)
    assert "Infinity" not in "".join(lines)
    assert [json.loads(line) for line in lines] == read_metrics(tmp_path)
    first, _, evaluation, samples = read_metrics(tmp_path)
    assert first["loss"] is None
    assert first["worst"] is None
    assert first["lr"] == 0.5
    assert first["more"] == {"x": [None]}
    assert first["norm"] == 2.0
    assert evaluation["eval"] == {"val_bpb": 1.5}
    assert evaluation["targets"] == {"val_bpb": 2}
    assert samples["samples"] == [{"prompt": "The sky", "reply": "is blü"}]


def test_other_ranks_write_and_show_nothing(tmp_path):
    console = quiet()
    with MetricsLog(tmp_path, rank=1, console=console) as log:
        log.console.begin("pretrain", 3, 0)
        log.step(record(1))
        log.evaluation("pretrain", 1, {"x": 1})
        log.note("hello")
        log.truncate_after("pretrain", 0)
        log.sync()
    assert list(tmp_path.iterdir()) == []
    assert console.file.getvalue() == ""


def test_resuming_leaves_no_gap_and_no_double(tmp_path):
    with MetricsLog(tmp_path, console=quiet()) as log:
        for step in range(1, 8):
            log.step(record(step))
        log.step(record(1, "sft"))
        log.evaluation("pretrain", 7, {"x": 1})
    with (tmp_path / "metrics.jsonl").open("a") as file:
        file.write('{"stage": "pretrain", "st')  # killed while writing
    assert len(read_metrics(tmp_path)) == 9
    with MetricsLog(tmp_path, console=quiet()) as log:
        log.truncate_after("pretrain", 4)
        for step in range(5, 11):
            log.step(record(step))
        log.truncate_after("pretrain", 9)
        log.step(record(10))
        log.truncate_after("sft", -1)
    lines = read_metrics(tmp_path)
    assert [(line["stage"], line["step"]) for line in lines] == [("pretrain", step) for step in range(1, 11)]
    assert [path.name for path in tmp_path.iterdir()] == ["metrics.jsonl"]


@pytest.mark.parametrize("bad", ["{", "[1]", '{"step": 1}'])
def test_a_broken_line_in_the_middle_is_named(tmp_path, bad):
    (tmp_path / "metrics.jsonl").write_text(f'{{"stage": "a", "step": 1}}\n{bad}\n{{"stage": "a", "step": 3}}\n')
    with pytest.raises(ValueError, match=r"metrics\.jsonl, line 2"):
        read_metrics(tmp_path)
    assert read_metrics(tmp_path / "nothing") == []


def test_plain_lines_at_intervals(tmp_path):
    console = quiet()
    with MetricsLog(tmp_path, console=console, interval_seconds=1000) as log:
        log.console.begin("pretrain", 5, 0)
        for step in range(1, 6):
            log.step(record(step, lr=0.02, tokens_per_second=12345.6, mfu=0.553))
        log.evaluation("pretrain", 5, {"val_bpb": 1.23456, "core": None})
        log.note("saved [step-5]")
    first, last, evaluation, note = console.file.getvalue().splitlines()
    assert first.startswith("pretrain 1/5  loss 5.0000  lr 0.02  12,346 tok/s  mfu 55.3%  0:00 eta")
    assert last.startswith("pretrain 5/5")
    assert evaluation == "pretrain 5  eval  val_bpb 1.235  core n/a"
    assert note == "saved [step-5]"


def test_progress_bar_in_a_terminal(tmp_path):
    console = Console(file=io.StringIO(), width=140, force_terminal=True)
    with MetricsLog(tmp_path, console=console) as log:
        log.console.begin("sft", 20, 10)
        for step in range(11, 21):
            log.step(record(step, "sft"))
    shown = console.file.getvalue()
    assert "sft" in shown
    assert "20/20" in shown
    assert "eta" in shown
    assert len(read_metrics(tmp_path)) == 10


def test_steps_alone_are_enough_for_the_console(tmp_path):
    console = quiet()
    with MetricsLog(tmp_path, console=console, interval_seconds=0) as log:
        log.step(record(3, steps=5))
        log.step(record(4, steps=5))
    assert [line.split("  ")[0] for line in console.file.getvalue().splitlines()] == ["pretrain 3/5", "pretrain 4/5"]


def test_stage_seconds_are_noted_once_and_evaluations_are_found(tmp_path):
    with MetricsLog(tmp_path, console=quiet()) as log:
        assert not log.has_evaluation("sft", 5)
        log.stage_seconds("data", 12.34567)
        log.stage_seconds("data", 0.01)
        log.evaluation("sft", 5, {"x": 1.0}, final=True)
    assert read_metrics(tmp_path)[0] == {"stage": "data", "step": 0, "stage_seconds": 12.346}
    assert len(read_metrics(tmp_path)) == 2
    other_rank = MetricsLog(tmp_path, rank=1)
    assert other_rank.has_evaluation("sft", 5)
    assert not other_rank.has_evaluation("sft", 4)
    assert not other_rank.has_evaluation("rl", 5)


def test_gpu_readings_are_added_once_a_second(tmp_path):
    with MetricsLog(tmp_path, console=quiet(), gpu=lambda: {"gpu_utilisation": 0.5}) as log:
        log.step(record(1))
        log.step(record(2))
    assert ["gpu_utilisation" in line for line in read_metrics(tmp_path)] == [True, False]


def test_debiased_mean():
    mean = DebiasedMean(0.9)
    assert mean.update(None) is None
    assert mean.update(math.nan) is None
    assert mean.update(7.0) == pytest.approx(7.0)  # the first loss shows as it is
    assert mean.update(7.0) == pytest.approx(7.0)
    assert mean.update(math.inf) == pytest.approx(7.0)
    assert 7.0 < mean.update(9.0) < 8.0


def test_durations():
    assert [duration(s) for s in (-1, 7, 750, 12300)] == ["0:00", "0:07", "12:30", "3:25:00"]


def test_a_full_disk_is_named(tmp_path):
    """F43 (46): "No space left on device" without a file."""
    if not os.path.exists("/dev/full"):
        pytest.skip("no /dev/full here")
    (tmp_path / "metrics.jsonl").symlink_to("/dev/full")
    log = MetricsLog(tmp_path, console=quiet())
    with pytest.raises(OSError, match=r"metrics\.jsonl") as caught:
        log.step(record(1))
    log.sync = lambda: None  # that device can't be synced
    log.close()
    assert caught.value.errno == errno.ENOSPC


class Kept:
    def __init__(self, folder):
        self.records, self.closed = [], False

    def log(self, record):
        self.records.append(record)

    def close(self):
        self.closed = True


class Failing(Kept):
    def log(self, record):
        raise ConnectionError("no network")


def test_sinks_get_what_the_file_gets_and_a_failing_one_is_left_out(tmp_path, monkeypatch):
    monkeypatch.setattr("nutshell.metrics.LOGGERS", {"kept": Kept, "failing": Failing})
    console = quiet()
    with MetricsLog(tmp_path, loggers=("kept", "failing"), console=console) as log:
        kept = log.sinks[0]
        log.stage_seconds("data", 1.5)
        log.step(record(1, loss=math.nan))
        log.evaluation("pretrain", 1, {"val_bpb": 1.5})
    assert kept.records == read_metrics(tmp_path)
    assert kept.closed
    assert console.file.getvalue().count("Failing failed and is left out from here on (no network)") == 1
    assert MetricsLog(tmp_path, rank=1, loggers=("kept",)).sinks == []


def test_a_missing_logger_is_refused_before_anything_is_made(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    Path("missing_logger").mkdir()  # as wandb's own folder may lie where the command runs
    monkeypatch.syspath_prepend(tmp_path)
    for name in ("missing_logger", "not_even_a_folder"):
        with pytest.raises(ValueError, match=f"--loggers {name}: the package {name} is not installed. Run pip install {name}"):
            check_loggers([name])
    check_loggers(["json"])
    with pytest.raises(ValueError, match=r"loggers names comet; accepted: wandb, tensorboard"):
        Recipe(loggers=("comet",))


def logged_run(folder, loggers):
    """Six steps, killed and gone on with from the fourth."""
    with MetricsLog(folder, console=quiet(), loggers=loggers) as log:
        for step in range(1, 7):
            log.step(record(step, loss=9.0, lr=0.1))
    with MetricsLog(folder, console=quiet(), loggers=loggers) as log:
        log.truncate_after("pretrain", 4)
        for step in range(5, 9):
            log.step(record(step, loss=1.0))
        log.evaluation("pretrain", 8, {"val_bpb": 1.25, "core": None})
        log.step(record(1, "sft"))


def test_tensorboard_has_every_step_once(tmp_path):
    pytest.importorskip("tensorboard", reason="pip install tensorboard")
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    logged_run(tmp_path, ["tensorboard"])
    events = EventAccumulator(str(tmp_path / "tensorboard" / "pretrain")).Reload()
    assert [(e.step, e.value) for e in events.Scalars("loss")] == [(step, 9.0 if step < 5 else 1.0) for step in range(1, 9)]
    assert [(e.step, e.value) for e in events.Scalars("val_bpb")] == [(8, 1.25)]
    assert sorted(path.name for path in (tmp_path / "tensorboard").iterdir()) == ["pretrain", "sft"]


def test_wandb_offline_goes_on_with_its_run(tmp_path, monkeypatch):
    pytest.importorskip("wandb", reason="pip install wandb")
    monkeypatch.setenv("WANDB_MODE", "offline")
    monkeypatch.setenv("WANDB_SILENT", "true")
    logged_run(tmp_path, ["wandb"])
    runs = sorted((tmp_path / "wandb").glob("offline-run-*"))
    name = (tmp_path / "wandb" / "run-id").read_text()
    assert len(runs) == 2
    assert all(run.name.endswith(name) and list(run.glob("*.wandb")) for run in runs)
