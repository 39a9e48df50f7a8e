"""Does a program that a model wrote pass its tests? For HumanEval and tasks like it.

The program and the tests run in two sandboxes. The tests call the program's functions over a socket, by value: plain data goes
over and plain data comes back. So the program cannot end the tests early, print a verdict, change what `assert` or `==` mean, or
read what the tests expect. Only tests that ran to their end count as passed.
"""

from __future__ import annotations

import socket
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass

from nutshell.infer.sandbox import MEMORY, Result, Sandbox

# Both sides begin with this. Messages are `marshal`, which knows numbers, texts and plain containers alone.
LINK = """\
import builtins, marshal, sys
link = open({descriptor}, "r+b", buffering=0)
def send(value):
    data = marshal.dumps(value)
    data = len(data).to_bytes(8, "little") + data
    while data:
        data = data[link.write(data):]
def read(size):
    data = b""
    while len(data) < size:
        part = link.read(size - len(data))
        if not part:
            raise EOFError("the program ended before its tests did")
        data += part
    return data
def receive():
    return marshal.loads(read(int.from_bytes(read(8), "little")))
"""

# The program, then its answers: what a function returned, and its arguments, as it may have changed them.
PROGRAM = """
class Unknown(Exception):
    pass
def plain(value):
    for kind in (bool, int, float, complex, str, bytes):
        if isinstance(value, kind):
            return kind(value)
    for kind in (list, tuple, set, frozenset):
        if isinstance(value, kind):
            return kind(map(plain, value))
    if isinstance(value, dict):
        return {{plain(key): plain(item) for key, item in value.items()}}
    if value is None:
        return None
    raise Unknown(f"a result of type {{type(value).__name__}} cannot be compared")
module = type(sys)("program")
sys.modules["program"] = module
exec(compile({program!r}, "program.py", "exec"), module.__dict__)
functions = {{name: "" for name, value in vars(module).items() if callable(value)}}
send({{**functions, **{{name: value.__name__ for name, value in vars(module).items() if isinstance(value, type(sys))}}}})
while True:
    try:
        name, arguments, keywords = receive()
    except EOFError:
        break
    try:
        answer = plain(getattr(module, name)(*arguments, **keywords)), plain(arguments)
    except Exception as error:
        answer = type(error).__name__, str(error), 0
    send(answer)
"""

# The tests see a function for each of the program's, and the modules that it imported.
TESTS = """
def stand_in(name):
    def function(*arguments, **keywords):
        send((name, arguments, keywords))
        answer = receive()
        if len(answer) == 3:
            kind = getattr(builtins, answer[0], None)
            fits = isinstance(kind, type) and issubclass(kind, Exception)
            raise (kind if fits else RuntimeError)(answer[1])
        for mine, theirs in zip(arguments, answer[1]):
            if isinstance(mine, list):
                mine[:] = theirs
            elif isinstance(mine, (dict, set)):
                mine.clear()
                mine.update(theirs)
        return answer[0]
    return function
scope = {{"__name__": "tests"}}
for name, module in receive().items():
    other = module and name in sys.stdlib_module_names and name != module
    if not hasattr(builtins, name) and not name.startswith("__") and not other:  # or `abs` would be what the program says
        try:
            scope[name] = sys.modules.get(module) or __import__(module, fromlist=["x"]) if module else stand_in(name)
        except ImportError:
            pass
exec(compile({tests!r}, "tests.py", "exec"), scope)
"""


@dataclass(frozen=True)
class Verdict:
    """Whether the tests ran to their end without an error."""

    passed: bool
    reason: str
    """Empty where it passed; else the last line of the error, or timeout, memory, output, killed."""
    level: str
    """Of the sandbox, for the report."""


def check_program(sandbox: Sandbox, program: str, tests: str, timeout: float = 5.0, memory: int = MEMORY) -> Verdict:
    """Run `tests` against the functions that `program` defines; for HumanEval: prompt + completion, test + "check(entry_point)".

    Arguments and results are plain data (numbers, texts, lists, tuples, sets, dicts, None). SandboxError where the sandbox broke,
    so that it is never counted as a wrong answer.
    """
    ours, theirs = socket.socketpair()
    with ThreadPoolExecutor(1) as thread, ours, theirs:
        code = (LINK + PROGRAM).format(descriptor=theirs.fileno(), program=program)
        running = thread.submit(sandbox.run_python, code, timeout=timeout, memory=memory, channel=theirs)
        code = (LINK + TESTS).format(descriptor=ours.fileno(), tests=tests)
        tested = sandbox.run_python(code, timeout=timeout + 1, memory=memory, channel=ours)
    ran = running.result()
    passed = tested.status == "ok"
    return Verdict(passed, "" if passed else _reason(tested if ran.status == "ok" else ran), tested.level)


def _reason(result: Result) -> str:
    lines = result.stderr.strip().splitlines()
    return lines[-1] if result.status == "error" and lines else result.status
