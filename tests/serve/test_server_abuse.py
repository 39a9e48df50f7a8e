"""Bad input, overload, clients that leave, keys, and the end of the server."""

import asyncio
import concurrent.futures
import contextlib
import json
import socket
import threading
import time

import httpx
import pytest

from nutshell.checkpoint import load
from nutshell.serve.completions import EventStream
from nutshell.serve.guard import Guard, is_loopback
from nutshell.serve.http import listen
from nutshell.serve.server import serve
from nutshell.serve.service import has_too_many_objects

CHAT = "/v1/chat/completions"
JSON = {"Content-Type": "application/json"}
USER = [{"role": "user", "content": "Hello"}]
SLOW = " ".join(["word"] * 300)


def error_of(response, status):
    assert response.status_code == status, response.text
    assert response.headers["x-request-id"].startswith("req_")
    error = response.json()["error"]
    assert set(error) == {"message", "type", "param", "code"}
    assert error["message"]
    return error


@pytest.mark.parametrize(
    ("fields", "param", "words"),
    [
        ({"messages": []}, "messages", "at least 1 item"),
        ({"messages": "hello"}, "messages", "array"),
        ({"messages": [{"role": "wizard", "content": "x"}]}, "messages[0].role", "'wizard'"),
        ({"messages": [{"role": "user"}]}, "messages", "empty"),
        ({"tools": [{"type": "function", "function": {"name": "f"}}]}, "tools", "calls no functions"),
        ({"response_format": {"type": "xml"}}, "response_format", "'json_schema'"),
        ({"messages": [{"role": "user", "content": [{"type": "text", "text": "x"}] * 300}]}, "messages[0].content", "256 parts"),
        ({"messages": USER * 1100}, "messages", "at most 1024 items"),
        ({"messages": [{"role": "user", "content": 5}]}, "messages[0].content", "string"),
        (
            {"messages": [{"role": "user", "content": [{"type": "image_url", "image_url": {}}]}]},
            "messages[0].content",
            "'image_url' is not supported",
        ),
        (
            {"messages": [{"role": "user", "content": [{"type": "python", "text": "1"}]}]},
            "messages[0].content",
            "belong to messages of the assistant",
        ),
        ({"messages": [{"role": "user", "content": ""}]}, "messages", "empty"),
        ({"messages": [{"role": "user", "content": "so long " * 500}]}, "messages", "context"),
        ({"max_tokens": "many"}, "max_tokens", "'many'"),
        ({"n": 10**6}, "n", "less than or equal to 16"),
        ({"temperature": -1}, "temperature", "greater than or equal to 0"),
        ({"temperature": 2.5}, "temperature", "less than or equal to 2"),
        ({"top_p": 1.5}, "top_p", "less than or equal to 1"),
        ({"top_logprobs": 3}, None, "needs logprobs"),
        ({"logprobs": True, "top_logprobs": 50}, "top_logprobs", "less than or equal to 20"),
        ({"stop": ["x"] * 50}, "stop", "at most 16"),
        ({"stop": 5}, "stop", "a string or a list"),
        ({"seed": 2**70}, "seed", "less than or equal"),
        ({"stream_options": 3}, "stream_options", ""),
    ],
)
def test_bad_requests_are_400_and_name_the_field(serving, engine, fields, param, words):
    client = serving(engine)
    error = error_of(client.post(CHAT, json={"messages": USER, **fields}), 400)
    assert error["type"] == "invalid_request_error"
    assert error["param"] == param
    assert words in error["message"]
    assert client.service.worker.in_flight == 0
    assert client.service.worker.steps == 0


@pytest.mark.parametrize(
    "body",
    [
        b"",
        b"{",
        b"[]",
        b'"text"',
        b"null",
        b"\xff\xfe",
        b'{"messages": [{"role": "user", "content": "\\ud800"}]}',
        b'{"messages": [{"role": "user", "content": "x"}], "temperature": NaN}',
        b'{"messages": [{"role": "user", "content": "x"}], "temperature": Infinity}',
        b'{"messages": [{"role": "user", "content": "x"}], "max_tokens": 1' + b"0" * 5000 + b"}",
        b'{"messages":' + b"[" * 100_000,
    ],
)
def test_bodies_that_are_no_request(serving, engine, body):
    client = serving(engine)
    error_of(client.post(CHAT, content=body, headers={"Content-Type": "application/json"}), 400)


def test_other_content_types_are_refused(serving, engine):
    """What a browser sends to a foreign site without asking it first must not start any work."""
    client = serving(engine)
    body = json.dumps({"messages": USER})
    error_of(client.post(CHAT, content=body, headers={"Content-Type": "text/plain"}), 400)
    error_of(client.post(CHAT, content=body), 400)


def test_unknown_paths_and_methods(serving, engine):
    client = serving(engine)
    assert error_of(client.get("/nothing"), 404)["code"] == "not_found"
    assert error_of(client.get(CHAT), 405)
    assert error_of(client.get("/web/../app.py"), 404)
    assert error_of(client.post(CHAT, json={"messages": USER, "model": "gpt-4"}), 404)["param"] == "model"


def test_large_bodies_are_413_whether_or_not_they_say_so(serving, engine, monkeypatch):
    monkeypatch.setattr("nutshell.serve.guard.MAX_BODY_BYTES", 10_000)
    client = serving(engine)
    big = json.dumps({"messages": [{"role": "user", "content": "x" * 20_000}]}).encode()
    error_of(client.post(CHAT, content=big, headers={"Content-Type": "application/json"}), 413)

    def chunks():
        for start in range(0, len(big), 1000):
            yield big[start : start + 1000]

    error_of(client.post(CHAT, content=chunks(), headers={"Content-Type": "application/json"}), 413)
    assert client.get("/health").status_code == 200


def test_queue_full_is_429_at_once(serving, scripted, ask, eventually):
    client = serving(scripted(SLOW, delay_seconds=0.01, max_rows=1), max_queue=1)
    threads = [threading.Thread(target=ask, args=(client,), kwargs={"max_tokens": 60}) for _ in range(2)]
    for thread in threads:
        thread.start()
    eventually(lambda: client.service.worker.in_flight == 2)
    began = time.monotonic()
    response = ask(client)
    assert time.monotonic() - began < 0.3
    assert error_of(response, 429)["type"] == "rate_limit_error"
    assert int(response.headers["Retry-After"]) >= 1
    assert error_of(ask(client, n=3), 400)["param"] == "n"
    for thread in threads:
        thread.join()
    assert ask(client, max_tokens=2).status_code == 200
    assert "nutshell_rejected_total 1.0" in client.get("/metrics").text


@pytest.mark.parametrize("streaming", [True, False])
def test_a_client_that_leaves_ends_its_answer_within_a_second(serving, scripted, eventually, streaming):
    engine = scripted(SLOW, delay_seconds=0.01)
    client = serving(engine)
    body = json.dumps({"messages": USER, "stream": streaming}).encode()
    head = f"POST {CHAT} HTTP/1.1\r\nHost: x\r\nContent-Type: application/json\r\nContent-Length: {len(body)}\r\n\r\n"
    connection = socket.create_connection(("127.0.0.1", int(client.url.rsplit(":", 1)[1])))
    connection.sendall(head.encode() + body)
    eventually(lambda: client.service.worker.steps > 3)
    connection.close()
    eventually(lambda: client.service.worker.in_flight == 0, seconds=1.0)
    eventually(lambda: not engine.busy, seconds=1.0)
    assert client.service.worker.steps < 200


def test_a_slow_sender_is_cut_off(serving, engine, monkeypatch):
    monkeypatch.setattr("nutshell.serve.guard.BODY_SECONDS", 0.3)
    client = serving(engine)
    connection = socket.create_connection(("127.0.0.1", int(client.url.rsplit(":", 1)[1])))
    head = f"POST {CHAT} HTTP/1.1\r\nHost: x\r\nContent-Type: application/json\r\nContent-Length: 100\r\n\r\n"
    connection.sendall(head.encode() + b"{")
    connection.settimeout(5)
    assert b" 408 " in connection.recv(4096).split(b"\r\n")[0]
    connection.close()


def test_slow_headers_are_cut_off(serving, engine, monkeypatch):
    monkeypatch.setattr("nutshell.serve.http.HEADER_SECONDS", 0.3)
    client = serving(engine)
    with socket.create_connection(("127.0.0.1", int(client.url.rsplit(":", 1)[1]))) as connection:
        connection.settimeout(5)
        connection.sendall(b"POST / HTTP/1.1\r\nHost:")
        with contextlib.suppress(ConnectionResetError):
            assert connection.recv(100) == b""
    with socket.create_connection(("127.0.0.1", int(client.url.rsplit(":", 1)[1]))) as connection:
        connection.settimeout(5)  # F23: of the second request too, also where a byte comes now and then
        connection.sendall(b"GET /health HTTP/1.1\r\nHost: x\r\n\r\n")
        assert b" 200 " in connection.recv(4096)
        began = time.monotonic()
        with contextlib.suppress(ConnectionError):
            while time.monotonic() < began + 5:
                connection.sendall(b"G")
                time.sleep(0.05)
        assert time.monotonic() < began + 3
    assert client.get("/health").status_code == 200


def test_f22_connections_are_bounded_and_idle_ones_make_room(serving, engine, monkeypatch):
    monkeypatch.setattr("nutshell.serve.http.MOST_CONNECTIONS", 8)
    client = serving(engine)
    with contextlib.ExitStack() as stack:
        for _ in range(40):
            stack.enter_context(socket.create_connection(("127.0.0.1", int(client.url.rsplit(":", 1)[1]))))
        assert client.get("/health").status_code == 200
        assert len(client.server.server_state.connections) <= 8


def test_where_all_connections_are_busy_a_new_one_is_refused_and_answers_go_on(
    serving, scripted, eventually, unread, monkeypatch
):
    monkeypatch.setattr("nutshell.serve.http.MOST_CONNECTIONS", 2)
    client = serving(scripted("a b c d e f g h", delay_seconds=0.05))
    body = json.dumps({"messages": [{"role": "user", "content": "x"}], "stream": True}).encode()
    busy = [unread(client, CHAT, body) for _ in range(2)]
    eventually(lambda: client.service.worker.in_flight == 2)
    with pytest.raises(httpx.TransportError):
        httpx.get(client.url + "/health", trust_env=False)
    for connection in busy:
        connection.settimeout(5)
        received = b""
        while b"[DONE]" not in received:
            received += (chunk := connection.recv(1 << 16))
            assert chunk
    assert client.get("/health").status_code == 200  # they are idle now


def test_a_reader_that_stalls_is_given_up(monkeypatch):
    """The connection takes nothing any more: the stream ends and its slot is freed."""
    closed = []

    async def words():
        while True:
            yield b"data: word\n\n"

    async def stalled(event):
        if event["type"] == "http.response.body":
            await asyncio.sleep(60)

    async def silent():
        await asyncio.sleep(60)

    scope = {"type": "http", "method": "GET", "path": "/", "headers": []}
    monkeypatch.setattr("nutshell.serve.guard.SEND_SECONDS", 0.1)
    guard = Guard(EventStream(words(), lambda: closed.append(True)))
    body = iter([{"type": "http.request", "body": b"", "more_body": False}])

    async def receive():
        return next(body, None) or await silent()

    began = time.monotonic()
    thread = threading.Thread(target=lambda: asyncio.run(guard(scope, receive, stalled)))  # this one may have a loop already
    thread.start()
    thread.join(20)
    assert closed == [True]
    assert time.monotonic() - began < 5


def test_a_stalled_reader_over_a_real_socket_frees_its_answers(serving, scripted, eventually, unread, monkeypatch):
    """Its buffers fill, nothing is taken any more: the answers end long before they would have been made."""
    engine = scripted(SLOW, delay_seconds=0.02, max_rows=16)
    monkeypatch.setattr("nutshell.serve.guard.SEND_SECONDS", 0.5)
    client = serving(engine)
    client.server.servers[0].sockets[0].setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 4096)  # what it accepts has it too
    body = json.dumps({"messages": USER, "stream": True, "n": 16, "logprobs": True}).encode()
    unread(client, CHAT, body)
    eventually(lambda: client.service.worker.in_flight == 16)
    eventually(lambda: client.service.worker.in_flight == 0, seconds=5)
    eventually(lambda: not engine.busy)
    assert client.service.worker.steps < 300  # of 301 and more: nothing ended by itself


@pytest.mark.parametrize(("objects", "too_many"), [(4096, False), (4097, True)])
def test_objects_are_counted_outside_texts(objects, too_many):
    """Of a body of many pieces, whose edges fall into texts, behind backslashes and between them."""
    texts = [r'{"[\\' * (n % 23) for n in range(objects - 1)]
    raw = json.dumps([{"x": text} for text in texts]).encode()
    assert raw.count(b"{") > 10 * objects
    assert has_too_many_objects(raw) == too_many


HOSTILE_BODIES = {
    "deep": b'{"messages":' + b"[" * 1_000_000,
    "many parts": b'{"messages": [{"role": "user", "content": [%s]}]}' % b",".join([b'{"type":"text","text":""}'] * 60_000),
    "many messages": b'{"messages": [%s]}' % b",".join([b'{"role":"user","content":"a"}'] * 4090),
    "one long text": b'{"messages": [{"role": "user", "content": "%s"}]}' % (b"ab " * 600_000),
    "many fields": b'{"messages": [{"role": "user", "content": "a"}], %s}' % b",".join(b'"f%d":1' % n for n in range(90_000)),
    "a wide schema": b'{"messages": [{"role": "user", "content": "a"}], "response_format": {"type": "json_schema", '
    b'"json_schema": {"schema": {"type": "object", "properties": {%s}}}}}' % b",".join(b'"f%d":{}' % n for n in range(3000)),
}


@pytest.mark.slow
@pytest.mark.parametrize("kind", HOSTILE_BODIES)
def test_f22_health_is_quick_at_its_worst_under_hostile_bodies(serving, engine, kind):
    """F22: such bodies held the event loop for 440 ms each. Beside them stand 20 connections whose headers never end. Of eight
    rounds the best counts: a loaded machine delays some of them, a blocked loop all."""
    client = serving(engine)
    port, rounds = int(client.url.rsplit(":", 1)[1]), []

    def post():
        response = httpx.post(client.url + CHAT, content=HOSTILE_BODIES[kind], headers=JSON, timeout=20, trust_env=False)
        assert response.status_code in (200, 400, 429)

    with contextlib.ExitStack() as stack:
        for _ in range(20):
            connection = stack.enter_context(socket.create_connection(("127.0.0.1", port)))
            connection.sendall(b"POST / HTTP/1.1\r\nHost:")
        for _ in range(8):
            with concurrent.futures.ThreadPoolExecutor(2) as pool:
                posts, times = [pool.submit(post) for _ in range(3)], []
                while not all(one.done() for one in posts):
                    began = time.monotonic()
                    assert client.get("/health").status_code == 200
                    times.append(time.monotonic() - began)
                    time.sleep(0.002)
                for one in posts:
                    one.result()
            rounds.append(max(times))
    assert min(rounds) < 0.1, rounds


def test_logs_hold_no_prompts_keys_or_line_breaks(serving, scripted, ask, caplog):
    caplog.set_level("DEBUG")
    engine = scripted("Yes.")
    client = serving(engine, api_key="s3cret-key")
    ask(client, "my private words")
    client.headers["Authorization"] = "Bearer s3cret-key"
    ask(client, "my private words")
    ask(client, "my private words", temperature=9)
    client.get("/a%0aFORGED%0d%0aline")
    engine.fail = RuntimeError("broken")
    ask(client, "my private words")
    ours = "".join(record.getMessage() for record in caplog.records if not record.name.startswith(("httpx", "httpcore")))
    assert "failed" in ours
    for secret in ("private words", "s3cret", "\nFORGED"):
        assert secret not in ours


def test_health_answers_while_the_server_is_busy(serving, scripted, ask):
    """Ten times as many requests as rows, each of them calling tools; health stays under 100 ms (median)."""
    client = serving(scripted("§9**9**2§ " * 20, max_rows=4), max_queue=40)
    threads = [threading.Thread(target=ask, args=(client,), kwargs={"max_tokens": 200}) for _ in range(40)]
    for thread in threads:
        thread.start()
    times = []
    for _ in range(20):
        began = time.monotonic()
        assert client.get("/health").status_code == 200
        times.append(time.monotonic() - began)
    for thread in threads:
        thread.join()
    assert sorted(times)[10] < 0.1


def test_api_key(serving, engine, ask):
    client = serving(engine, api_key="right")
    for path in ("/health", "/", "/web/app.js"):
        assert client.get(path).status_code == 200
    for headers in ({}, {"Authorization": "Bearer wrong"}, {"Authorization": "right"}, {"Authorization": "Bearer"}):
        for path in ("/v1/models", "/metrics", "/openapi.json", "/nothing"):
            error = error_of(client.get(path, headers=headers), 401)
            assert (error["type"], error["code"]) == ("authentication_error", "invalid_api_key")
        assert error_of(client.post(CHAT, content=b"x" * 100, headers=headers), 401)
    client.headers["Authorization"] = "Bearer right"
    assert client.get("/v1/models").status_code == 200
    assert ask(client, max_tokens=2).status_code == 200


def test_without_a_key_any_bearer_passes(serving, engine):
    client = serving(engine)
    for value in ("Bearer", "Bearer abc", "Basic abc"):
        assert client.get("/v1/models", headers={"Authorization": value}).status_code == 200


def test_no_cors_and_the_security_headers(serving, engine):
    client = serving(engine)
    for path in ("/", "/health", "/nothing"):
        response = client.get(path, headers={"Origin": "https://example.org"})
        assert not [name for name in response.headers if name.startswith("access-control")]
        assert "default-src 'none'" in response.headers["content-security-policy"]
        assert response.headers["x-content-type-options"] == "nosniff"
    asked = client.options(CHAT, headers={"Origin": "https://example.org", "Access-Control-Request-Method": "POST"})
    assert asked.status_code == 405


def test_foreign_host_names_are_refused(serving, engine):
    """A web site that points its own name at 127.0.0.1 (DNS rebinding) gets nothing."""
    client = serving(engine, allowed_hosts=["localhost", "127.0.0.1", "[::1]"])
    assert client.get("/health").status_code == 200
    for host, status in (("localhost:80", 200), ("[::1]:80", 200), ("evil.example", 400), ("localhost.evil.org", 400)):
        assert client.get("/health", headers={"Host": host}).status_code == status


def test_engine_failure_is_an_error_and_the_server_goes_on(serving, scripted, ask, stream):
    engine = scripted("Yes.")
    client = serving(engine)
    engine.fail = RuntimeError("a kernel broke")
    error = error_of(ask(client), 500)
    assert "kernel" not in error["message"]
    events = stream(client)
    assert events[-1]["error"]["type"] == "server_error"
    engine.fail = None
    assert ask(client).json()["choices"][0]["message"]["content"] == "Yes."
    assert client.service.worker.in_flight == 0


def test_loading_is_503_everywhere_but_the_page(serving, engine, ask, tok):
    client = serving(None)
    health = client.get("/health")
    assert (health.status_code, health.json()) == (503, {"status": "loading"})
    response = ask(client)
    error_of(response, 503)
    assert response.headers["Retry-After"]
    assert client.get("/").status_code == 200
    client.service.models.open(engine)
    assert client.get("/health").json() == {"status": "ok"}
    assert ask(client, max_tokens=2).status_code == 200


def test_shutdown_finishes_running_answers_and_takes_no_new_ones(serving, scripted, ask, eventually):
    client = serving(scripted("The capital of France is Paris. " * 3, delay_seconds=0.02))
    answers = []
    thread = threading.Thread(target=lambda: answers.append(ask(client)))
    thread.start()
    eventually(lambda: client.service.worker.steps > 2)
    client.server.should_exit = True
    eventually(lambda: client.service.draining)
    assert client.get("/health").json() == {"status": "shutting down"}
    assert client.get("/health").status_code == 503
    error_of(ask(client), 503)
    thread.join(10)
    assert answers[0].json()["choices"][0]["message"]["content"] == "The capital of France is Paris. " * 3


def test_shutdown_gives_up_after_its_deadline(serving, scripted, ask, eventually):
    client = serving(scripted(SLOW, delay_seconds=0.05), drain_seconds=0.3)
    answers = []
    thread = threading.Thread(target=lambda: answers.append(ask(client)))
    thread.start()
    eventually(lambda: client.service.worker.steps > 2)
    began = time.monotonic()
    client.server.should_exit = True
    thread.join(10)
    assert time.monotonic() - began < 3
    error_of(answers[0], 503)


def test_serve_refuses_a_public_bind_without_a_key():
    for host in ("0.0.0.0", "::", "192.168.1.5", "example.org"):
        with pytest.raises(ValueError, match="no API key"):
            serve("nothing", load, host=host)
    with pytest.raises(ValueError, match="key is empty"):
        serve("nothing", load, api_key=" ")
    with pytest.raises(ValueError, match="port is 70000"):
        serve("nothing", load, port=70000)
    assert all(map(is_loopback, ("localhost", "127.0.0.1", "127.3.2.1", "::1")))


@pytest.mark.parametrize("taken", ["127.0.0.1", "::1"])
@pytest.mark.parametrize("host", ["127.0.0.1", "localhost"])
def test_f30_serve_says_when_the_port_is_taken(host, taken):
    """F30: a port that another server had on ::1 alone was passed over, and browsers reached that one at localhost."""
    try:
        other = socket.create_server((taken, 0), family=socket.AF_INET6 if ":" in taken else socket.AF_INET)
    except OSError:
        pytest.skip("needs IPv6")
    with other, pytest.raises(OSError, match=rf"cannot listen on \[?{taken}\]?:\d+ \(Address already in use"):
        serve("nothing", load, host=host, port=other.getsockname()[1])


def test_every_address_is_of_both_families():
    if not socket.has_dualstack_ipv6():
        pytest.skip("needs IPv6 beside IPv4")
    (listener,) = listen("::", 0)
    with listener:
        for host in ("127.0.0.1", "::1"):
            socket.create_connection((host, listener.getsockname()[1]), timeout=5).close()


def test_serve_raises_what_loading_raised(tmp_path):
    with pytest.raises(FileNotFoundError, match="does not exist"):
        serve(tmp_path / "nothing", load, port=0)


@pytest.mark.parametrize("kind", ["text/plain; json", "text/plain;charset=json", "application/x-www-form-urlencoded; a=json"])
def test_a_foreign_page_needs_leave_to_post(serving, engine, kind):
    """A sibling of F30: browsers send these types to any site without asking, whatever stands behind the semicolon."""
    body = b'{"messages": [{"role": "user", "content": "Hi"}], "max_tokens": 1}'
    client = serving(engine)
    response = client.post("/v1/chat/completions", content=body, headers={"Content-Type": kind})
    assert (response.status_code, response.json()["error"]["code"]) == (400, "wrong_content_type")
    for kind in ("application/json; charset=utf-8", "APPLICATION/JSON", "application/vnd.api+json"):
        assert client.post("/v1/chat/completions", content=body, headers={"Content-Type": kind}).status_code == 200


def test_what_is_no_http_has_the_shape_of_all_errors(serving, engine):
    client = serving(engine)
    for sent in (b"\x16\x03\x01 hello\r\n\r\n", b"GET /health HTTP/1.1\r\nHost: a\r\nHost: b\r\n\r\n"):
        with socket.create_connection(("127.0.0.1", int(client.url.rsplit(":", 1)[1]))) as connection:
            connection.sendall(sent)
            answer = b"".join(iter(lambda: connection.recv(4096), b""))  # until it is closed
        assert answer.startswith(b"HTTP/1.1 400 ")
        assert json.loads(answer.partition(b"\r\n\r\n")[2])["error"]["code"] == "invalid_http"


def test_a_wrong_query_has_the_shape_of_all_errors(serving, engine):
    client = serving(engine)
    for path, param in (("/runs/metrics", "run"), ("/runs/report", "run"), ("/runs/metrics?run=a&offset=x", "offset")):
        response = client.get(path)
        assert (response.status_code, response.json()["error"]["param"]) == (400, param)
