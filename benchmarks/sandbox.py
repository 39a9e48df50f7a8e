"""What one run in the sandbox costs, at each level that works here, beside a bare interpreter: `python benchmarks/sandbox.py`."""

import platform
import statistics
import subprocess
import time
from collections.abc import Callable

from nutshell.infer.sandbox import LEVELS, WEAKER, Sandbox, SandboxError, _executable

RUNS = 30


def milliseconds(run: Callable[[], object]) -> tuple[float, float]:
    """Median and least of RUNS."""
    times = []
    for _ in range(RUNS):
        start = time.perf_counter()
        run()
        times.append(1000 * (time.perf_counter() - start))
    return statistics.median(times), min(times)


def main() -> None:
    print(f"{platform.processor() or platform.machine()}, Python {platform.python_version()}, {RUNS} runs of print(1)")
    bare, least = milliseconds(lambda: subprocess.run([_executable(), "-I", "-S", "-c", "print(1)"], stdout=subprocess.DEVNULL))
    print(f"{'python -I -S':12} {bare:6.1f} ms median {least:6.1f} least")
    for level in LEVELS + WEAKER:
        try:
            sandbox = Sandbox.open(level)
        except SandboxError as error:
            print(f"{level:12} {str(error)[:90]}")
            continue
        median, least = milliseconds(lambda sandbox=sandbox: sandbox.run_python("print(1)"))
        print(f"{level:12} {median:6.1f} ms median {least:6.1f} least   {median / bare:.1f} times bare")


if __name__ == "__main__":
    main()
