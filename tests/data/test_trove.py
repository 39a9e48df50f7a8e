"""Shards at the end of a datatrove pipeline: those of one machine, whatever the number of tasks."""

import json
from types import SimpleNamespace

import pytest

from nutshell.data.shards import read_manifest, write_shards
from nutshell.data.trove import Scatter, gather_parts

TEXTS = [f"Document {n % 300} says {'more and ' * (n % 300)}more." for n in range(330)]  # 30 of them twice


def documents(texts):
    return [SimpleNamespace(text=text) for text in texts]


def files(folder):
    return {path.name: path.read_bytes() for path in folder.glob("*.parquet")}


@pytest.mark.parametrize("tasks", [1, 3])
def test_tasks_make_the_shards_of_one_machine(tmp_path, tasks):
    step = Scatter(folder=str(tmp_path / "parts"), buckets=1)
    for rank in range(tasks):
        assert step(documents(TEXTS[rank::tasks]), rank, tasks) == ()
    gather_parts(tmp_path / "parts", tmp_path / "shards")
    assert files(tmp_path / "shards") == files(write_shards(TEXTS, tmp_path / "one"))
    assert read_manifest(tmp_path / "shards")["duplicates_dropped"] == 30


def test_tasks_that_are_missing_are_noticed(tmp_path):
    Scatter(folder=str(tmp_path / "parts"), buckets=2)(documents(TEXTS), 0, 2)
    with pytest.raises(ValueError, match=r"1 finished tasks of \[2\]"):
        gather_parts(tmp_path / "parts", tmp_path / "shards")
    Scatter(folder=str(tmp_path / "parts"), buckets=3)(documents(TEXTS), 1, 2)
    with pytest.raises(ValueError, match=r"\[2, 3\] buckets"):
        gather_parts(tmp_path / "parts", tmp_path / "shards")
    assert not (tmp_path / "shards").exists()


@pytest.mark.slow
def test_a_real_pipeline_with_two_processes(tmp_path):
    executors = pytest.importorskip("datatrove.executor", reason="datatrove is not installed")
    from datatrove.pipeline.filters import LambdaFilter
    from datatrove.pipeline.readers import JsonlReader

    (tmp_path / "text").mkdir()
    for n in range(4):
        (tmp_path / "text" / f"{n}.jsonl").write_text("".join(json.dumps({"text": text}) + "\n" for text in TEXTS[n::4]))
    steps = [JsonlReader(str(tmp_path / "text")), LambdaFilter(long), Scatter(folder=str(tmp_path / "parts"), buckets=2)]
    executors.LocalPipelineExecutor(steps, tasks=2, workers=2, logging_dir=str(tmp_path / "logs")).run()
    gather_parts(tmp_path / "parts", tmp_path / "shards")
    manifest = read_manifest(tmp_path / "shards")
    assert sum(manifest["documents"].values()) >= len({text for text in TEXTS if len(text) > 100})


def long(document) -> bool:
    return len(document.text) > 100
