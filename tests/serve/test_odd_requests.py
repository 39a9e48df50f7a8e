"""What a careless client, a balancer or an attacker may send that is no mistake of ours: over real sockets, byte for byte."""

import gzip
import json
import socket

import pytest

CHAT = "/v1/chat/completions"
USER = [{"role": "user", "content": "Hello"}]
BODY = json.dumps({"messages": USER, "max_tokens": 2}).encode()


@pytest.fixture
def raw(serving, scripted):
    """raw(head, body=b"") sends this on a connection of its own and returns status, headers and body of the last answer."""
    client = serving(scripted("It is Paris."), allowed_hosts=["localhost"])

    def send(head, body=b"", host="Host: localhost\r\n"):
        with socket.create_connection(("127.0.0.1", int(client.url.rsplit(":", 1)[1]))) as connection:
            connection.settimeout(10)
            connection.sendall(f"{head}\r\n{host}Connection: close\r\n".encode("latin-1") + b"\r\n" + body)
            received = b""
            try:
                while chunk := connection.recv(1 << 16):
                    received += chunk
            except ConnectionResetError:  # it closed with something unread
                pass
        *_, last = received.split(b"HTTP/1.1 ")
        head, _, body = last.partition(b"\r\n\r\n")
        return int(head.split()[0]), head.decode("latin-1").lower(), body

    send.client = client
    return send


def posted(*headers, body=BODY, path=CHAT, version="1.1"):
    own = ["Content-Type: application/json", f"Content-Length: {len(body)}", *headers]
    return "\r\n".join([f"POST {path} HTTP/{version}", *own]), body


@pytest.mark.parametrize("path", ["//v1/chat/completions", "/v1/chat/completions/", "/v1//chat/completions//"])
def test_carelessly_joined_addresses_are_understood(raw, path):
    assert raw(*posted(path=path))[0] == 200
    assert raw("GET //v1/models/ HTTP/1.1")[0] == 200


def test_an_address_without_v1_is_told_what_it_lacks(raw):
    status, _, body = raw(*posted(path="/chat/completions"))
    assert (status, b"below /v1" in body) == (404, True)
    assert b"below /v1" not in raw("GET /nothing HTTP/1.1")[2]


def test_a_key_is_asked_for_however_the_path_is_spelled(serving, engine):
    client = serving(engine, api_key="s3cret")
    for path in (
        "//v1/models",
        "/v1/models/",
        "/health/../v1/models",
        "/health//../metrics",
        "//metrics",
        "/%2fmetrics",
        "/./metrics",
    ):
        with socket.create_connection(("127.0.0.1", int(client.url.rsplit(":", 1)[1]))) as connection:
            connection.sendall(f"GET {path} HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n".encode())
            assert connection.recv(100).split()[1] in (b"401", b"404"), path


def test_balancers_that_name_no_host_are_answered_and_foreign_names_are_not(raw):
    assert raw("GET /health HTTP/1.0", host="")[0] == 200
    assert raw("GET /health HTTP/1.0", host="Host: evil.example\r\n")[0] == 400
    assert raw("GET /health HTTP/1.1", host="")[0] == 400  # no HTTP
    for name in ("LOCALHOST", "localhost.", "localhost.:80", "[::1]:80"):
        assert raw("GET /health HTTP/1.1", host=f"Host: {name}\r\n")[0] == 200


def test_packed_bodies_are_refused_by_name(raw):
    status, _, body = raw(*posted("Content-Encoding: gzip", body=gzip.compress(BODY)))
    assert (status, json.loads(body)["error"]["code"]) == (415, "unsupported_encoding")
    assert raw(*posted("Content-Encoding: identity"))[0] == 200


def test_a_refused_body_is_answered_and_not_cut_off(raw, monkeypatch):
    """A client that sends 30 MB sees the 413 or 400, not a connection that is reset under its hands."""
    status, _, answer = raw(*posted(body=b"x" * 30_000_000))
    assert (status, json.loads(answer)["error"]["code"]) == (413, "request_too_large")
    status, _, answer = raw(*posted(body=b"x" * 30_000_000), host="Host: evil.example\r\n")
    assert (status, json.loads(answer)["error"]["code"]) == (400, "unknown_host")
    head, _ = posted("Expect: 100-continue", body=b"x" * 3_000_000)
    assert raw(head)[0] == 413  # before it is sent
    monkeypatch.setattr("nutshell.serve.guard.LINGER_SECONDS", 0.1)
    assert raw(head.replace("Expect: 100-continue", "X-None: 1"), b"x" * 1000)[0] == 413  # says more than it sends


@pytest.mark.parametrize(
    ("head", "body", "status"),
    [
        (*posted("Expect: 100-continue"), 200),
        (*posted(version="1.0"), 200),
        ("\r\n".join([f"POST {CHAT} HTTP/1.1", "Content-Type: application/json", "Transfer-Encoding: chunked"]),
         b"%x;a=b\r\n%s\r\n0\r\nX-Trailer: 1\r\n\r\n" % (len(BODY), BODY), 200),
        ("\r\n".join([f"POST {CHAT} HTTP/1.1", "Content-Type: application/json", "Transfer-Encoding: chunked"]),
         b"zz\r\n%s\r\n0\r\n\r\n" % BODY, 400),
        (*posted("Content-Length: 4"), 400),
        (*posted("Transfer-Encoding: gzip, chunked"), 400),
        ("GET /health HTTP/1.1\r\nX-Long: " + "a" * 1_000_000, b"", 400),
        ("GET /health HTTP/1.1" + "".join(f"\r\nX-{number}: 1" for number in range(1000)), b"", 200),
        ("GET /" + "a" * 1_000_000 + " HTTP/1.1", b"", 400),
        ("GET /health HTTP/1.1\r\nUpgrade: websocket\r\nSec-WebSocket-Key: x", b"", 200),
        ("GET /health HTTP/1.1\r\nX-Odd: a\x00b", b"", 400),
        ("GET /health HTTP/1.1\r\nHost: evil.example", b"", 400),
        ("FOO /health HTTP/1.1", b"", 405),
        ("CONNECT example.org:443 HTTP/1.1", b"", 404),
        ("GET /v1/models/%ff%2e%2e/etc/passwd HTTP/1.1", b"", 404),
        ("GET /web/%2e%2e/app.py HTTP/1.1", b"", 404),
    ],
    ids=lambda value: str(value)[:40] if isinstance(value, str) else None,
)  # fmt: skip
def test_odd_http_gets_an_answer_in_the_usual_shape(raw, head, body, status):
    found, _, answer = raw(head, body)
    assert found == status
    if status >= 400:
        assert json.loads(answer)["error"]["message"]
    assert raw.client.get("/health").status_code == 200


def test_pipelined_requests_are_answered_in_their_order(serving, engine):
    client = serving(engine)
    with socket.create_connection(("127.0.0.1", int(client.url.rsplit(":", 1)[1]))) as connection:
        connection.settimeout(10)
        first = "GET /health HTTP/1.1\r\nHost: x\r\n\r\nGET /v1/models HTTP/1.1\r\nHost: x\r\n\r\n"
        connection.sendall(f"{first}GET /nothing HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n".encode())
        received = b""
        while chunk := connection.recv(1 << 16):
            received += chunk
    places = [received.index(part) for part in (b'"status":"ok"', b'"object":"list"', b'"not_found"')]
    assert places == sorted(places)


@pytest.mark.parametrize(
    ("fields", "words"),
    [
        ({"messages": [{"role": "user", "content": ["a", "b"]}]}, "an object such as {'type': 'text'"),
        ({"messages": [{"role": "user", "content": [{"text": "a"}]}]}, "an object such as {'type': 'text'"),
        ({"messages": [{"role": "user", "content": [{"type": "image_url", "image_url": {"url": "x"}}]}]}, "reads text only"),
        ({"messages": [{"role": "user", "content": [{"type": "input_audio", "input_audio": {}}]}]}, "reads text only"),
    ],
)
def test_parts_that_are_no_text_are_named(serving, engine, fields, words):
    error = serving(engine).post(CHAT, json={"messages": USER, **fields}).json()["error"]
    assert (error["param"], words in error["message"]) == ("messages[0].content", True)


def test_tools_that_must_not_be_called_are_passed_over(serving, scripted, ask):
    client = serving(scripted("Yes."))
    tools = [{"type": "function", "function": {"name": "f"}}]
    assert ask(client, tools=tools, tool_choice="none").json()["choices"][0]["message"]["content"] == "Yes."
    assert ask(client, tools=tools, tool_choice="auto").status_code == 400


def test_fields_of_other_servers_change_nothing(serving, scripted, ask):
    more = {
        "user": "u", "metadata": {"a": "b"}, "store": True, "parallel_tool_calls": False, "service_tier": "auto",
        "modalities": ["text"], "reasoning_effort": "low", "prediction": None, "verbosity": "low", "stop_token_ids": [5],
        "stop": [""], "max_tokens": 10**30, "stream_options": {"include_usage": True, "include_obfuscation": False},
        "n": None, "top_k": None,
    }  # fmt: skip
    answer = ask(serving(scripted("Yes.")), messages=[{"role": "user", "content": "Hi", "name": "Bob"}], **more)
    assert answer.json()["choices"][0]["message"]["content"] == "Yes."


def test_a_completion_without_a_prompt_says_so(serving, engine):
    client = serving(engine)
    for body in ({}, {"messages": USER}):
        answer = client.post("/v1/completions", json=body)
        assert (answer.status_code, answer.json()["error"]["param"]) == (400, "prompt")
    assert len(client.post("/v1/completions", json={"prompt": None, "max_tokens": 1}).json()["choices"]) == 1


@pytest.mark.parametrize("streamed", [False, True])
def test_a_schema_that_grows_too_complex_is_its_senders_fault(serving, make_model, tok, ask, stream, streamed):
    """The library's bounds end the reply; /health goes on saying that the model is well."""
    pytest.importorskip("llguidance", reason="needs llguidance")
    from nutshell.infer.engine import Engine
    from nutshell.infer.grammar import GrammarError, GrammarState

    client = serving(Engine(make_model(), tok, max_rows=4))
    wanted = {"type": "json_schema", "json_schema": {"name": "x", "schema": {"type": "object"}}}
    taken = GrammarState.rule_out

    def rule_out(self, logits):
        self.count = getattr(self, "count", 0) + 1
        if self.count > 1:
            raise GrammarError("the schema is too complex to go on with this reply: too many states")
        taken(self, logits)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(GrammarState, "rule_out", rule_out)
        for _ in range(4):
            if streamed:
                error = stream(client, response_format=wanted)[-1]["error"]
            else:
                answer = ask(client, response_format=wanted)
                assert answer.status_code == 400, answer.text
                error = answer.json()["error"]
            assert (error["param"], "too complex" in error["message"]) == ("response_format", True)
    assert client.get("/health").json() == {"status": "ok"}
