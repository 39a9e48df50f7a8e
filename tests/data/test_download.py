"""Named data from a hub on this machine, which cuts connections, is busy, refuses, and sends wrong bytes."""

import io
import json
import os
import subprocess
import sys
import zipfile

import pyarrow
import pyarrow.parquet
import pytest
from hub_server import COMMIT

from nutshell import hub
from nutshell.data.shards import open_shards
from nutshell.data.sources import SOURCES
from nutshell.tasks import load_task

CLIMBMIX = "karpathy/climbmix-400b-shuffle"
GSM8K = [{"question": f"What is {n} + 1?", "answer": f"It is <<{n}+1={n + 1}>>{n + 1}.\n#### {n + 1}"} for n in range(5)]


def parquet(rows: list[dict]) -> bytes:
    out = io.BytesIO()
    pyarrow.parquet.write_table(pyarrow.Table.from_pylist(rows), out)
    return out.getvalue()


@pytest.fixture
def server(hub_server):
    shards = {f"shard_{n:05d}.parquet": parquet([{"text": f"Page {n} of {m}. " * 99} for m in range(9)]) for n in range(4)}
    hub_server.repositories[CLIMBMIX] = shards | {"shard_06542.parquet": parquet([{"text": "Held out."}])}
    files = {f"main/{split}-00000-of-00001.parquet": parquet(GSM8K) for split in ("train", "test")}
    hub_server.repositories["openai/gsm8k"] = files
    return hub_server


def test_shards_are_a_folder_to_train_from_and_more_of_them_come_later(server, run_command, tmp_path):
    code, out, err = run_command("data download climbmix -n 2")
    assert code == 0, err
    assert "3 files" in out
    assert f"{CLIMBMIX} at {COMMIT[:8]}; licence: CC-BY-NC-4.0" in out
    shards = open_shards(tmp_path / "data" / "climbmix")
    assert shards.read("val", 0) == ["Held out."]
    assert len(shards.read("train", 1)) == 9
    assert sorted(os.listdir(tmp_path / "data" / "climbmix")) == [
        ".source.json", "train-00000.parquet", "train-00001.parquet", "val-00000.parquet",
    ]  # fmt: skip
    server.requests.clear()
    assert run_command("data download climbmix -n 2")[0] == 0
    assert server.requests == []
    assert run_command("data download climbmix -n 3")[0] == 0
    assert [line for line in server.requests if line.startswith("GET /datasets")] == [
        f"GET /datasets/{CLIMBMIX}/resolve/{COMMIT}/shard_00002.parquet"
    ]


def test_a_task_is_read_as_it_was_fetched(server, run_command, tmp_path):
    code, _, err = run_command("data download gsm8k")
    assert code == 0, err
    assert [json.loads(line) for line in (tmp_path / "data/eval/gsm8k/train.jsonl").read_text().splitlines()] == GSM8K
    assert len(load_task("gsm8k", data_folder=tmp_path / "data/eval", shots=2).items) == 5


@pytest.mark.parametrize("faults", [["cut"], [429, 429], [503], ["wrong"], ["cut", "wrong"]])
def test_what_a_second_attempt_mends_is_mended(server, run_command, tmp_path, faults):
    server.faults["shard_00001.parquet"] = faults
    code, _, err = run_command("data download climbmix -n 2")
    assert code == 0, err
    assert not server.faults["shard_00001.parquet"]
    assert (tmp_path / "data/climbmix/train-00001.parquet").read_bytes() == server.repositories[CLIMBMIX]["shard_00001.parquet"]


def test_a_cut_connection_goes_on_inside_the_file(server, run_command, monkeypatch):
    monkeypatch.setattr("huggingface_hub.constants.DOWNLOAD_CHUNK_SIZE", 100)  # only whole chunks are written
    server.faults["shard_00001.parquet"] = ["cut"]
    assert run_command("data download climbmix -n 2")[0] == 0
    half = len(server.repositories[CLIMBMIX]["shard_00001.parquet"]) // 2
    start = half // 100 * 100
    assert f"GET /datasets/{CLIMBMIX}/resolve/{COMMIT}/shard_00001.parquet bytes={start}-" in server.requests


@pytest.mark.parametrize(
    ("where", "faults", "says"),
    [
        ("shard_00001.parquet", ["wrong", "wrong"], "shard_00001.parquet came twice with other bytes than the hub promises"),
        ("shard_00001.parquet", [429] * 99, "asks to slow down (429). What has arrived is kept"),
        (CLIMBMIX, [503] * 99, "answers 503"),
        (CLIMBMIX, ["gated"], "is gated. Accept its terms on its page"),
        (CLIMBMIX, [401], "the hub refuses (401)"),
        (CLIMBMIX, [404], "no such repository, revision or file (404)"),
    ],
)
def test_what_stays_wrong_is_one_line_and_leaves_nothing_half_written(server, run_command, tmp_path, where, faults, says):
    server.faults[where] = faults
    code, _, err = run_command("data download climbmix -n 2")
    assert code == 2
    assert says in err
    assert len(err.strip().splitlines()) == 1
    folder = tmp_path / "data/climbmix"
    assert not folder.exists() or all(name == ".source.json" or name.endswith("0.parquet") for name in os.listdir(folder))
    server.faults.clear()
    assert run_command("data download climbmix -n 2")[0] == 0


def test_a_file_that_the_repository_lacks_is_named(server, run_command, tmp_path):
    del server.repositories[CLIMBMIX]["shard_06542.parquet"]
    code, _, err = run_command("data download climbmix -n 1")
    assert (code, (tmp_path / "data/climbmix").exists()) == (2, False)
    assert f"{CLIMBMIX} has no shard_06542.parquet" in err


def test_without_a_network(server, run_command, monkeypatch, tmp_path):
    server.close()
    monkeypatch.setattr(hub, "ATTEMPTS", 1)
    code, _, err = run_command("data download climbmix -n 1")
    assert (code, (tmp_path / "data/climbmix").exists()) == (2, False)
    assert "cannot be reached" in err
    assert "HF_ENDPOINT names a mirror" in err


def test_offline_takes_what_is_there_and_asks_nobody(server, run_command, monkeypatch):
    from huggingface_hub import constants

    assert run_command("data download climbmix -n 1")[0] == 0
    server.requests.clear()
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    assert run_command("data download climbmix -n 1")[0] == 0
    code, _, err = run_command("data download climbmix -n 2")
    assert (code, server.requests) == (2, [])
    assert "lacks 1 of 3 files" in err


def test_a_disk_that_is_too_small_is_noticed_before(server, run_command, monkeypatch, tmp_path):
    monkeypatch.setattr("shutil.disk_usage", lambda path: type("Usage", (), {"free": 1000}))
    code, _, err = run_command("data download climbmix -n 1")
    assert (code, (tmp_path / "data/climbmix").exists()) == (2, False)
    assert "GB are free" in err
    assert not any("resolve" in line for line in server.requests)


def test_a_disk_that_fills_up(server, run_command, monkeypatch, tmp_path):
    def full(*args):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("nutshell.data.download.os.replace", full)
    code, _, err = run_command("data download climbmix -n 1")
    assert (code, (tmp_path / "data/climbmix").exists()) == (2, False)
    assert "the disk is full" in err
    mine = tmp_path / "data/climbmix/notes.md"
    mine.parent.mkdir()
    mine.write_text("mine")
    assert run_command("data download climbmix -n 1")[0] == 2
    assert os.listdir(mine.parent) == ["notes.md"]


def test_a_disk_that_fills_up_while_a_file_arrives(server, run_command, tmp_path):
    """Room for the small file, not for the other: the system's own error inside huggingface_hub."""
    resource = pytest.importorskip("resource", reason="Windows has no limit for files")
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (1000, before[1]))
    try:
        code, _, err = run_command("data download climbmix -n 1")
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
    assert code == 2
    assert "the disk is full. Make room" in err
    assert {path.name for path in (tmp_path / "data/climbmix").glob("*")} <= {".source.json", "val-00000.parquet"}
    assert run_command("data download climbmix -n 1")[0] == 0


def test_a_download_that_was_killed_goes_on(server, run_command, tmp_path):
    """Killed between the record and the file's appearance, with half files beside it: the narrowest place."""
    code = """if True:
        import os
        from nutshell.cli.main import main
        replace = os.replace
        dies = lambda to: os.path.basename(to) == "val-00000.parquet"
        os.replace = lambda source, to: os._exit(9) if dies(to) else replace(source, to)
        main("data download climbmix -n 2".split())
    """
    environment = {**os.environ, "HF_ENDPOINT": server.url, "HF_HUB_OFFLINE": "0"}
    killed = subprocess.run([sys.executable, "-c", code], cwd=tmp_path, env=environment, capture_output=True)
    assert killed.returncode == 9, killed.stderr
    folder = tmp_path / "data/climbmix"
    assert {".partial", ".source.json"} <= {*os.listdir(folder)}
    assert "val-00000.parquet" in (folder / ".source.json").read_text()
    assert run_command("data download climbmix -n 2")[0] == 0
    assert ".partial" not in os.listdir(folder)
    assert len(open_shards(folder).read("train", 1)) == 9


def test_bytes_that_the_table_knows_better_than_the_hub_are_refused(server, run_command):
    server.repositories["allenai/ai2_arc"] = dict.fromkeys(SOURCES["arc"].files.values(), parquet(GSM8K))
    code, _, err = run_command("data download arc")
    assert code == 2
    assert "is not what it was" in err


def test_a_file_of_somebody_else_is_left_alone(server, run_command, tmp_path):
    mine = tmp_path / "data/climbmix/train-00000.parquet"
    mine.parent.mkdir(parents=True)
    mine.write_text("mine")
    code, _, err = run_command("data download climbmix -n 1")
    assert (code, mine.read_text()) == (2, "mine")
    assert "was not downloaded" in err


def test_an_archive_at_an_address(server, run_command, tmp_path):
    out = io.BytesIO()
    with zipfile.ZipFile(out, "w") as archive:
        archive.writestr("eval_bundle/core.yaml", "tasks")
        archive.writestr("eval_bundle/eval_data/a.jsonl", "{}")
    server.repositories["files"] = {"signed": out.getvalue(), "page": b"<html>"}
    code, _, err = run_command(f"data download core --url {server.url}/files/signed")
    assert code == 0, err
    assert (tmp_path / "data/eval/core/core.yaml").read_text() == "tasks"
    assert sorted(os.listdir(tmp_path / "data/eval/core")) == [".source.json", "core.yaml", "eval_data"]
    server.repositories["files"]["broken.zip"] = out.getvalue()[:-30]
    for bad, says in (("broken.zip", "no whole .zip"), ("page", "no whole .zip"), ("gone.zip", "answers 404")):
        code, _, err = run_command(f"data download core --out {bad} --url {server.url}/files/{bad}")
        assert code == 2
        assert says in err
        assert not os.path.exists(tmp_path / bad / "eval/core")


@pytest.mark.parametrize(
    ("line", "says"),
    [
        ("climbmixx", "Did you mean climbmix?"),
        ("climbmix -n 7000", "accepted: 1 to 6,542"),
        ("identity --url nowhere", "--url is 'nowhere'; accepted: an address that begins with https://"),
        ("gsm8k --url http://x", "--url is for sources that are no hub repository"),
    ],
)
def test_bad_arguments(server, run_command, line, says):
    code, _, err = run_command(f"data download {line}")
    assert code == 2
    assert says in err
    assert server.requests == []


def test_the_table_is_whole():
    for name, source in SOURCES.items():
        assert bool(source.repository) != bool(source.url), name
        assert source.megabytes
        assert source.licence
        assert source.about
        wanted = source.wanted(1 if source.shards else None)
        assert len({*wanted.values()}) == len(wanted)
        assert {*source.sha256} <= {*wanted.values()}
        assert not source.shards or "val-00000.parquet" in wanted
