"""What runs the text that a model writes between <|python_start|> and <|python_end|>: the calculator, or Python in a sandbox."""

from __future__ import annotations

import os
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any

from nutshell.infer.calculator import calculate
from nutshell.infer.sandbox import Result, Sandbox

Tool = Callable[[str], "str | Future[Any] | None"]
"""What the model wrote -> the text that is forced in behind it; None forces nothing in. A slow tool answers with a future of
either, so that other replies go on meanwhile; it is cancelled with its reply. Whatever else a tool gives or raises ends that
reply with an error."""

TOOLS = ("calculator", "python", "none")
SECONDS = 5.0
MAX_CHARACTERS = 1000  # of an output: it takes up the model's context

# Runs the program that stdin holds; the value of an expression at its end is printed, as at Python's own prompt.
PROMPT = """\
import _ast, builtins, sys
tree = compile(sys.stdin.read(), "program.py", "exec", 0x400)  # ast.PyCF_ONLY_AST, without the time to import ast
last = [tree.body.pop()] if tree.body and isinstance(tree.body[-1], _ast.Expr) else []
names = {"__name__": "__main__", "__builtins__": builtins}
exec(compile(tree, "program.py", "exec"), names)
exec(compile(_ast.Interactive(last), "program.py", "single"), names)
"""


def open_tool(name: str, level: str = "auto") -> Tool | None:
    """The tool of this name; `level` is the sandbox's.

    ValueError for a name or level that does not exist, SandboxError where Python cannot be run safely.
    """
    if name not in TOOLS:
        raise ValueError(f"no tool {name!r}. Accepted: {', '.join(TOOLS)}.")
    if name == "none":
        return None
    return calculate if name == "calculator" else PythonTool(Sandbox.open(level))


def tool_name(tool: Tool) -> str:
    """`calculator`, `python`, or the name of a function of one's own."""
    if isinstance(tool, PythonTool):
        return "python"
    return "calculator" if tool is calculate else str(getattr(tool, "__name__", "tool"))


class PythonTool:
    """Python programs, each on its own: nothing is kept from one call to the next."""

    def __init__(self, sandbox: Sandbox) -> None:
        self.sandbox = sandbox
        self._threads = ThreadPoolExecutor(max_workers=os.cpu_count(), thread_name_prefix="python-tool")

    def __call__(self, code: str) -> Future[str]:
        return self._threads.submit(self.run, code)

    def run(self, code: str) -> str:
        """What the program prints, or the last line of its error. SandboxError where the sandbox fails."""
        return _shown(self.sandbox.run_python(PROMPT, stdin=code, timeout=SECONDS))


def _shown(result: Result) -> str:
    output = result.stdout.strip()
    if result.status == "timeout":
        output += f"\nTimeoutError: it ran longer than {SECONDS:g} seconds"
    elif result.status != "ok":
        lines = result.stderr.strip().splitlines()
        output += f"\n{lines[-1] if lines else f'Error: it ended with {result.status} ({result.exit_code})'}"
    output = output.strip()
    return output if len(output) <= MAX_CHARACTERS else output[: MAX_CHARACTERS - 3] + "..."
