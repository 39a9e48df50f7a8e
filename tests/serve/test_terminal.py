"""The chat loop: with a pipe, with a terminal (a pseudo-terminal), and Ctrl-C."""

import io
import json
import os
import select
import signal
import subprocess
import sys
import threading
import time

import pytest

from nutshell.serve.terminal import chat


def reply(question):
    if "sum" in question:
        return "That is §47+85§132."
    if "long" in question:
        return " ".join(f"word{number}" for number in range(200))
    return f"You said: {question}"


def run(engine, lines="", **options):
    out = io.StringIO()
    chat(engine, stdin=io.StringIO(lines), stdout=out, **options)
    return out.getvalue()


@pytest.fixture
def typed(monkeypatch):
    """typed(engine, lines): what a person at a keyboard sees."""

    class Keyboard(io.StringIO):
        def isatty(self):
            return True

    def run(engine, lines, **options):
        pending = iter(lines.splitlines())

        def read(prompt=""):
            try:
                return next(pending)
            except StopIteration:
                raise EOFError from None

        monkeypatch.setattr("builtins.input", read)
        out = io.StringIO()
        chat(engine, stdin=Keyboard(), stdout=out, **options)
        return out.getvalue().partition("commands.\n")[2]

    return run


def test_f41_in_a_pipe_every_line_is_a_message(scripted):
    """F41 (26): /etc/hosts was an unknown command, and /q ended the program."""
    out = run(scripted(reply), "/etc/hosts looks wrong\n/q\n/new\n")
    assert out.splitlines() == ["You said: /etc/hosts looks wrong", "You said: /q", "You said: /new"]


def test_f41_at_a_keyboard_only_commands_are_commands(scripted, typed):
    assert "You said: /etc/hosts looks wrong" in typed(scripted(reply), "/etc/hosts looks wrong\n/quit\nnot reached")


def test_f41_what_was_cut_is_said_also_in_a_pipe(engine, capsys):
    """F41 (22): a long system prompt was cut without a word."""
    run(engine, prompt="Hi", system="You are kind. " * 100, max_tokens=4)
    assert "longer than the context" in capsys.readouterr().err


def test_one_prompt_prints_one_answer(scripted):
    assert run(scripted(reply), prompt="Hello") == "You said: Hello\n"
    assert run(scripted(reply), "from a\npipe", prompt="-") == "You said: from a\npipe\n"
    assert run(scripted(reply), prompt="the sum") == "That is 132.\n"


def test_an_empty_prompt_is_an_error(scripted):
    with pytest.raises(ValueError, match="the prompt is empty"):
        run(scripted(reply), prompt="  ")
    with pytest.raises(ValueError, match="temperature is -1"):
        run(scripted(reply), prompt="Hello", temperature=-1)


def test_a_real_engine_answers(engine):
    text = run(engine, prompt="What is it?", max_tokens=8, temperature=0)
    assert text == run(engine, prompt="What is it?", max_tokens=8, temperature=0)
    assert text.endswith("\n")


def test_typed_lines_are_one_conversation(scripted, typed):
    engine = scripted(reply)
    conversations = []
    real = engine.chat
    engine.chat = lambda messages, **sampling: (conversations.append((messages, sampling)), real(messages, **sampling))[1]
    out = typed(engine, "one\n\nthe sum\n/retry\n/temp 0.2\n/temp nine\n/new\n/system Be brief.\ntwo\\\nthree")
    assert out.rstrip("\n").splitlines() == [
        "You said: one",
        "That is [47+85 = 132] 132.",
        "That is [47+85 = 132] 132.",
        "Temperature: 0.2",
        "'nine' is no temperature; it is a number between 0 and 2.",
        "A new conversation.",
        "A new conversation, with this system prompt.",
        "You said: Be brief.",
        "",
        "two",
        "three",
    ]
    messages, sampling = conversations[-1]
    assert messages == [{"role": "system", "content": "Be brief."}, {"role": "user", "content": "two\nthree"}]
    assert sampling["temperature"] == 0.2
    retried, _ = conversations[2]
    assert retried == conversations[1][0]
    assert [message["role"] for message in retried] == ["user", "assistant", "user"]


def test_commands_that_have_nothing_to_do(scripted, typed):
    out = typed(scripted(reply), "/retry\n/temp\n/system\n/system x\n/system none\n/help\n/quit\nnot reached\n")
    assert "nothing to answer again" in out
    assert "Temperature: 0.4" in out
    assert "System prompt: none" in out
    assert "No system prompt." in out
    assert "/retry" in out
    assert "not reached" not in out


def test_a_conversation_is_saved_and_loaded(scripted, typed, tmp_path):
    engine = scripted(reply)
    file = tmp_path / "chat.json"
    typed(engine, f"/system Be brief.\nthe sum\n/save {file}")
    seen = []
    real = engine.chat
    engine.chat = lambda messages, **sampling: (seen.append(messages), real(messages, **sampling))[1]
    out = typed(engine, f"/load {file}\n/regen\nand now")
    assert f"2 messages from {file}." in out
    kept = json.loads(file.read_text(encoding="utf-8"))["messages"]
    assert seen[0] == kept[:2] == [{"role": "system", "content": "Be brief."}, {"role": "user", "content": "the sum"}]
    assert seen[1] == [*kept, {"role": "user", "content": "and now"}]
    assert [part["type"] for part in kept[2]["content"]] == ["text", "python", "python_output", "text"]


@pytest.mark.parametrize("content", [None, b"{", b"\xff\xfe", b"[]", b'{"messages": [{"role": "king", "content": "x"}]}'])
def test_a_file_that_holds_no_conversation_changes_nothing(scripted, typed, tmp_path, content):
    file = tmp_path / "chat.json"
    if content is not None:
        file.write_bytes(content)
    out = typed(scripted(reply), f"one\n/load {file}\n/save\n/regen")
    assert out.count("You said: one") == 2
    assert "/save needs the name of a file" in out


def test_another_model_goes_on_with_the_conversation(scripted, typed):
    made = []

    def other():
        made.append(scripted("I am another."))
        return made[0]

    out = typed(scripted(reply), "one\n/model\n/model rl\n/model sft\n/regen\n", models={"demo/sft": other})
    assert "There are: demo/sft" in out
    assert "There is no model 'rl' here." in out
    assert out.rstrip().endswith("demo/sft answers from now on.\nI am another.")
    assert len(made) == 1


def test_history_keeps_tool_calls_as_parts(scripted):
    engine = scripted(reply)
    seen = []
    real = engine.chat
    engine.chat = lambda messages, **sampling: (seen.append(messages), real(messages, **sampling))[1]
    run(engine, "the sum\nthanks\n")
    assert seen[1][1]["content"] == [
        {"type": "text", "text": "That is "},
        {"type": "python", "text": "47+85"},
        {"type": "python_output", "text": "132"},
        {"type": "text", "text": "132."},
    ]


class Terminal(io.StringIO):
    def isatty(self):
        return True


def test_a_terminal_shows_tools_dimmed_and_no_control_characters(scripted, monkeypatch):
    monkeypatch.delenv("NO_COLOR", raising=False)
    out = Terminal()
    chat(scripted(lambda question: "A\x1b[31m§1+1§2"), prompt="x", stdout=out)
    text = out.getvalue()
    assert text.startswith("A[31m\x1b[2m[\x1b[0m")
    assert "\x1b[31m" not in text
    assert "\x1b[2m = \x1b[0m\x1b[2m2\x1b[0m\x1b[2m] \x1b[0m2\n" in text
    assert "tokens/s)" in text
    monkeypatch.setenv("NO_COLOR", "1")
    plain = Terminal()
    chat(scripted(lambda question: "A§1+1§2"), prompt="x", stdout=plain)
    assert plain.getvalue() == "A[1+1 = 2] 2\n"


def test_a_conversation_beyond_the_context_goes_on_and_says_so(scripted, monkeypatch):
    monkeypatch.setenv("NO_COLOR", "1")
    out = Terminal()
    chat(scripted(reply, context=64), stdin=io.StringIO("a question of some length\n" * 6), stdout=out)
    assert out.getvalue().count("You said") == 6
    assert "oldest messages are left out" in out.getvalue()


def test_ctrl_c_stops_the_answer_and_not_the_program(scripted, typed):
    engine = scripted(reply, delay_seconds=0.01)
    threading.Timer(0.3, lambda: os.kill(os.getpid(), signal.SIGINT)).start()
    before = signal.getsignal(signal.SIGINT)
    out = typed(engine, "a long one\nshort\n").strip()
    first, second = out.splitlines()
    assert first.startswith("word0")
    assert "word199" not in first
    assert second == "You said: short"
    assert signal.getsignal(signal.SIGINT) is before
    assert engine._scheduler.live == []


@pytest.fixture
def restore_sigint():
    """A background job inherits a SIGINT that is ignored."""
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    signal.signal(signal.SIGINT, before)


@pytest.mark.parametrize("options", [{}, {"prompt": "a long one"}])
def test_ctrl_c_ends_what_no_keyboard_feeds(scripted, options, restore_sigint):
    """A sibling of F41: Ctrl-C ended one answer of a thousand, and `-p` in a shell's loop with exit code 0."""
    engine = scripted(reply, delay_seconds=0.01)
    threading.Timer(0.3, signal.raise_signal, [signal.SIGINT]).start()
    with pytest.raises(KeyboardInterrupt):
        run(engine, "a long one\nshort\n", **options)
    assert engine._scheduler.live == []


def test_a_line_of_a_pipe_ends_where_it_ends(scripted):
    """A sibling of F41: C:\\ took the next question into itself."""
    assert run(scripted(reply), "C:\\\nnext\n").splitlines() == ["You said: C:\\", "You said: next"]


PROGRAM = """
import signal
from nutshell.infer.engine import Engine
from nutshell.model.config import ModelConfig
from nutshell.model.gpt import GPT
from nutshell.serve.terminal import chat
from nutshell.tokenizer import Tokenizer

signal.signal(signal.SIGINT, signal.default_int_handler)  # a background job inherits a SIGINT that is ignored
tok = Tokenizer.train(["some words to learn from, a few of them"] * 3, vocab_size=300)
config = ModelConfig(vocab_size=300, depth=2, width=64, heads=4, kv_heads=2, head_dim=16, context=64, bos_id=tok.bos_id)
chat(Engine(GPT(config).eval(), tok), max_tokens=5, temperature=0)
"""


@pytest.mark.skipif(sys.platform == "win32", reason="needs a pseudo-terminal")
def test_in_a_real_terminal():
    """Typed at a pseudo-terminal: the prompt, a question, Ctrl-C at the prompt, Ctrl-D at the end."""
    pty = pytest.importorskip("pty")
    terminal, other_end = pty.openpty()
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path), "TERM": "xterm"}
    ends = dict.fromkeys(("stdin", "stdout", "stderr"), other_end)
    with subprocess.Popen([sys.executable, "-c", PROGRAM], env=environment, start_new_session=True, **ends) as process:
        os.close(other_end)
        seen = b""

        def read_until(words):
            nonlocal seen
            deadline = time.monotonic() + 60
            while words not in seen:
                assert select.select([terminal], [], [], deadline - time.monotonic())[0], seen
                seen += os.read(terminal, 4096)
            _, _, seen = seen.partition(words)

        try:
            read_until(b"Chat with the model")
            read_until(b"> ")
            os.write(terminal, b"Hello\n")
            read_until(b" tokens")
            read_until(b"> ")
            os.write(terminal, b"half a line")
            read_until(b"half a line")
            time.sleep(0.3)  # a signal while readline handles a key is seen at the next key only
            process.send_signal(signal.SIGINT)
            read_until(b"/quit or Ctrl-D leaves")
            read_until(b"> ")
            os.write(terminal, b"\x04")
            assert process.wait(20) == 0
        finally:
            process.kill()
            os.close(terminal)


def test_what_fails_at_a_keyboard_ends_nothing(scripted, typed, tmp_path, monkeypatch):
    """Siblings of F41: deep JSON, an unknown home or a failed step ended the program and its conversation; a kept question
    without an answer, or half a character, made each later question fail."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "deep.json").write_text("[" * 99999)
    (tmp_path / "half.json").write_text('[{"role": "user", "content": "\\ud800"}]')
    (tmp_path / "asked.json").write_text('[{"role": "user", "content": "a"}]')
    engine = scripted(reply)
    out = typed(engine, "one\n/load deep.json\n/load half.json\n/save ~nobody-here/x\ntwo\n/load asked.json\nthree")
    said = [line for line in out.splitlines() if line.startswith(("You said", "half.json is"))]
    assert [line[:16].strip() for line in said] == [
        "You said: one",
        "half.json is no",
        "You said: two",
        "You said: a",
        "You said: three",
    ]
    engine.fail = RuntimeError("broken")
    assert "Temperature: 0.3" in typed(engine, "one\n/temp 0.3")
