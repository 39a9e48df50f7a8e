"""`serve` as a process of its own: 503 while the model loads, then 200, and a SIGTERM that loses no answer."""

import os
import re
import signal
import subprocess
import sys
import threading
import time

import httpx
import pytest

PROGRAM = """
import sys, threading, time
import nutshell.serve.server as server
assert "torch" not in sys.modules  # F47: it takes seconds to import, and the port answers before
from nutshell.model.config import ModelConfig
from nutshell.model.gpt import GPT
from nutshell.tokenizer import Tokenizer

def slow_load(folder):
    from nutshell.infer.engine import Engine

    tok = Tokenizer.train(["some words to learn from, a few of them"] * 3, vocab_size=300)
    config = ModelConfig(vocab_size=300, depth=2, width=64, heads=4, kv_heads=2, head_dim=16, context=2048, bos_id=tok.bos_id)
    while not sys.stdin.readline():
        time.sleep(0.01)
    return Engine(GPT(config).eval(), tok)

server.serve(sys.argv[1], slow_load, port=0)
"""


@pytest.mark.skipif(sys.platform == "win32", reason="needs SIGTERM")
def test_loading_serving_and_sigterm(tmp_path, ask):
    run_folder = tmp_path / "my-run"
    run_folder.mkdir()
    (run_folder / "plan.json").write_text("{}")
    command = [sys.executable, "-c", PROGRAM, str(run_folder)]
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path), "PYTHONUNBUFFERED": "1"}
    pipes = {"stdin": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True}
    with subprocess.Popen(command, env=environment, **pipes) as process:
        lines = []
        reader = threading.Thread(target=lambda: lines.extend(process.stderr))
        try:
            for line in process.stderr:
                if found := re.search(r"http://127\.0\.0\.1:\d+", line):
                    break
            reader.start()
            with httpx.Client(base_url=found[0], timeout=30, trust_env=False) as client:
                health = client.get("/health")
                assert (health.status_code, health.json()["status"]) == (503, "loading")
                assert client.get("/").status_code == 200
                process.stdin.write("go\n")
                process.stdin.flush()
                deadline = time.monotonic() + 30
                while client.get("/health").status_code == 503:
                    assert time.monotonic() < deadline
                    time.sleep(0.05)
                assert client.get("/v1/models").json()["data"][0]["id"] == "my-run"
                assert client.get("/health", headers={"Host": "evil.example"}).status_code == 400
                answers = []
                asking = threading.Thread(target=lambda: answers.append(ask(client, max_tokens=150)))
                asking.start()
                while "answers_in_flight 1.0" not in client.get("/metrics").text:
                    time.sleep(0.01)
                # A closed terminal (SIGHUP) ends it as SIGTERM does, which its handler raises; not under nohup.
                hangup = signal.getsignal(signal.SIGHUP) == signal.SIG_DFL
                process.send_signal(signal.SIGHUP if hangup else signal.SIGTERM)
                asking.join(30)
                assert answers[0].json()["choices"][0]["finish_reason"] in ("stop", "length")
            assert process.wait(20) in (0, -signal.SIGTERM)
        finally:
            process.kill()
            reader.join(5)
    assert "Traceback" not in "".join(lines)
