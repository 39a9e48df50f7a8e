"""Chat in the terminal: one question (`-p`), a conversation, or lines from a pipe."""

import contextlib
import json
import os
import signal
import sys
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TextIO

from nutshell.files import write_json
from nutshell.serve.parts import Parts, add_delta, content_of
from nutshell.tokenizer.chat import parse_messages

HELP = """\
/new           begin a new conversation
/regen         answer the last question again (also /retry)
/system TEXT   begin anew with this system prompt (without TEXT: show it; "none" removes it)
/temp X        temperature, 0 to 2 (without X: show it)
/save FILE     keep the conversation as JSON
/load FILE     go on with one that was kept
/model NAME    answer with another stage or step from now on (without NAME: list them)
/help          this
/quit          leave (also Ctrl-D)
Ctrl-C stops an answer. A line that ends in \\ goes on in the next."""

SHOWN = "\n\t\u200c\u200d\ufe0e\ufe0f"
"""Not printable to Python, but part of text: joiners (Hindi, Persian, families of emoji) and how an emoji is drawn."""
DIM, BOLD, RESET = "\x1b[2m", "\x1b[1m", "\x1b[0m"


COMMANDS = ("/new", "/regen", "/retry", "/system", "/temp", "/save", "/load", "/model", "/help", "/quit", "/exit", "/q")
"""At a keyboard; any other line, and every line of a pipe, is a message."""


@dataclass
class Conversation:
    """What was said, and how answers are drawn."""

    engine: Any
    sampling: dict[str, Any]
    system: str = ""
    models: Mapping[str, Callable[[], Any]] = field(default_factory=dict)
    """Makes the engine of another model, by its id."""
    messages: list[dict[str, Any]] = field(default_factory=list)

    def to_send(self) -> list[dict[str, Any]]:
        return ([{"role": "system", "content": self.system}] if self.system.strip() else []) + self.messages


@dataclass
class Screen:
    """Where answers go. Control characters of the model never reach a terminal."""

    out: TextIO
    styled: bool
    show_tools: bool = True

    def write(self, text: str, style: str = "") -> None:
        if self.styled:
            text = "".join(character for character in text if character in SHOWN or character.isprintable())
        self.out.write(f"{style}{text}{RESET}" if style and self.styled and text else text)
        self.out.flush()

    def note(self, text: str) -> None:
        self.write(f"{text}\n", DIM)

    def warn(self, text: str) -> None:
        """Said on standard error where answers go to a pipe or a file."""
        if self.show_tools:
            self.note(text)
        else:
            print(text, file=sys.stderr)


def chat(
    engine: Any,
    *,
    prompt: str | None = None,
    system: str | None = None,
    temperature: float = 0.4,
    models: Mapping[str, Callable[[], Any]] | None = None,
    stdin: TextIO | None = None,
    stdout: TextIO | None = None,
    **sampling: Any,
) -> None:
    """Talk to `engine`, or to one of `models` where /model asks for it; `sampling` are fields of `Sampling`.

    With `prompt` ("-" reads stdin), print one answer and return. Without a terminal at stdin each line is a message, and only
    answers are printed. Raises ValueError for an empty prompt or a setting that Sampling refuses.
    """
    stdin, stdout = stdin or sys.stdin, stdout or sys.stdout
    styled = stdout.isatty() and "NO_COLOR" not in os.environ
    talk = Conversation(engine, {"temperature": temperature, **sampling}, system or "", models or {})
    if prompt is not None:
        text = stdin.read() if prompt == "-" else prompt
        if not text.strip():
            raise ValueError('the prompt is empty; give a question, for example -p "What is the capital of France?"')
        _answer(talk, text, Screen(stdout, styled, show_tools=stdout.isatty()), interactive=False)
        return
    interactive = stdin.isatty()
    screen = Screen(stdout, styled, show_tools=interactive or stdout.isatty())
    if interactive:
        screen.write("Chat with the model. /help lists the commands.\n", BOLD)
        with contextlib.suppress(ImportError):  # line editing and history, where there is any
            import readline  # noqa: F401
    while (line := _read(stdin, interactive, screen)) is not None:
        if not line.strip():
            continue
        try:
            if not (interactive and line.startswith("/") and line.split()[0] in COMMANDS):
                _answer(talk, line, screen, interactive)
            elif not _command(talk, line, screen):
                break
        except (ValueError, OSError, RuntimeError, MemoryError) as error:  # at a keyboard what fails is no end: the talk is kept
            if not interactive:
                raise
            screen.note(f"\n{error}")


def _read(stdin: TextIO, interactive: bool, screen: Screen) -> str | None:
    """The next message, None at the end. Ctrl-C throws away what was typed."""
    lines: list[str] = []
    while True:
        try:
            if interactive:
                line = input("… " if lines else "\n> ")
            else:
                line = stdin.readline()
                if not line:
                    return None
                line = line.rstrip("\r\n")
        except EOFError:
            screen.write("\n")
            return None
        except KeyboardInterrupt:
            if not interactive:
                raise
            screen.note("\n(/quit or Ctrl-D leaves)")
            lines = []
            continue
        if not (interactive and line.endswith("\\")):
            return "\n".join([*lines, line])
        lines.append(line[:-1])


def _command(talk: Conversation, line: str, screen: Screen) -> bool:
    """Do what `line` says; False ends the program."""
    command, _, rest = line.strip().partition(" ")
    rest = rest.strip()
    if command in ("/quit", "/exit", "/q"):
        return False
    if command == "/new":
        talk.messages = []
        screen.note("A new conversation.")
    elif command == "/system":
        if rest:
            talk.system, talk.messages = "" if rest.lower() == "none" else rest, []
            screen.note("A new conversation, with this system prompt." if talk.system else "No system prompt.")
        else:
            screen.note(f"System prompt: {talk.system or 'none'}")
    elif command == "/temp":
        if rest:
            try:
                value = float(rest)
            except ValueError:
                value = -1.0
            if not 0 <= value <= 2:
                screen.note(f"{rest!r} is no temperature; it is a number between 0 and 2.")
                return True
            talk.sampling["temperature"] = value
        screen.note(f"Temperature: {talk.sampling['temperature']:g}")
    elif command in ("/regen", "/retry"):
        questions = [index for index, message in enumerate(talk.messages) if message["role"] == "user"]
        if not questions:
            screen.note("There is nothing to answer again.")
            return True
        question = talk.messages[questions[-1]]["content"]
        del talk.messages[questions[-1] :]
        _answer(talk, question, screen)
    elif command == "/save":
        write_json(Path(_given(rest, command)).expanduser(), {"messages": talk.to_send()})
        screen.note(f"Kept in {rest}: {len(talk.messages)} messages.")
    elif command == "/load":
        _load(talk, Path(_given(rest, command)).expanduser())
        screen.note(f"{len(talk.messages)} messages from {rest}.")
        if talk.messages and talk.messages[-1]["role"] == "user":
            _answer(talk, talk.messages.pop()["content"], screen)
    elif command == "/model":
        _choose_model(talk, rest, screen)
    elif command == "/help":
        screen.note(HELP)
    return True


def _given(file: str, command: str) -> str:
    if not file:
        raise ValueError(f"{command} needs the name of a file, for example {command} chat.json")
    return file


def _load(talk: Conversation, file: Path) -> None:
    """Nothing changes where the file holds no conversation."""
    try:
        messages = parse_messages(json.loads(file.read_text(encoding="utf-8")))
        json.dumps(messages, ensure_ascii=False).encode()  # half a character would spoil each answer
    except (UnicodeError, json.JSONDecodeError) as error:
        raise ValueError(f"{file} is no JSON file of a conversation ({error})") from None
    has_system = messages[0]["role"] == "system"
    talk.system = messages[0]["content"] if has_system else ""
    talk.messages = messages[has_system:]


def _choose_model(talk: Conversation, name: str, screen: Screen) -> None:
    """`name` is an id, or the end of one: sft, step-000100."""
    found = [id for id in talk.models if id == name] or [id for id in talk.models if name and id.endswith(f"/{name}")]
    if not found:
        said = f"There is no model {name!r} here. " if name else ""
        screen.note(said + ("There are: " + ", ".join(talk.models) if talk.models else "This is the only model."))
        return
    talk.engine = talk.models[found[0]]()
    screen.note(f"{found[0]} answers from now on.")


def _answer(talk: Conversation, question: str, screen: Screen, interactive: bool = True) -> None:
    """Stream the answer to `question`, and add both to the conversation. At a keyboard Ctrl-C stops it alone."""
    messages = [*talk.to_send(), {"role": "user", "content": question}]
    parts: Parts = []
    tokens, finish, began, kind = 0, None, 0.0, "text"
    with _stop_by_ctrl_c(interactive) as stopped, contextlib.closing(talk.engine.chat(messages, **talk.sampling)) as deltas:
        for delta in deltas:
            if not began:
                began = time.monotonic()
                _tell_what_is_missing(delta.request, screen)
            tokens += delta.token_id >= 0
            add_delta(parts, delta)
            if delta.kind != kind and screen.show_tools:
                screen.write({"tool": "[", "output": " = ", "text": "] "}[delta.kind], DIM)
            kind = delta.kind
            if kind == "text":
                screen.write(delta.text)
            elif screen.show_tools:
                screen.write(delta.text, DIM)
            finish = delta.finish
            if stopped.is_set():
                break
    if kind != "text" and screen.show_tools:
        screen.write("]", DIM)
    screen.write("\n")
    seconds = time.monotonic() - began
    speed = f", {(tokens - 1) / seconds:.0f} tokens/s" if tokens > 1 and seconds > 0 else ""
    ending = {None: ", stopped", "cancelled": ", stopped", "length": ", cut at the longest length"}.get(finish, "")
    if screen.styled:
        screen.note(f"({tokens} tokens{speed}{ending})")
    if parts:
        talk.messages += [{"role": "user", "content": question}, {"role": "assistant", "content": content_of(parts)}]


def _tell_what_is_missing(request: Any, screen: Screen) -> None:
    if request.dropped:
        screen.warn(f"(the conversation is longer than the context: its {request.dropped} oldest messages are left out)")
    if request.truncated:
        screen.warn("(system prompt and message are longer than the context: the end of one and the beginning of the other go)")


@contextlib.contextmanager
def _stop_by_ctrl_c(interactive: bool) -> Iterator[threading.Event]:
    """Ctrl-C sets the event instead of raising in the middle of a step; a second one raises."""
    stopped = threading.Event()
    if not interactive or threading.current_thread() is not threading.main_thread():
        yield stopped
        return

    def stop(number: int, frame: Any) -> None:
        if stopped.is_set():
            raise KeyboardInterrupt
        stopped.set()

    before = signal.signal(signal.SIGINT, stop)
    try:
        yield stopped
    finally:
        signal.signal(signal.SIGINT, before)
