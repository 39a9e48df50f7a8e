"""`nutshell serve --workers 2`: two processes behind one front, over real sockets."""

import contextlib
import json
import os
import re
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import httpx
import pytest

from nutshell.checkpoint import save_model_folder
from nutshell.serve.proxy import Front, Upstream

pytestmark = pytest.mark.skipif(sys.platform == "win32", reason="needs Unix sockets")


@pytest.fixture(scope="module")
def front(tmp_path_factory, make_model, tok):
    with started(tmp_path_factory.mktemp("front"), make_model, tok) as client:
        yield client


@contextlib.contextmanager
def started(folder, make_model, tok):
    """A front with two workers and a feedback file, as a client; .process, .lines of its log."""
    save_model_folder(folder / "run" / "sft" / "step-000001", make_model(16384), tok, meta={"stage": "sft", "step": 1})
    (folder / "run" / "plan.json").write_text("{}")
    (folder / "run" / "metrics.jsonl").write_text('{"stage": "sft", "step": 1, "loss": 2.0}\n')
    arguments = ["--workers", "2", "--port", "0", "--device", "cpu", "--feedback", "said.db"]
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path), "OMP_NUM_THREADS": "1", "NUTSHELL_API_KEY": "s3cret"}
    command = [sys.executable, "-m", "nutshell", "serve", "run", *arguments]
    lines = []
    with subprocess.Popen(command, cwd=folder, env=environment, stderr=subprocess.PIPE, text=True) as process:
        try:
            for line in process.stderr:
                if found := re.search(r"http://127\.0\.0\.1:\d+", line):
                    break
            reader = threading.Thread(target=lambda: lines.extend(process.stderr))
            reader.start()
            key = {"Authorization": "Bearer s3cret"}
            with httpx.Client(base_url=found[0], timeout=30, trust_env=False, headers=key) as client:
                client.process, client.lines = process, lines
                until(lambda: client.get("/health").status_code == 200)
                yield client
        finally:
            process.terminate()
            with contextlib.suppress(subprocess.TimeoutExpired):
                process.wait(40)
            process.kill()
            reader.join(20)
            print("".join(lines))


def until(condition, seconds=60):
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, "it did not happen in time"
        time.sleep(0.02)


def running(client):
    """Answers in flight of each worker."""
    found = re.findall(r'nutshell_answers_in_flight\{worker="(\d)"\} (\S+)', client.get("/metrics").text)
    return {worker: float(count) for worker, count in found}


@contextlib.contextmanager
def long_answer(client, text, tok, max_tokens=16000):
    """A stream that has begun, and the number of the worker that answers; what it says is read by whoever likes."""
    ends = {str(token): -100 for token in tok.special_tokens.values()}
    body = {"messages": [{"role": "user", "content": text}], "stream": True, "max_tokens": max_tokens, "logit_bias": ends}
    before = running(client)
    with client.stream("POST", "/v1/chat/completions", json=body) as response:
        assert response.status_code == 200, response.read()
        lines = response.iter_lines()
        next(lines)
        now = running(client)
        yield next((worker for worker in now if now[worker] > before[worker]), None), lines


def test_both_answer_as_one(front, tok):
    assert front.get("/health").json() == {"status": "ok", "workers": {"0": "ok", "1": "ok"}}
    (model,) = {one["id"] for one in front.get("/v1/models").json()["data"]} & {"run"}
    fields = {"messages": [{"role": "user", "content": "What is it?"}], "max_tokens": 8, "temperature": 0, "model": model}
    whole = front.post("/v1/chat/completions", json=fields)
    assert len(whole.headers.get_list("x-request-id")) == 1
    with front.stream("POST", "/v1/chat/completions", json={**fields, "stream": True}) as response:
        assert response.headers["content-type"].startswith("text/event-stream")
        data = [line[6:] for line in response.iter_lines() if line]
    assert data[-1] == "[DONE]"
    text = "".join(json.loads(one)["choices"][0]["delta"].get("content", "") for one in data[:-1])
    assert text == whole.json()["choices"][0]["message"]["content"]
    assert "<script" in front.get("/").text
    assert [run["name"] for run in front.get("/runs/list").json()["runs"]] == ["run"]
    assert front.get("/runs/metrics?run=run").json()["records"][0]["loss"] == 2
    assert front.head("/v1/models").status_code == 200


def test_refusals_are_those_of_a_worker(front):
    no_key = {"headers": {"Authorization": "Bearer wrong"}}
    assert front.get("/v1/models", **no_key).status_code == front.get("/metrics", **no_key).status_code == 401
    assert front.get("/health", **no_key).status_code == 200
    assert front.post("/health", json={}).status_code == 405
    large = {"prompt": "x" * (3 << 20)}
    assert front.post("/tokenize", json=large).json()["error"]["code"] == "request_too_large"
    chunks = (b"x" * 65536 for _ in range(64))
    chunked = front.post("/tokenize", content=chunks, headers={"Content-Type": "application/json"})
    assert chunked.json()["error"]["code"] == "request_too_large"
    assert front.get("/nothing").json()["error"]["code"] == "not_found"


def test_the_least_busy_one_answers_and_a_client_that_leaves_ends_its_answer(front, tok):
    with long_answer(front, "a", tok) as (first, _), long_answer(front, "b", tok) as (second, _), long_answer(front, "c", tok):
        counts = running(front)
        assert {first, second} <= {"0", "1"}
        assert sum(counts.values()) == 3
        assert max(counts.values()) <= 3
    until(lambda: set(running(front).values()) == {0}, seconds=2)
    ends = {str(token): -100 for token in tok.special_tokens.values()}
    body = {"messages": [{"role": "user", "content": "not streamed"}], "max_tokens": 16000, "logit_bias": ends}
    with pytest.raises(httpx.ReadTimeout):
        front.post("/v1/chat/completions", json=body, timeout=0.3)
    until(lambda: set(running(front).values()) == {0}, seconds=2)


def test_a_conversation_goes_back_to_the_worker_that_knows_it(tmp_path):
    servers = [Upstream(number, tmp_path) for number in range(4)]
    front = Front(servers)
    beginning = b'{"model": "run", "messages": [{"role": "user", "content": "Tell me of nuts."}'
    knows = front.order(beginning + b"]}")[0]
    assert front.order(beginning + b', {"role": "assistant", "content": "They are hard."}]}')[0] is knows
    for server in servers:
        server.status = "ok"
    knows.in_flight = 2
    assert front.order(beginning)[0] is knows
    assert front.order(b"{}")[0] is not knows
    knows.in_flight = 3
    assert front.order(beginning)[0] is not knows
    knows.in_flight, knows.status = 0, "down"
    assert front.order(beginning)[-1] is knows


def test_feedback_is_kept_in_one_database(front):
    for number in range(4):
        messages = [{"role": "user", "content": f"question {number}"}, {"role": "assistant", "content": "answer"}]
        said = {"conversation": str(number), "messages": messages, "rating": "up"}
        assert front.post("/feedback", json=said).json() == {"stored": True}
    assert front.get("/feedback").json() == {"enabled": True, "count": 4}


def test_one_that_is_killed_is_named_started_again_and_its_answers_say_so(front, tok):
    with long_answer(front, "one that is cut off", tok) as (worker, lines):
        other = str(1 - int(worker))
        ends = {str(token): -100 for token in tok.special_tokens.values()}
        same = {"messages": [{"role": "user", "content": "one that is cut off"}], "max_tokens": 16000, "logit_bias": ends}
        answers = []
        asking = threading.Thread(target=lambda: answers.append(front.post("/v1/chat/completions", json=same)))
        asking.start()
        until(lambda: running(front)[worker] == 2)  # it goes where its beginning is known
        pid = re.findall(rf"Worker {worker} is ready \(process (\d+)\)", "".join(front.lines))[-1]
        os.kill(int(pid), signal.SIGKILL)
        rest = [line for line in lines if line]
        asking.join(20)
    assert json.loads(rest[-1][6:])["error"]["code"] == "worker_lost"
    assert (answers[0].status_code, answers[0].json()["error"]["code"]) == (502, "worker_lost")
    assert front.post("/tokenize", json={"prompt": "x"}).status_code == 200
    until(lambda: front.get("/health").json()["workers"] != {"0": "ok", "1": "ok"}, seconds=5)
    health = front.get("/health")
    assert health.status_code == 503
    assert health.json()["workers"][other] == "ok"
    until(lambda: front.get("/health").status_code == 200)
    assert f"Worker {worker} ended with exit code -9 and is started again" in "".join(front.lines)


def test_a_worker_that_cannot_start_ends_the_front_with_its_exit_code(tmp_path):
    command = [sys.executable, "-m", "nutshell", "serve", "nothing", "--workers", "2", "--port", "0", "--device", "cpu"]
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)}
    ended = subprocess.run(command, cwd=tmp_path, env=environment, stderr=subprocess.PIPE, text=True, timeout=60)
    assert ended.returncode == 2
    assert "nothing does not exist" in ended.stderr
    assert "Fatal" not in ended.stderr
    assert "and could not start" in ended.stderr


def test_workers_of_a_front_that_is_killed_end_and_leave_nothing(tmp_path):
    """The folder of their sockets stayed in the temp folder for ever."""
    (tmp_path / "metrics.jsonl").write_text('{"stage": "pretrain", "step": 1, "loss": 2.0}\n')  # they wait for a checkpoint
    command = [sys.executable, "-m", "nutshell", "serve", ".", "--workers", "2", "--port", "0", "--device", "cpu"]
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path), "TMPDIR": str(tmp_path)}
    with subprocess.Popen(command, cwd=tmp_path, env=environment, stderr=subprocess.PIPE, text=True) as process:
        until(lambda: len(list(tmp_path.glob("nutshell-*/*"))) == 2)
        process.kill()
        until(lambda: not list(tmp_path.glob("nutshell-*")))
        assert "Traceback" not in process.stderr.read()  # which ends when both workers have: they hold its other end


@pytest.mark.slow
def test_sigterm_finishes_what_both_answer(tmp_path, make_model, tok):
    with (
        started(tmp_path, make_model, tok) as front,
        long_answer(front, "one", tok, 6000) as (_, first),
        long_answer(front, "two", tok, 6000) as (_, second),
    ):
        front.process.send_signal(signal.SIGTERM)
        until(lambda: front.get("/health").json()["status"] == "shutting down", seconds=5)
        refused = front.post("/v1/chat/completions", json={"messages": [{"role": "user", "content": "x"}]})
        assert refused.status_code == 503
        assert refused.headers["retry-after"]
        for lines in (first, second):
            assert [line for line in lines if line][-1] == "data: [DONE]"
        assert front.process.wait(30) in (0, -signal.SIGTERM)
    log = "".join(front.lines)
    assert not [word for word in ("Traceback", "Fatal") if word in log]
    assert not Path(re.search(r"Listening on (/\S+)/0;", log)[1]).exists()  # where their sockets were


@pytest.mark.parametrize(
    ("visible", "device", "shares"),
    [
        ("2,GPU-5b", "auto", [{"CUDA_VISIBLE_DEVICES": name} for name in ("2", "GPU-5b", "2")]),
        ("2,GPU-5b", "cpu", [{"OMP_NUM_THREADS": "2"}] * 3),
        ("-1", "auto", [{"OMP_NUM_THREADS": "2"}] * 3),
    ],
)
def test_each_worker_has_a_gpu_or_a_share_of_the_cores(run_command, monkeypatch, visible, device, shares):
    asked = {}

    def serve_workers(command, environments, **options):
        asked.update(options, command=command, environments=environments)
        return 0

    monkeypatch.setattr("nutshell.serve.front.serve_workers", serve_workers)
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", visible)
    monkeypatch.setenv("OMP_NUM_THREADS", "6")
    assert run_command(f"serve run --workers 3 --device {device} --allow-host box --port 0")[0] == 0
    assert asked["environments"] == shares
    assert asked["allow_hosts"] == ["box"]
    assert asked["command"][3:6] == ["serve", "run", "--workers"]
    code, _, error = run_command("serve run --workers 0")
    assert (code, "Accepted: 1 or more" in error) == (2, True)
