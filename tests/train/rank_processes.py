"""A script on several ranks, forked from one process that has imported torch: as torchrun starts them, but each in no time."""

import multiprocessing
import os
import runpy
import socket
import sys
import time
from pathlib import Path
from typing import NamedTuple

PRELOADED = ["torch", "torch.distributed", "safetensors.torch", "nutshell.eval.bpb", "nutshell.train.pipeline"]


class Done(NamedTuple):
    """How all ranks ended (0: all well) and what they printed."""

    returncode: int
    stdout: str
    stderr: str


def run_ranks(script: Path, *arguments: object, ranks: int, folder: Path, timeout: float = 300) -> Done:
    """Run `script ARGUMENTS` on `ranks` ranks of this machine; their output goes through files in `folder`."""
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(PRELOADED)  # heard where it is the first call
    with socket.create_server(("127.0.0.1", 0)) as server:
        port = server.getsockname()[1]
    shared = {"WORLD_SIZE": ranks, "LOCAL_WORLD_SIZE": ranks, "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port}
    processes = [
        context.Process(target=_rank, args=(str(script), [*map(str, arguments)], {**shared, "RANK": n, "LOCAL_RANK": n}, folder))
        for n in range(ranks)
    ]
    for process in processes:
        process.start()
    deadline = time.monotonic() + timeout
    for process in processes:
        process.join(max(0.0, deadline - time.monotonic()))
    codes = [process.exitcode for process in processes]
    for process in processes:
        process.kill()
        process.join()
    output = ["".join((folder / f"{kind}-{n}").read_text() for n in range(ranks)) for kind in ("stdout", "stderr")]
    return Done(next((1 if code is None else code for code in codes if code != 0), 0), *output)


def _rank(script: str, arguments: list[str], environment: dict[str, object], folder: Path) -> None:
    for number, kind in ((1, "stdout"), (2, "stderr")):
        file = os.open(folder / f"{kind}-{environment['RANK']}", os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
        os.dup2(file, number)
    os.environ |= {name: str(value) for name, value in environment.items()}
    sys.path.insert(0, str(Path(script).parent))
    sys.argv = [script, *arguments]
    runpy.run_path(script, run_name="__main__")
