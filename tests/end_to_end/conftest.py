"""Whole commands in processes of their own."""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from tiny_command import TINY


class Command:
    """A nutshell command that runs."""

    def __init__(self, ask, argv: list[str], log: Path, file_bytes: int = 0) -> None:
        self.ask, self.log = ask, log
        self.pid = ask({"argv": list(map(str, argv)), "log": str(log), "file_bytes": file_bytes})["pid"]

    def send(self, number: int) -> None:
        os.kill(self.pid, number)

    def wait(self) -> int:
        return self.ask({"wait": self.pid})["code"]

    def kill_after(self, seconds: float) -> int:
        time.sleep(seconds)
        self.send(signal.SIGKILL)
        return self.wait()

    @property
    def output(self) -> str:
        return self.log.read_text()


@pytest.fixture(scope="session")
def nursery(tmp_path_factory):
    if sys.platform == "win32":
        pytest.skip("needs fork")
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "OMP_WAIT_POLICY": "PASSIVE", "COLUMNS": "200"}
    process = subprocess.Popen(
        [sys.executable, str(Path(__file__).with_name("nursery.py"))], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True,
        env=environment,
    )  # fmt: skip

    def ask(request: dict) -> dict:
        process.stdin.write(json.dumps(request) + "\n")
        process.stdin.flush()
        return json.loads(process.stdout.readline())

    assert process.stdout.readline() == "ready\n"
    logs = tmp_path_factory.mktemp("logs")
    count = iter(range(10**6))
    yield lambda *argv, **limits: Command(ask, argv, logs / f"{next(count)}.txt", **limits)
    process.stdin.close()
    assert process.wait(timeout=20) == 0
    process.stdout.close()


@pytest.fixture(scope="session")
def uninterrupted(nursery, made_once) -> tuple[Path, float, str]:
    """A run that nothing disturbed: its folder, its seconds, its output."""

    def make(folder: Path) -> None:
        start = time.monotonic()
        command = nursery("speedrun", "--out", folder / "run", *TINY, "--json")
        assert command.wait() == 0, command.output
        (folder / "seconds").write_text(str(time.monotonic() - start))
        (folder / "output").write_text(command.output)

    folder = made_once("uninterrupted", make)
    return folder / "run", float((folder / "seconds").read_text()), (folder / "output").read_text()
