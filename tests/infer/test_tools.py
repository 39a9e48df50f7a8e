"""Tools: what a model's text becomes, and how the engine goes on while a slow one works."""

import threading
import time
from argparse import Namespace
from concurrent.futures import CancelledError, Future

import pytest

from nutshell.cli.model import _open_tool as open_tool_of
from nutshell.infer.calculator import calculate
from nutshell.infer.engine import Engine
from nutshell.infer.request import Request, Vocabulary
from nutshell.infer.sampling import Sampling
from nutshell.infer.sandbox import Result, Sandbox, SandboxError
from nutshell.infer.tools import MAX_CHARACTERS, PythonTool, open_tool


@pytest.fixture(scope="module")
def python():
    try:
        return PythonTool(Sandbox.open())
    except SandboxError as error:
        pytest.skip(f"no sandbox here: {error}")


@pytest.mark.parametrize(
    ("code", "output"),
    [
        ("12 * 3", "36"),
        ("x = 5\nx ** 2", "25"),
        ("def f(n):\n    return n + 1\n\nf(1)", "2"),
        ("print('a')\n'b'", "a\n'b'"),
        ("None", ""),
        ("x = 1", ""),
        ("'strawberry'.count('r')", "3"),
        ("1 / 0", "ZeroDivisionError: division by zero"),
        ("print(1)\nundefined", "1\nNameError: name 'undefined' is not defined"),
        ("def f(:", "SyntaxError: invalid syntax"),
        ("import os; os._exit(3)", "Error: it ended with error (3)"),
        ("open('/etc/passwd')", "FileNotFoundError: [Errno 2] No such file or directory: '/etc/passwd'"),
        ("print('ü' * 5000)", "ü" * (MAX_CHARACTERS - 3) + "..."),
        ("", ""),
    ],
)
def test_python_answers_like_its_own_prompt(python, code, output):
    assert python(code).result(20) == output


def test_a_program_that_does_not_end_says_so(python, monkeypatch):
    monkeypatch.setattr("nutshell.infer.tools.SECONDS", 0.2)
    assert python.run("print('so far', flush=True)\nwhile True: pass") == "so far\nTimeoutError: it ran longer than 0.2 seconds"


def test_tools_by_name():
    assert open_tool("calculator") is calculate
    assert open_tool("none") is None
    with pytest.raises(ValueError, match="Accepted: calculator, python, none"):
        open_tool("shell")
    with pytest.raises(ValueError, match="no sandbox level"):
        open_tool("python", level="jail")


def test_a_weaker_sandbox_is_for_python():
    with pytest.raises(ValueError, match="together with --tools python"):
        open_tool_of(Namespace(tools="calculator", unsafe_sandbox="limits"))


def request_of(tok, tool, limit=200, **options):
    return Request(Vocabulary.of(tok), [tok.bos_id], Sampling(), limit, tool=tool, **options)


def write(request, tok, text):
    words = request.vocabulary
    return [d for t in [words.python_start, *tok.encode(text), words.python_end] for d in request.accept(t)]


def test_a_slow_answer_is_forced_in_when_it_comes(tok):
    future: Future[str] = Future()
    asked = []
    request = request_of(tok, lambda code: asked.append(code) or future)
    write(request, tok, "2 + 2")
    assert asked == ["2 + 2"]
    assert request.pending == []
    assert request.resume() == []
    assert request.finish is None
    future.set_result("four")
    deltas = request.resume()
    words = request.vocabulary
    forced = [words.output_start, *tok.encode("four"), words.output_end]
    assert request.pending[-len(forced) - 1 :] == [words.python_end, *forced]
    assert request.ids[-len(forced) :] == forced
    assert request.mask[-len(forced) :] == [0] * len(forced)
    assert "".join(d.text for d in deltas) == "four"
    assert {d.kind for d in deltas} == {"output"}
    assert request.resume() == []


@pytest.mark.parametrize("streaming", [True, False])
def test_an_answer_that_does_not_fit_ends_the_reply(tok, streaming):
    future: Future[str] = Future()
    request = request_of(tok, lambda code: future, limit=12, streaming=streaming)
    write(request, tok, "1")
    future.set_result("x" * 500)
    deltas = request.resume()
    assert request.finish == "length"
    assert request.pending == []
    assert 0 not in request.mask
    assert [d.finish for d in deltas] == (["length"] if streaming else [])


def test_a_broken_sandbox_ends_its_reply_with_the_error(tok):
    future: Future[str] = Future()
    request = request_of(tok, lambda code: future)
    write(request, tok, "1")
    future.set_exception(SandboxError("gone"))
    assert request.resume()[-1].finish == "cancelled"
    assert isinstance(request.error, SandboxError)


class Writer:
    """Makes the engine's model say given tokens: the nth reply says scripts[n], then ends."""

    def __init__(self, monkeypatch, tok, scripts):
        self.scripts = {n: list(script) for n, script in enumerate(scripts)}
        accept = Request.accept

        def say(request, token_id, *rest):
            script = self.scripts[request.number]
            return accept(request, script.pop(0) if script else tok.special_tokens["<|assistant_end|>"], *rest)

        monkeypatch.setattr(Request, "accept", say)


def call_of(tok, code):
    return [tok.special_tokens["<|python_start|>"], *tok.encode(code), tok.special_tokens["<|python_end|>"]]


def test_other_replies_go_on_while_a_tool_works(model, tok, monkeypatch):
    """Row 0 waits for its tool; row 1 meanwhile ends. Then row 0 ends too, and its cache row saw every token once."""
    release = threading.Event()

    def slow(code):
        future: Future[str] = Future()
        threading.Thread(target=lambda: (release.wait(20), future.set_result(code.upper()))).start()
        return future

    Writer(monkeypatch, tok, [call_of(tok, "ab"), tok.encode("hello there")])
    engine = Engine(model, tok, max_rows=2)
    engine.tool = slow
    waiting, other = (engine.submit([tok.bos_id]) for _ in range(2))
    while other.finish is None:
        engine.step()
    assert other.finish == "stop"
    assert waiting.finish is None
    assert engine.busy
    start = time.process_time()
    for _ in range(5):
        engine.step()
    assert time.process_time() - start < 0.09  # 5 steps of 20 ms that wait, and do not spin
    release.set()
    while waiting.finish is None:
        engine.step()
    words = waiting.vocabulary
    assert waiting.ids == [
        *call_of(tok, "ab"), words.output_start, *tok.encode("AB"), words.output_end, tok.special_tokens["<|assistant_end|>"],
    ]  # fmt: skip


def test_a_reply_that_waits_can_be_cancelled(model, tok, monkeypatch):
    Writer(monkeypatch, tok, [call_of(tok, "ab")])
    engine = Engine(model, tok, max_rows=1)
    answer: Future[str] = Future()
    engine.tool = lambda code: answer
    request = engine.submit([tok.bos_id])
    while request.answer is None:
        engine.step()
    engine.cancel(request)
    engine.step()
    assert request.finish == "cancelled"
    assert answer.cancelled()  # a program that waits for a thread never runs
    assert not engine.busy


def test_a_slow_tool_may_answer_nothing_too(model, tok, monkeypatch):
    Writer(monkeypatch, tok, [[*call_of(tok, "ab"), *tok.encode("cd")]])
    engine = Engine(model, tok)
    engine.tool = lambda code: done(None)
    [[reply]] = engine.sample([[tok.bos_id]], 1)
    assert (reply.text, reply.finish, 0 in reply.mask) == ("cd", "stop", False)


def test_the_engine_runs_python(model, tok, monkeypatch, python):
    Writer(monkeypatch, tok, [call_of(tok, "sum(range(101))")])
    engine = Engine(model, tok, max_rows=1)
    engine.tool = python
    deltas = list(engine.chat([{"role": "user", "content": "Add 1 to 100."}], max_tokens=60))
    assert "".join(d.text for d in deltas if d.kind == "output") == "5050"


def test_the_engine_names_a_broken_sandbox(model, tok, monkeypatch):
    def broken(code):
        future: Future[str] = Future()
        future.set_exception(SandboxError("the sandbox did not start"))
        return future

    Writer(monkeypatch, tok, [call_of(tok, "1"), call_of(tok, "1")])
    engine = Engine(model, tok, max_rows=1)
    engine.tool = broken
    with pytest.raises(RuntimeError, match="the sandbox did not start"):
        list(engine.chat([{"role": "user", "content": "Hi"}], max_tokens=30))
    with pytest.raises(RuntimeError, match="the sandbox did not start"):
        engine.sample([[tok.bos_id]], 1)


def done(answer) -> "Future[object]":
    future: Future[object] = Future()
    future.set_result(answer)
    return future


def cancelled() -> "Future[object]":
    future: Future[object] = Future()
    future.cancel()
    return future


@pytest.mark.parametrize(
    ("answer", "error"),
    [
        (lambda: 1 // 0, ZeroDivisionError),
        (lambda: 42, ValueError),
        (lambda: "\ud800", ValueError),
        (lambda: done(42), ValueError),
        (cancelled, CancelledError),
    ],
)
def test_a_tool_that_raises_or_answers_no_text_ends_its_reply_alone(model, tok, monkeypatch, answer, error):
    """A sibling of F27: it failed the step, and every other reply with it."""
    Writer(monkeypatch, tok, [call_of(tok, "1"), tok.encode("fine")])
    engine = Engine(model, tok, max_rows=2)
    engine.tool = lambda code: answer()
    first, second = (engine.submit([tok.bos_id]) for _ in range(2))
    deltas = []
    while engine.busy:
        deltas += engine.step()
    assert isinstance(first.error, error)
    assert (second.finish, "".join(delta.text for delta in deltas if delta.request is second)) == ("stop", "fine")


def test_without_a_tool_the_tokens_mean_nothing(model, tok, monkeypatch):
    Writer(monkeypatch, tok, [call_of(tok, "1 + 1")])
    engine = Engine(model, tok, max_rows=1)
    engine.tool = None
    reply = engine.sample([[tok.bos_id]], 1)[0][0]
    assert 0 not in reply.mask


def test_levels_are_recorded():
    assert Result("ok", 0, "", "", 0.1, "namespaces").level == "namespaces"
