"""The checker of programs: right ones pass, wrong ones do not, and none passes by a trick."""

import pytest

from nutshell.infer.checker import check_program
from nutshell.infer.sandbox import Sandbox, SandboxError

RIGHT = "def add(a, b):\n    return a + b\n"
TESTS = "def check(f):\n    assert f(1, 2) == 3\n    assert f(-1, 1) == 0\n    assert f([1], [2]) == [1, 2]\n\ncheck(add)\n"
WRONG = "def add(a, b):\n    return a - b\n"
ANYTHING = "class Same(int):\n    def __eq__(self, other): return True\n    def __bool__(self): return True\n"

CHEATS = {
    "wrong": WRONG,
    "nothing": "",
    "no function": "x = 1",
    "syntax": "def add(a, b:",
    "raises": "def add(a, b):\n    raise ValueError('no')",
    "exit": "raise SystemExit(0)",
    "exit inside": "def add(a, b):\n    raise SystemExit(0)",
    "hard exit": "import os\nos._exit(0)",
    "hard exit inside": "import os\ndef add(a, b):\n    os._exit(0)",
    "says that it passed": "print('passed\\n1 passed\\nok', flush=True)\nimport os\nos._exit(0)",
    "equal to anything": ANYTHING + "def add(a, b):\n    return Same(7)",
    "own check": "def check(f): pass\n" + WRONG,
    "changed builtins": "import builtins\nbuiltins.AssertionError = KeyboardInterrupt\n" + WRONG,
    "tracing": "import sys\nsys.settrace(lambda *a: None)\nsys.excepthook = lambda *a: None\n" + WRONG,
    "exit at the end": "import atexit, os\natexit.register(os._exit, 0)\n" + WRONG,
    "thread that ends all": "import os, threading, time\nthreading.Timer(0.05, os._exit, [0]).start()\n"
    "def add(a, b):\n    time.sleep(1)",
    "loop": "def add(a, b):\n    while True: pass",
    "reads the tests": "import gc\nif 'assert f(1, 2)' in str(gc.get_objects()):\n    def add(a, b): return 3\n" + WRONG,
    "noise on the link": "import os\nfor n in range(3, 64):\n    try: os.write(n, bytes(64))\n    except OSError: pass\n" + WRONG,
    "closes the link": "import os\nos.closerange(3, 64)\n" + RIGHT,
    "crash": "import ctypes\ndef add(a, b):\n    ctypes.string_at(0)",
    "memory": "def add(a, b):\n    return [bytes(2**20) for _ in range(5000)]",
    "a strange result": "def add(a, b):\n    return add",
}  # fmt: skip


@pytest.fixture(scope="module")
def sandbox():
    try:
        return Sandbox.open()
    except SandboxError as error:
        pytest.skip(f"no sandbox here: {error}")


@pytest.mark.parametrize("name", CHEATS)
def test_does_not_pass(sandbox, name):
    verdict = check_program(sandbox, CHEATS[name], TESTS, timeout=0.5 if name == "loop" else 5)
    assert not verdict.passed
    assert verdict.reason
    assert verdict.level.startswith(sandbox.level)
    if name == "loop":
        assert verdict.reason == "timeout"


@pytest.mark.parametrize(
    ("program", "tests"),
    [
        (RIGHT, TESTS),
        ("import math\n" + RIGHT, "assert math.floor(add(1.5, 2)) == 3"),
        ("from typing import List\ndef f(x: List[int]) -> List[int]:\n    x.sort()",
         "x = [2, 1]\nassert f(x) is None and x == [1, 2]"),
        ("def f(d):\n    d['b'] = 2\n    return {3}, (1,), None, 1.5, 2 ** 100, 'ü', float('inf')",
         "d = {'a': 1}\nassert f(d) == ({3}, (1,), None, 1.5, 2 ** 100, 'ü', float('inf')) and d == {'a': 1, 'b': 2}"),
        ("from collections import Counter, OrderedDict\ndef f(x):\n    return Counter(x)", "assert f('aab') == {'a': 2, 'b': 1}"),
        ("def f(x):\n    raise ValueError('low')",
         "try:\n    f(1)\nexcept ValueError as error:\n    assert str(error) == 'low'\nelse:\n    assert False"),
        ("class E(Exception): pass\ndef f():\n    raise E('own')",
         "try:\n    f()\nexcept RuntimeError as error:\n    assert 'own' in str(error)"),
        ("def f(a, *, b=1):\n    return a * b\ndef g(x):\n    print('noise')\n    return f(x, b=x)",
         "assert f(2, b=5) == 10 and g(3) == 9"),
        ("if __name__ == '__main__':\n    input()\ndef f():\n    return 1", "assert f() == 1"),
        ("import dataclasses\n@dataclasses.dataclass\nclass P:\n    x: 'int'\ndef f():\n    return P(3).x", "assert f() == 3"),
    ],
)  # fmt: skip
def test_right_programs_pass(sandbox, program, tests):
    verdict = check_program(sandbox, program, tests)
    assert verdict.passed, verdict
    assert verdict.reason == ""


def test_the_tests_keep_their_own_builtins_and_modules(sandbox):
    program = "import cmath as math\ndef abs(x): return 0\ndef add(a, b): return 0"
    assert not check_program(sandbox, program, "assert abs(add(1, 2) - 3) < 1").passed
    assert check_program(sandbox, program, "assert 'math' not in globals()").passed


def test_a_broken_sandbox_is_no_verdict(sandbox, monkeypatch):
    monkeypatch.setattr("nutshell.infer.sandbox._mounts", lambda: [("/no/such/library", "/usr/lib")])
    with pytest.raises(SandboxError):
        check_program(sandbox, RIGHT, TESTS)


def test_the_reason_is_the_programs(sandbox):
    assert check_program(sandbox, "def add(a, b):\n    return a - b", TESTS).reason == "AssertionError"
    assert check_program(sandbox, "def add(a, b:", TESTS).reason.startswith("SyntaxError")
    assert check_program(sandbox, "def add(a, b):\n    return c", TESTS).reason == "NameError: name 'c' is not defined"
