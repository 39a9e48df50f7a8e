"""Tiny runs: a finished one, copies of it as they stood before a stage, and an open one."""

import json
import shutil
from pathlib import Path

import pytest
from tiny_run import RUNTIME, quick_evaluations, recipe

from nutshell import checkpoint
from nutshell.metrics import read_metrics
from nutshell.train.pipeline import run_stages
from nutshell.train.prepare import open_run


@pytest.fixture(autouse=True)
def _quick():
    with quick_evaluations():
        yield


@pytest.fixture(scope="session")
def finished(made_once) -> Path:
    """An uninterrupted run of all stages."""

    def make(folder: Path) -> None:
        with quick_evaluations():
            run_stages(recipe(folder), RUNTIME)

    return made_once("finished", make)


@pytest.fixture
def begun(finished, tmp_path):
    """begun(stage): a copy of that run, as it stood before the stage."""

    def copy(stage: str) -> Path:
        folder = tmp_path / "run"
        shutil.copytree(finished, folder)
        for later in checkpoint.STAGES[checkpoint.STAGES.index(stage) :]:
            shutil.rmtree(folder / later, ignore_errors=True)  # there was no DPO
        early = [
            line for line in read_metrics(folder) if line["stage"] not in checkpoint.STAGES[checkpoint.STAGES.index(stage) :]
        ]
        (folder / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in early))
        return folder

    return copy


@pytest.fixture
def opened(tmp_path):
    """An open run with nothing trained yet."""
    with open_run(recipe(tmp_path / "run"), RUNTIME) as run:
        yield run
