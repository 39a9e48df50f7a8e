"""Python as the tool of chat and server: what clients see, and what they see where the sandbox breaks."""

import io
import time
from concurrent.futures import Future, ThreadPoolExecutor

import pytest

from nutshell.infer.sandbox import Sandbox, SandboxError
from nutshell.infer.tools import PythonTool
from nutshell.serve.terminal import chat


@pytest.fixture
def python():
    try:
        return PythonTool(Sandbox.open())
    except SandboxError as error:
        pytest.skip(f"no sandbox here: {error}")


def broken(code):
    future: Future[str] = Future()
    future.set_exception(SandboxError("the sandbox did not start"))
    return future


def test_a_program_and_its_output_are_parts_of_the_answer(scripted, serving, ask, stream, python):
    engine = scripted("It is §sum(n * n for n in range(4))§ in all.")
    engine.tool = python
    client = serving(engine)
    parts = ask(client).json()["choices"][0]["message"]["nutshell"]["parts"]
    assert parts == [
        {"type": "text", "text": "It is "},
        {"type": "python", "text": "sum(n * n for n in range(4))"},
        {"type": "python_output", "text": "14"},
        {"type": "text", "text": " in all."},
    ]
    assert stream(client)[-1] == "[DONE]"


def test_the_terminal_shows_it(scripted, python):
    engine = scripted("It is §2 ** 70§.")
    engine.tool = python
    out = io.StringIO()
    chat(engine, stdin=io.StringIO("How much?\n"), stdout=out)
    assert out.getvalue().strip() == "It is ."


def test_other_clients_do_not_wait_for_a_slow_program(scripted, serving, ask, python):
    engine = scripted(lambda question: "§import time; time.sleep(2)§Done." if "slow" in question else "At once.")
    engine.tool = python
    client = serving(engine)
    with ThreadPoolExecutor(1) as thread:
        slow = thread.submit(ask, client, "slow")
        time.sleep(0.3)
        start = time.monotonic()
        assert ask(client, "quick").json()["choices"][0]["message"]["content"] == "At once."
        assert time.monotonic() - start < 1.7
        assert not slow.done()
        assert slow.result().json()["choices"][0]["message"]["content"] == "Done."


def test_a_broken_sandbox_is_an_error_of_the_server(scripted, serving, ask, stream):
    engine = scripted(lambda question: "§1§" if "sum" in question else "Fine.")
    engine.tool = broken
    client = serving(engine)
    assert ask(client, "sum").status_code == 500
    assert "error" in stream(client, "sum")[-2] or "error" in stream(client, "sum")[-1]
    assert ask(client, "other").json()["choices"][0]["message"]["content"] == "Fine."
