"""Starts nutshell commands as children of a process that has imported everything: each takes 0.1 s to start instead of 3.

Speaks JSON lines on its standard streams: {"argv": [...], "log": FILE} -> {"pid": N}; {"wait": N} -> {"code": N},
negative for a signal, as subprocess has it. A child can be killed at any moment by its pid. With "file_bytes" it cannot write
a larger file, as on a full disk.
"""

import importlib
import json
import os
import resource
import sys

import torch

from nutshell.cli.main import main
from nutshell.model.config import ModelConfig
from nutshell.model.gpt import GPT


def start(argv: list[str], log: str, file_bytes: int) -> int:
    pid = os.fork()
    if pid:
        return pid
    code = 1
    try:
        file = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_APPEND)
        os.dup2(os.open(os.devnull, os.O_RDONLY), 0)
        os.dup2(file, 1)
        os.dup2(file, 2)
        if file_bytes:
            resource.setrlimit(resource.RLIMIT_FSIZE, (file_bytes, file_bytes))
        main(argv)
        code = 0
    except SystemExit as end:
        code = end.code or 0
    except BaseException:
        sys.excepthook(*sys.exc_info())
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(code)


# All that a command needs is imported before the first fork.
for name in ("torch._dynamo", "nutshell.report.facts", "nutshell.train.pipeline"):
    importlib.import_module(name)
torch.set_num_threads(1)
GPT(
    ModelConfig(vocab_size=8, depth=1, width=32, heads=1, kv_heads=1, head_dim=32)
).for_inference()  # imports more, the first time
print("ready", flush=True)
for line in sys.stdin:
    request = json.loads(line)
    if "argv" in request:
        answer = {"pid": start(request["argv"], request["log"], request["file_bytes"])}
    else:
        answer = {"code": os.waitstatus_to_exitcode(os.waitpid(request["wait"], 0)[1])}
    print(json.dumps(answer), flush=True)
