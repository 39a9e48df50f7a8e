"""Run Python that a model wrote: apart from the machine's files, network and processes, within limits of time and memory.

`Sandbox.open().run_python("print(6 * 7)").stdout` is "42\\n". Levels, strongest first (docs/sandbox.md says what each one stops):

- bubblewrap: `bwrap` makes the namespaces and an almost empty root folder; our seccomp filter lists the allowed system calls
- namespaces: the same walls made by `sandbox_child.py` itself, with Landlock behind them
- landlock, limits: weaker; used only where somebody asked for them by name

What goes wrong in the program is a `Result`. What goes wrong in the sandbox is a `SandboxError`, so that it is never graded as an
answer. The kernel is shared: this is no virtual machine.
"""

from __future__ import annotations

import contextlib
import functools
import marshal
import math
import os
import random
import selectors
import shutil
import signal
import socket
import subprocess
import sys
import sysconfig
import tempfile
import time
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from types import CodeType
from typing import Any, Literal

from nutshell.infer.cgroup import memory_group, ran_out
from nutshell.infer.seccomp import seccomp_filter

Status = Literal["ok", "error", "timeout", "memory", "output", "killed"]
LEVELS = ("bubblewrap", "namespaces")
WEAKER = ("landlock", "limits")

MEMORY = 256 << 20  # bytes of address space; the one process is all there is
DISK = 32 << 20  # bytes in /tmp, and of one file
OUTPUT = 64 << 10  # bytes of stdout, and of stderr
KERNEL = 64 << 20  # bytes that the kernel may hold for a program beside its memory and files, where a control group counts them
FILES, THREADS = 64, 32
DAY = 86400.0
START_SECONDS = 20.0  # to set up, on a busy machine; the program's own time starts after it
USERS = range(61184, 65520)  # systemd's range for users that exist only while a service runs
PYTHON = "/python/bin/python3"
CHILD = Path(__file__).with_name("sandbox_child.py")
START = "import marshal; code, job = marshal.load(open({}, 'rb')); names = {{}}; exec(code, names); names['main'](job)"
ENVIRONMENT = {"HOME": "/tmp", "LD_LIBRARY_PATH": "/python/lib"}


class SandboxError(OSError):
    """The sandbox could not be set up or broke. It says nothing about the program."""

    exit_code = 2  # on the command line: it can be put right by who reads the message


@dataclass(frozen=True)
class Result:
    """How a program ended."""

    status: Status
    """ok: exit code 0. error: another one, or an uncaught exception. killed: by a signal, as after a crash."""
    exit_code: int | None
    """None where the sandbox ended the program: timeout or output."""
    stdout: str
    stderr: str
    seconds: float
    """Wall-clock time of the program, without the start of the sandbox."""
    level: str


@dataclass(frozen=True)
class Sandbox:
    """Runs programs at one level. It holds nothing open and may be used from any thread."""

    level: str

    @classmethod
    def open(cls, level: str = "auto") -> Sandbox:
        """The strongest level that works here, or `level` itself. Each is tried once in a process, with a small program.

        ValueError where there is no such level; SandboxError, with the way out, where none works.
        """
        if level not in ("auto", *LEVELS, *WEAKER):
            raise ValueError(f"no sandbox level {level!r}. Accepted: auto, {', '.join(LEVELS + WEAKER)}.")
        wanted = LEVELS if level == "auto" else (level,)
        problems = {name: _probe(name) for name in wanted}
        for name, problem in problems.items():
            if not problem:
                return cls(name)
        if level in WEAKER:
            raise SandboxError(f"the sandbox level {level} does not work: {problems[level]}.")
        tried = "; ".join(f"{name}: {problem}" for name, problem in problems.items())
        raise SandboxError(
            f"no sandbox for code that a model writes ({tried}). Install bubblewrap (Debian, Ubuntu: apt-get install bubblewrap; "
            "Fedora: dnf install bubblewrap). Ubuntu 23.10 and later also need user namespaces allowed (sysctl -w "
            "kernel.apparmor_restrict_unprivileged_userns=0), a container --security-opt seccomp=unconfined or --privileged. "
            f"Weaker levels, only by name: {', '.join(WEAKER)}."
        )

    def run_python(
        self,
        code: str,
        stdin: str = "",
        timeout: float = 5.0,
        memory: int = MEMORY,
        output_limit: int = OUTPUT,
        channel: socket.socket | None = None,
    ) -> Result:
        """Run a program for at most `timeout` seconds with `memory` bytes of address space.

        `output_limit` bounds the bytes of stdout and of stderr; a program that writes more is ended.
        `channel` is a socket that the program gets, under the same number, and that is closed here.
        """
        if not (0 < timeout <= DAY and 0 < memory < 1 << 62 and output_limit > 0):
            raise ValueError(f"timeout {timeout}, memory {memory}, output_limit {output_limit}. Accepted: above 0, up to a day.")
        uid = random.SystemRandom().choice(USERS) if os.geteuid() == 0 else 0  # counted and signalled apart from other runs
        own_filter = seccomp_filter(namespaces=self.level == "namespaces") if self.level in ("namespaces", "landlock") else b""
        with contextlib.ExitStack() as stack:
            shared = [stack.enter_context(channel).fileno()] if channel else []
            folder = "/tmp" if self.level == "bubblewrap" else stack.enter_context(_folder(uid))
            ready, ready_in_child = os.pipe()
            stack.callback(os.close, ready)
            job = {
                "level": self.level,
                "folder": folder,
                "program": code,
                "limits": _limits(timeout, memory),
                "uid": uid,
                "parent": os.getpid(),
                "disk": DISK,
                "ready": ready_in_child,
                "mounts": _mounts(),
                "links": _links(),
                "path": [f"/python/lib/{Path(os.__file__).parent.name}{inside}" for inside in ("", "/lib-dynload")],
                "filter": own_filter,
            }
            try:
                process, group = self._start(stack, job, stdin, [ready_in_child, *shared], memory)
            except OSError as error:
                raise SandboxError(f"the sandbox did not start ({self.level}): {error}") from error
            finally:
                os.close(ready_in_child)
                if channel:
                    channel.close()
            result = _watch(process, ready, timeout, output_limit, self.level + ("+cgroup" if group else ""))
            if group is not None and result.status == "killed" and ran_out(group):
                return replace(result, status="memory")
            return result

    def _start(
        self, stack: contextlib.ExitStack, job: dict[str, Any], stdin: str, shared: list[int], memory: int
    ) -> tuple[subprocess.Popen[bytes], Path | None]:
        """The process that does `job`, with the descriptors `shared` under the same numbers, and its control group, if any."""
        given = stack.enter_context(_sealed(marshal.dumps((_child(), job))))
        filter_file = stack.enter_context(_sealed(seccomp_filter())) if self.level == "bubblewrap" else None
        command = [_executable() if filter_file is None else PYTHON, "-I", "-S", "-X", "utf8", "-c", START.format(given)]
        if filter_file is not None:
            command = [*_bubblewrap(filter_file), *command]
            shared = [*shared, filter_file]
        group = stack.enter_context(memory_group(memory + DISK + KERNEL)) if self.level in LEVELS else None
        if group is not None:  # the shell enters before anything is started that could stay outside
            enter = 'echo $$ > "$0" && exec "$@"'
            command = ["/bin/sh", "-c", enter, str(group / "cgroup.procs"), *command]
        process = subprocess.Popen(
            command,
            stdin=stack.enter_context(_sealed(stdin.encode("utf-8", "surrogatepass"))),
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            env={**ENVIRONMENT, "HOME": job["folder"]},
            cwd="/",
            pass_fds=[given, *shared],
            start_new_session=True,
        )
        return stack.enter_context(process), group


def _limits(timeout: float, memory: int) -> dict[str, int]:
    """Of the program's process, by their names in `resource`."""
    limits = {
        "RLIMIT_CPU": math.ceil(timeout) + 1,
        "RLIMIT_AS": memory,
        "RLIMIT_FSIZE": DISK,
        "RLIMIT_NOFILE": FILES,
        "RLIMIT_NPROC": THREADS,
        "RLIMIT_CORE": 0,
    }
    if sys.platform == "darwin":  # it counts all processes of the user, and its address space is not limited
        del limits["RLIMIT_AS"], limits["RLIMIT_NPROC"]
    return limits


def _watch(process: subprocess.Popen[bytes], ready: int, timeout: float, output_limit: int, level: str) -> Result:
    """Read what the program writes until it ends, or end it."""
    assert process.stdout
    assert process.stderr
    written = {process.stdout.fileno(): bytearray(), process.stderr.fileno(): bytearray()}
    started: float | None = None
    deadline = time.monotonic() + START_SECONDS
    ended: Status | None = None
    with selectors.DefaultSelector() as selector:
        for number in (ready, *written):
            selector.register(number, selectors.EVENT_READ)
        try:
            while ended is None and selector.get_map():
                events = selector.select(max(0.0, deadline - time.monotonic()))
                ended = None if events else "timeout"
                for key, _ in events:
                    data = os.read(key.fd, 1 << 16)
                    if key.fd == ready:
                        selector.unregister(ready)
                        if data:
                            started = time.monotonic()
                            deadline = started + timeout
                    elif not data:
                        selector.unregister(key.fd)
                    else:
                        written[key.fd] += data
                        if len(written[key.fd]) > output_limit:
                            ended = "output"
            if ended is None:  # it closed its output, which is not yet its end
                try:
                    process.wait(max(0.0, deadline - time.monotonic()))
                except subprocess.TimeoutExpired:
                    ended = "timeout"
        finally:
            _end(process, selector, ready)
    stdout, stderr = (bytes(data[:output_limit]).decode("utf-8", "replace") for data in written.values())
    if started is None:
        reason = f"it took more than {START_SECONDS:.0f} s" if ended else stderr.strip() or f"exit code {process.returncode}"
        raise SandboxError(f"the sandbox did not start ({level}): {reason}")
    code = process.returncode if process.returncode >= 0 else 128 - process.returncode
    if process.returncode < 0 and ended is None and level.startswith(LEVELS):  # there it is not the program itself
        raise SandboxError(f"the sandbox was killed from outside ({level}, signal {-process.returncode}).")
    status = ended or _status(code, stderr)
    return Result(status, None if ended else code, stdout, stderr, time.monotonic() - started, level)


def _end(process: subprocess.Popen[bytes], selector: selectors.BaseSelector, ready: int) -> None:
    """Kill what still runs, and return when all of it is gone: nobody else holds the pipes of its output open."""
    if process.poll() is None:
        with contextlib.suppress(ProcessLookupError, PermissionError):
            os.killpg(process.pid, signal.SIGKILL)
    deadline = time.monotonic() + START_SECONDS
    with contextlib.suppress(KeyError):
        selector.unregister(ready)
    while selector.get_map():
        events = selector.select(max(0.0, deadline - time.monotonic()))
        if not events:
            raise SandboxError("a program in the sandbox could not be killed.")
        for key, _ in events:
            if not os.read(key.fd, 1 << 16):
                selector.unregister(key.fd)
    process.wait()


def _status(code: int, stderr: str) -> Status:
    if code == 0:
        return "ok"
    if stderr.rstrip().rpartition("\n")[2].startswith("MemoryError"):
        return "memory"
    if code == 128 + signal.SIGXCPU:
        return "timeout"
    return "killed" if 128 < code < 128 + 65 else "error"


@functools.cache
def _probe(level: str) -> str:
    """Why `level` does not work here; empty where it does."""
    if level == "bubblewrap" and shutil.which("bwrap") is None:
        return "bwrap is not installed"
    if level != "limits" and sys.platform != "linux":
        return "only Linux has it"
    if level in WEAKER and os.geteuid() == 0 and not _everybody_reads(_executable()):
        return f"programs run as nobody, who cannot read {_executable()}; use a Python outside of root's home, or another user"
    try:
        result = Sandbox(level).run_python("import ctypes, threading; print(6 * 7)", timeout=START_SECONDS)
    except (OSError, ValueError) as error:
        return str(error)
    return "" if result.stdout == "42\n" else f"a first program ended with {result.status}: {result.stderr.strip()}"


def _bubblewrap(filter_file: int) -> list[str]:
    """The command line of bwrap up to the program; bwrap reads and closes `filter_file`."""
    command = ["bwrap", "--unshare-ipc", "--unshare-pid", "--unshare-net", "--unshare-uts", "--die-with-parent"]
    if os.geteuid() == 0:  # real root can leave the user without a user namespace, whose root it would stay
        command += ["--cap-drop", "ALL", "--cap-add", "CAP_SETUID", "--cap-add", "CAP_SETGID"]
    else:
        command += ["--unshare-user", "--cap-drop", "ALL"]
    for folder in ("/python", "/python/bin", "/python/lib", "/dev", "/usr"):  # bwrap's own choice would be 0700
        command += ["--perms", "0755", "--dir", folder]
    for source, target in _mounts():
        command += ["--dev-bind" if source.startswith("/dev/") else "--ro-bind", source, target]
    for source, target in _links():
        command += ["--symlink", source, target]
    command += ["--perms", "1777", "--size", str(DISK), "--tmpfs", "/tmp", "--remount-ro", "/", "--chdir", "/tmp"]
    return [*command, "--seccomp", str(filter_file), "--"]


@functools.cache
def _mounts() -> list[tuple[str, str]]:
    """What a program can read, as (path here, path there): Python, its library, the system's libraries, four devices."""
    library = Path(sysconfig.get_path("stdlib"))
    mounts = [(_executable(), PYTHON), (str(library), f"/python/lib/{library.name}")]
    shared = Path(sysconfig.get_config_var("LIBDIR") or "", sysconfig.get_config_var("INSTSONAME") or "")
    if shared.suffix != ".a" and shared.is_file():
        mounts.append((str(shared), f"/python/lib/{shared.name}"))
    folders = ["/usr/lib", "/usr/lib64", *(path for path in ("/lib", "/lib64") if not os.path.islink(path))]
    mounts += [(path, path) for path in folders if os.path.isdir(path)]
    return mounts + [(path, path) for path in ("/dev/null", "/dev/zero", "/dev/random", "/dev/urandom")]


def _links() -> list[tuple[str, str]]:
    return [(os.readlink(path), path) for path in ("/lib", "/lib64") if os.path.islink(path)]


def _executable() -> str:
    """The interpreter itself, where this one is the copy or link of a virtual environment."""
    return os.path.realpath(getattr(sys, "_base_executable", sys.executable))


def _everybody_reads(path: str) -> bool:
    return all(os.stat(folder).st_mode & 0o001 for folder in (Path(path), *Path(path).parents))


@functools.cache
def _child() -> CodeType:
    return compile(CHILD.read_text(encoding="utf-8"), CHILD.name, "exec")


@contextlib.contextmanager
def _sealed(data: bytes) -> Iterator[int]:
    """A descriptor to read `data` from, which nobody can change or make grow."""
    if sys.platform == "linux":
        number = os.memfd_create("nutshell", os.MFD_CLOEXEC | os.MFD_ALLOW_SEALING)
    else:
        with tempfile.TemporaryFile() as file:
            number = os.dup(file.fileno())
    try:
        with open(number, "wb", closefd=False) as file:
            file.write(data)
        os.lseek(number, 0, os.SEEK_SET)
        if sys.platform == "linux":
            import fcntl  # Windows has none, and loads this file with the engine

            seals = fcntl.F_SEAL_WRITE | fcntl.F_SEAL_GROW | fcntl.F_SEAL_SHRINK | fcntl.F_SEAL_SEAL
            fcntl.fcntl(number, fcntl.F_ADD_SEALS, seals)
        yield number
    finally:
        os.close(number)


@contextlib.contextmanager
def _folder(uid: int) -> Iterator[str]:
    """A fresh folder that belongs to the program's user and is removed afterwards."""
    with tempfile.TemporaryDirectory(prefix="nutshell-") as folder:
        if uid:
            os.chown(folder, uid, uid)
        yield folder
