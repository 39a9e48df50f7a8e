"""speedrun.sh from the download to the report, at tiny size, with a hub on this machine."""

import io
import json
import os
import subprocess
import sys
from pathlib import Path

import pyarrow
import pyarrow.parquet
import pytest
from hub_server import HubServer

from nutshell import checkpoint
from nutshell.data import primer

ROOT = Path(__file__).parents[2]
RECIPE = """
depth = 1
width = 64
context = 128
vocab_size = 512
tokens_per_step = 512
dtype = "float32"
eval_items = 2
eval_tasks = ["gsm8k"]
[stages.pretrain]
steps = 6
[stages.midtrain]
steps = 2
[stages.sft]
steps = 2
[stages.rl]
steps = 1
prompts = 2
samples = 2
max_tokens = 8
"""
pytestmark = [pytest.mark.slow, pytest.mark.skipif(sys.platform == "win32", reason="needs bash")]


def parquet(rows: list[dict]) -> bytes:
    out = io.BytesIO()
    pyarrow.parquet.write_table(pyarrow.Table.from_pylist(rows), out)
    return out.getvalue()


@pytest.fixture
def script(tmp_path):
    """Runs the script with settings and flags: (exit code, its output)."""
    (tmp_path / "tiny.toml").write_text(RECIPE)

    def run(*flags: str, **settings: str) -> tuple[int, str]:
        environment = {
            **os.environ, "PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}", "PYTHONPATH": str(ROOT / "src"),
            "OMP_NUM_THREADS": "1", "NPROC": "1", "RECIPE": str(tmp_path / "tiny.toml"), "RUN": str(tmp_path / "run"),
            "DATA_FOLDER": str(tmp_path / "data"), "HF_HUB_OFFLINE": "0", "HF_HOME": str(tmp_path / "home"), **settings,
        }  # fmt: skip
        result = subprocess.run(
            ["bash", ROOT / "speedrun.sh", *flags], env=environment, capture_output=True, text=True, timeout=600
        )
        return result.returncode, result.stdout + result.stderr

    return run


def test_a_dry_run_says_what_would_be_done_and_keeps_nothing(script, tmp_path):
    before = sorted(tmp_path.rglob("*"))
    code, output = script("--depth", "24", "--dry-run", RECIPE="recipes/speedrun-100usd")
    assert code == 0, output
    for words in ("in 207 shards", "smoltalk: about 971.0 MB", "GB are free", "time  ", "$24 an hour", "pretrain  9787 steps"):
        assert words in output
    assert sorted(tmp_path.rglob("*")) == before
    code, output = script("--data", "my text", "--dry-run", RECIPE="recipes/speedrun-100usd", CHATS="smoltalk")
    assert (code, "climbmix" in output) == (0, False)
    code, output = script("--dry-run", RECIPE="recipes/demo")
    assert (code, "download" in output) == (0, False)


def test_one_command_downloads_trains_scores_and_reports(script, tmp_path):
    server = HubServer()
    pages = [{"text": text} for text in primer.documents(0, 60_000)]
    chats = [{"messages": chat["messages"], "source": "here"} for chat in primer.conversations(1, 400)]
    chats = [chat for chat in chats if all(isinstance(message["content"], str) for message in chat["messages"])]
    sums = [{"question": f"What is {n} + 1?", "answer": f"#### {n + 1}"} for n in range(4)]
    server.repositories = {
        "karpathy/climbmix-400b-shuffle": {"shard_00000.parquet": parquet(pages[9:]), "shard_06542.parquet": parquet(pages[:9])},
        "HuggingFaceTB/smol-smoltalk": {f"data/train-{n:05d}-of-00004.parquet": parquet(chats[n::5]) for n in range(4)}
        | {"data/test-00000-of-00001.parquet": parquet(chats[4::5])},
        "openai/gsm8k": {f"main/{split}-00000-of-00001.parquet": parquet(sums) for split in ("train", "test")},
    }
    server.faults["shard_00000.parquet"] = ["cut"]
    code, output = script(HF_ENDPOINT=server.url, TASKS="gsm8k", DOWNLOAD="yes")
    assert code == 0, output
    report = json.loads((tmp_path / "run/report.json").read_text())
    assert report["stages"]["pretrain"]["val_bpb"] > 0
    assert "gsm8k" in report["stages"]["rl"]
    assert checkpoint.latest(tmp_path / "run/sft").name == "step-000002"
    server.requests.clear()
    code, output = script(HF_ENDPOINT=server.url, TASKS="gsm8k", DOWNLOAD="yes")  # finds everything done
    server.close()
    assert (code, server.requests) == (0, []), output
