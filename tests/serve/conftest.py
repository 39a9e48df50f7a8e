"""A tiny real engine, one that says what a test wants, and a real server on a free port of this machine."""

import contextlib
import json
import socket
import threading
import time

import httpx
import pytest
import torch

from nutshell.checkpoint import save_model_folder
from nutshell.infer.engine import Engine
from nutshell.model.config import ModelConfig
from nutshell.model.gpt import GPT
from nutshell.serve.app import create_app
from nutshell.serve.models import Models
from nutshell.serve.server import Server
from nutshell.tokenizer import Tokenizer

TEXTS = [
    "The capital of France is Paris. It lies on the river Seine, and many people live there.",
    "What is 47 plus 85? Let me work that out: 47+85 is 132. How many letters are in the word cheese?",
    "Once upon a time there was a small nut in a shell, naïve café 日本語 and ☃ too.",
] * 3


@pytest.fixture(scope="session")
def tok():
    return Tokenizer.train(TEXTS, vocab_size=400)


@pytest.fixture(scope="session")
def make_model(tok):
    def make(context=128):
        config = ModelConfig(
            vocab_size=tok.vocab_size,
            depth=2,
            width=64,
            heads=4,
            kv_heads=2,
            head_dim=16,
            context=context,
            window_pattern="SL",
            bos_id=tok.bos_id,
        )
        return GPT(config).eval()

    return make


@pytest.fixture
def engine(make_model, tok):
    return Engine(make_model(), tok, max_rows=4)


@pytest.fixture(scope="module")
def run(tmp_path_factory, make_model, tok):
    """A run folder with three stages and five steps of random weights."""
    folder = tmp_path_factory.mktemp("runs") / "run"
    folder.mkdir()
    torch.manual_seed(0)
    (folder / "plan.json").write_text("{}")
    for stage, steps in {"pretrain": [10, 20], "midtrain": [5], "sft": [3, 7]}.items():
        for step in steps:
            meta = {"stage": stage, "step": step}
            model = make_model(64)
            for weights in model.parameters():  # each step says something else
                torch.nn.init.normal_(weights, std=0.1)
            save_model_folder(folder / stage / f"step-{step:06d}", model, tok, meta=meta)
    return folder


class ScriptedEngine(Engine):
    """The real one, but each reply is what `reply(question)` says: text, with §expression§ for a tool call."""

    reply = None
    delay_seconds = 0.0
    fail = None

    def _choose(self, requests, logits, best):
        if self.fail is not None:
            raise self.fail
        time.sleep(self.delay_seconds)
        for request in requests:
            if not hasattr(request, "script"):
                request.script = iter(self.tokens(request))
        return [delta for request in requests for delta in request.accept(next(request.script), -0.5, [])]

    def tokens(self, request):
        special = self.tok.special_id
        starts = [at for at, token in enumerate(request.prompt) if token == special("<|user_start|>")]
        question = self.tok.decode(request.prompt[starts[-1] + 1 : -2])
        tokens = []
        for number, text in enumerate(self.reply(question).split("§")):
            call = [special("<|python_start|>"), *self.tok.encode(text), special("<|python_end|>")]
            tokens += call if number % 2 else self.tok.encode(text)
        return [*tokens, special("<|assistant_end|>")]


@pytest.fixture
def scripted(make_model, tok):
    """scripted(reply, delay_seconds=0, context=..., max_rows=4) -> a ScriptedEngine."""

    def make(reply, delay_seconds=0.0, context=512, max_rows=4):
        engine = ScriptedEngine(make_model(context), tok, max_rows=max_rows)
        engine.delay_seconds = delay_seconds
        engine.reply = reply if callable(reply) else lambda question: reply
        return engine

    return make


ENDING: list[threading.Thread] = []
"""Servers that were told to end and are waited for when all tests are done: each takes a tenth of a second to notice."""


@pytest.fixture(scope="session", autouse=True)
def _every_server_ends():
    yield
    for thread in ENDING:
        thread.join(20)
    assert not any(thread.is_alive() for thread in ENDING)


@contextlib.contextmanager
def running(app, drain_seconds=5.0, open_engine=None):
    listener = socket.create_server(("127.0.0.1", 0))
    server = Server(app, open_engine=open_engine, drain_seconds=drain_seconds)
    thread = threading.Thread(target=server.run, kwargs={"sockets": [listener]})
    thread.start()
    url = f"http://127.0.0.1:{listener.getsockname()[1]}"
    try:
        deadline = time.monotonic() + 20
        while not server.started and time.monotonic() < deadline:
            time.sleep(0.01)
        with httpx.Client(base_url=url, timeout=20, trust_env=False) as client:
            client.server, client.service, client.url = server, app.state.service, url
            yield client
    finally:
        server.should_exit = True  # closes the listener too
        ENDING.append(thread)


@pytest.fixture
def serving():
    """serving(engine, wrap=..., **options of create_app) -> an httpx client of a running server, with .service, .server."""
    with contextlib.ExitStack() as stack:

        def start(engine, name="tiny", drain_seconds=5.0, wrap=lambda app: app, open_engine=None, **options):
            models = options.pop("models", None) or Models(name, max_queue=options.pop("max_queue", 64))
            if engine is not None:
                models.open(engine)
            app = create_app(models, **options)
            return stack.enter_context(running(wrap(app), drain_seconds, open_engine))

        yield start


@pytest.fixture
def ask():
    """ask(client, text, **fields) posts a chat completion."""

    def post(client, text="What is it?", **fields):
        messages = fields.pop("messages", None) or [{"role": "user", "content": text}]
        return client.post("/v1/chat/completions", json={"messages": messages, **fields})

    return post


@pytest.fixture
def stream():
    """stream(client, text, **fields) -> the parsed events of a streamed answer, "[DONE]" included."""

    def read(client, text="What is it?", **fields):
        messages = fields.pop("messages", None) or [{"role": "user", "content": text}]
        body = {"messages": messages, "stream": True, **fields}
        with client.stream("POST", "/v1/chat/completions", json=body) as response:
            assert response.status_code == 200, response.read()
            assert response.headers["content-type"].startswith("text/event-stream")
            data = [line[6:] for line in response.iter_lines() if line.startswith("data: ")]
        return [one if one == "[DONE]" else json.loads(one) for one in data]

    return read


@pytest.fixture
def unread():
    """unread(client, path, body) posts on a socket with a small buffer and returns it: nobody reads the answer yet."""
    with contextlib.ExitStack() as sockets:

        def post(client, path, body):
            connection = sockets.enter_context(socket.socket())
            connection.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
            connection.connect(("127.0.0.1", int(client.url.rsplit(":", 1)[1])))
            head = f"POST {path} HTTP/1.1\r\nHost: x\r\nContent-Type: application/json\r\nContent-Length: {len(body)}\r\n\r\n"
            connection.sendall(head.encode() + body)
            return connection

        yield post


@pytest.fixture
def eventually():
    """eventually(condition, seconds=2) waits until it holds."""

    def wait(condition, seconds=2.0):
        deadline = time.monotonic() + seconds
        while not condition():
            assert time.monotonic() < deadline, "it did not happen in time"
            time.sleep(0.01)

    return wait
