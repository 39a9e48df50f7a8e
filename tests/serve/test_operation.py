"""What an operator sees and sets: the access log, the key, metrics, the dashboard, and readers that stall."""

import json
import logging
import re
import socket
import sys
import time
from pathlib import Path

import pytest

from nutshell.serve.logs import JSONLines

DASHBOARD = Path(__file__).parents[2] / "docs" / "grafana.json"


def test_the_access_log_has_numbers_and_no_words(serving, scripted, ask, caplog, eventually):
    caplog.set_level("INFO", "nutshell.serve")
    client = serving(scripted("It is Paris."))
    answer = ask(client, "my private words")
    eventually(lambda: any(hasattr(record, "access") for record in caplog.records))  # written once the answer is out
    (record,) = [record for record in caplog.records if hasattr(record, "access")]
    line = json.loads(JSONLines().format(record))
    usage = answer.json()["usage"]
    assert line["request_id"] == answer.headers["x-request-id"]
    assert (line["method"], line["path"], line["status"], line["model"]) == ("POST", "/v1/chat/completions", 200, "tiny")
    assert (line["prompt_tokens"], line["completion_tokens"]) == (usage["prompt_tokens"], usage["completion_tokens"])
    assert 0 <= line["queue_seconds"] <= line["first_token_seconds"] <= line["seconds"] < 5
    assert "private" not in json.dumps(line)
    assert "Paris" not in json.dumps(line)
    assert f"completion_tokens={usage['completion_tokens']}" in record.getMessage()


def test_a_json_log_keeps_an_error_on_one_line():
    try:
        raise RuntimeError("two\nlines")
    except RuntimeError:
        record = logging.getLogger("nutshell.serve").makeRecord(
            "nutshell.serve", logging.ERROR, "file", 1, "it %s", ("failed",), sys.exc_info()
        )
    text = JSONLines().format(record)
    assert "\n" not in text
    assert json.loads(text)["message"] == "it failed"
    assert "two\nlines" in json.loads(text)["error"]


def test_metrics_count_what_was_answered_and_the_dashboard_asks_for_them(serving, scripted, ask):
    client = serving(scripted("It is Paris."))
    usage = ask(client).json()["usage"]
    text = client.get("/metrics").text
    assert f"nutshell_completion_tokens_total {usage['completion_tokens']:.1f}" in text
    for histogram in ("first_token", "token", "queue"):
        assert f"nutshell_{histogram}_seconds_count 1.0" in text
    assert "nutshell_models_loaded 1.0" in text
    shown = set(re.findall(r"nutshell_\w+", DASHBOARD.read_text(encoding="utf-8")))
    assert len(shown) > 8
    assert not {name for name in shown if name not in text}


def test_metrics_tell_of_the_kv_cache(serving, engine, ask):
    client = serving(engine)
    for _ in range(2):  # the second finds the whole blocks of the first's prompt
        ask(client, max_tokens=2, messages=[{"role": "user", "content": "a b c d e f g h i j k l m n o p q r s t u v w x y z"}])
    found = dict(re.findall(r'nutshell_(\w+)\{model="tiny"\} (\S+)', client.get("/metrics").text))
    assert float(found["kv_blocks"]) == engine.allocate().pool.total
    assert (float(found["kv_blocks_used"]), float(found["preemptions_total"])) == (0, 0)
    assert float(found["prefix_hit_tokens_total"]) >= 16
    assert float(found["prefix_hit_tokens_total"]) % 16 == 0


def test_the_key_may_come_from_a_file(run_command, tmp_path, monkeypatch):
    asked = {}
    monkeypatch.setattr("nutshell.serve.server.serve", lambda folder, open_engine, **options: asked.update(options))
    (tmp_path / "key").write_text("s3cret\n")
    assert run_command("serve run --api-key-file key --log json --allow-origin https://a.example")[0] == 0
    assert (asked["api_key"].strip(), asked["json_log"], asked["cors_origins"]) == ("s3cret", True, ["https://a.example"])
    code, _, error = run_command("serve run --api-key-file key --api-key other")
    assert code == 2
    assert "given twice" in error
    assert run_command("serve run --api-key-file nothing")[0] == 2


@pytest.mark.parametrize("path", ["/v1/chat/completions", "/v1/completions"])
def test_a_stalled_reader_is_cut_off_over_a_real_socket(serving, engine, eventually, unread, path, monkeypatch):
    """It asks for a stream and reads none of it: its answers end and their rows are free, while it stays connected."""
    small = socket.create_server

    def create_server(*args, **options):
        listener = small(*args, **options)
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 4096)
        return listener

    monkeypatch.setattr(socket, "create_server", create_server)
    monkeypatch.setattr("nutshell.serve.guard.SEND_SECONDS", 0.3)
    client = serving(engine)
    fields = {"logprobs": True, "top_logprobs": 20, "messages": [{"role": "user", "content": "x"}]}
    if path == "/v1/completions":
        fields = {"logprobs": 20, "prompt": "x"}
    ends = {str(token): -100 for token in engine.tok.special_tokens.values()}  # so that answers are long
    body = json.dumps({"stream": True, "n": 4, "max_tokens": 110, "temperature": 1, "logit_bias": ends, **fields}).encode()
    connection = unread(client, path, body)
    eventually(lambda: client.service.worker.in_flight == 4)
    began = time.monotonic()
    eventually(lambda: client.service.worker.in_flight == 0, seconds=5)
    assert time.monotonic() - began < 5
    eventually(lambda: not engine.busy, seconds=1)
    assert client.get("/health").status_code == 200
    received = b""
    connection.settimeout(5)
    while chunk := connection.recv(1 << 16):
        received += chunk
    assert b"[DONE]" not in received
