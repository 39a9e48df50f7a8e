"""The sandbox when something around it breaks: we are killed, it is killed, parts of the system are missing."""

import os
import signal
import struct
import subprocess
import sys
import tempfile
import threading
import time
from pathlib import Path

import pytest

from nutshell.infer import cgroup
from nutshell.infer import sandbox as module
from nutshell.infer.checker import check_program
from nutshell.infer.sandbox import LEVELS, WEAKER, Sandbox, SandboxError, _probe
from nutshell.infer.seccomp import seccomp_filter

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="the sandbox is made of Linux's parts")
SOURCE = str(Path(module.__file__).parents[2])


def open_sandbox(level):
    if problem := _probe(level):
        pytest.skip(f"the level {level} does not work here: {problem}")
    return Sandbox.open(level)


def descendants(pid: int) -> set[int]:
    """Of a process, by what /proc says now."""
    parents = {}
    for folder in Path("/proc").glob("[0-9]*"):
        try:
            parents[int(folder.name)] = int((folder / "stat").read_text().rpartition(")")[2].split()[1])
        except OSError:
            continue
    found, new = set(), {pid}
    while new:
        new = {child for child, parent in parents.items() if parent in new} - found
        found |= new
    return found


def alive(pids: set[int]) -> set[int]:
    return {pid for pid in pids if Path(f"/proc/{pid}").exists() and "\nState:\tZ" not in Path(f"/proc/{pid}/status").read_text()}


def wait_until(condition, seconds: float = 15.0) -> None:
    deadline = time.monotonic() + seconds
    while not condition() and time.monotonic() < deadline:
        time.sleep(0.02)


@pytest.mark.parametrize("level", LEVELS + WEAKER)
def test_kill_9_of_the_caller_ends_the_program(level, tmp_path):
    """Nobody is left to end a program that sleeps, and a limit of processor time never will."""
    open_sandbox(level)
    code = f"import sys; sys.path.insert(0, {SOURCE!r})\nfrom nutshell.infer.sandbox import Sandbox\n"
    code += f"Sandbox({level!r}).run_python('import time; time.sleep(60)', timeout=100)"
    caller = subprocess.Popen([sys.executable, "-c", code], env={**os.environ, "TMPDIR": str(tmp_path)})
    try:
        wait_until(lambda: descendants(caller.pid))
        time.sleep(1)  # past the start
        pids = descendants(caller.pid)
        assert pids
        assert caller.poll() is None
    finally:
        caller.kill()
        caller.wait()
    wait_until(lambda: not alive(pids))
    left = alive(pids)
    for pid in left:
        os.kill(pid, signal.SIGKILL)
    assert not left


def test_control_groups_of_killed_callers_are_removed():
    parent = cgroup.parent_group()
    if parent is None:
        pytest.skip("no control group can be made here")
    ended = subprocess.Popen(["true"])
    ended.wait()
    stale, own = parent / f"nutshell-{ended.pid}-0", parent / f"nutshell-{os.getpid()}-stays"
    stale.mkdir()
    own.mkdir()
    cgroup.parent_group.cache_clear()
    try:
        assert cgroup.parent_group() == parent
        assert not stale.exists()
        assert own.exists()
    finally:
        own.rmdir()


@pytest.mark.parametrize("level", LEVELS)
def test_a_sandbox_that_is_killed_is_no_wrong_answer(level, monkeypatch):
    """As the kernel does when the machine is out of memory."""
    sandbox, watch = open_sandbox(level), module._watch

    def killed_meanwhile(process, *others):
        threading.Timer(0.5, process.send_signal, [signal.SIGKILL]).start()
        return watch(process, *others)

    monkeypatch.setattr(module, "_watch", killed_meanwhile)
    with pytest.raises(SandboxError, match=r"killed from outside .*signal 9"):
        sandbox.run_python("import time; time.sleep(30)", timeout=30)
    with pytest.raises(SandboxError, match="killed from outside"):
        check_program(sandbox, "import time\ndef f(): time.sleep(30)", "f()", timeout=30)


def test_the_engine_loads_where_fcntl_is_missing():
    code = "import sys; sys.modules['fcntl'] = sys.modules['resource'] = None; import nutshell.infer.tools"
    subprocess.run([sys.executable, "-c", code], env={**os.environ, "PYTHONPATH": SOURCE}, check=True)


@pytest.mark.parametrize(
    "change", ["os.chmod(PATH, 0)", "os.utime(PATH, (0, 0))", "os.truncate(PATH, 0)", "os.chown(PATH, 1, 1)"]
)
def test_landlock_alone_keeps_files_as_they_are(change):
    sandbox = open_sandbox("landlock")
    with tempfile.NamedTemporaryFile() as file:
        file.write(b"keep")
        file.flush()
        os.chmod(file.name, 0o666)
        before = os.stat(file.name)
        result = sandbox.run_python("import os; " + change.replace("PATH", repr(file.name)))
        assert "PermissionError" in result.stderr
        assert os.stat(file.name)[:9] == before[:9]


def verdict(program: bytes, number: int, arguments: tuple[int, ...] = (), machine: int = 0xC000003E) -> int:
    """What the filter answers, by the definition of classic BPF."""
    data = number.to_bytes(4, "little") + machine.to_bytes(4, "little") + bytes(8)
    data += b"".join(value.to_bytes(8, "little") for value in (*arguments, 0, 0, 0, 0, 0, 0)[:6])
    steps = list(struct.iter_unpack("=HBBI", program))
    place = loaded = 0
    while True:
        code, if_true, if_false, value = steps[place]
        place += 1
        match code:
            case 0x20:
                loaded = int.from_bytes(data[value : value + 4], "little")
            case 0x54:
                loaded &= value
            case 0x15:
                place += if_true if loaded == value else if_false
            case 0x06:
                return value
            case _:
                raise AssertionError(f"unknown step {code:#x}")


REFUSED, ALLOWED, NO_SUCH_CALL, KILLED = 0x50000 | 1, 0x7FFF0000, 0x50000 | 38, 0x80000000


@pytest.mark.parametrize(
    ("call", "arguments", "answer"),
    [
        (56, (0x3D0F00,), ALLOWED),  # clone: a thread as glibc makes it
        (56, (17,), REFUSED),  # fork
        (56, (0x4111,), REFUSED),  # vfork
        (435, (), NO_SUCH_CALL),  # clone3
        (16, (0, 0x5401), ALLOWED),  # ioctl: is it a terminal?
        (16, (0, 0x5412), REFUSED),  # TIOCSTI
        (16, (0, 0x100005412), REFUSED),  # the same: the kernel reads 32 bits
        (53, (1, 0x80001), ALLOWED),  # socketpair, AF_UNIX, a stream
        (53, (1, 2), REFUSED),  # a datagram could be sent to any address
        (53, (2, 1), REFUSED),
        (72, (0, 8), REFUSED),  # fcntl F_SETOWN
        (72, (0, 1031), REFUSED),  # F_SETPIPE_SZ
        (302, (0, 7), ALLOWED),  # prlimit64 of itself
        (302, (1, 7), REFUSED),
        (73, (), REFUSED),  # flock: on libraries that others use
        (62, (), ALLOWED),  # kill, in its own namespace
    ],
)
def test_the_filter_looks_at_arguments(call, arguments, answer):
    assert verdict(seccomp_filter(machine="x86_64"), call, arguments) == answer


def test_the_filter_knows_the_processor_and_the_level():
    assert verdict(seccomp_filter(machine="x86_64"), 0, machine=0x40000003) == KILLED  # i386, by int 0x80
    assert verdict(seccomp_filter(machine="aarch64"), 63, machine=0xC00000B7) == ALLOWED
    assert verdict(seccomp_filter(machine="aarch64"), 63) == KILLED
    for call in (62, 234, 90, 91, 268, 280, 76):  # kill, tgkill, chmod and its kind
        assert verdict(seccomp_filter(namespaces=False, machine="x86_64"), call) == REFUSED


@pytest.mark.skipif(os.uname().machine != "x86_64", reason="system call numbers of x86_64")
@pytest.mark.parametrize("level", LEVELS)
def test_the_kernel_refuses_what_the_filter_refuses(level):
    """Every number that is not listed, up to where Linux will not be for years."""
    numbers = [number for number in range(700) if verdict(seccomp_filter(), number) == REFUSED]
    assert len(numbers) > 530
    numbers = sorted({*numbers} - {335, 336})  # uretprobe and uprobe, which Linux lets past any filter: they end a program
    code = "import ctypes\nlibc = ctypes.CDLL(None, use_errno=True)\n"
    code += f"print({{(libc.syscall(n, 0, 0, 0, 0, 0, 0), ctypes.get_errno()) for n in {numbers}}})"
    assert open_sandbox(level).run_python(code, timeout=20).stdout == "{(-1, 1)}\n"


def test_calls_of_32_bit_programs_end_the_program():
    if os.uname().machine != "x86_64":
        pytest.skip("int 0x80 is x86_64's")
    code = """
import ctypes, mmap
memory = mmap.mmap(-1, 4096, prot=7)
memory.write(bytes.fromhex("b802000000cd80c3"))  # mov eax, 2 (fork of i386); int 0x80; ret
print(ctypes.CFUNCTYPE(ctypes.c_int)(ctypes.addressof(ctypes.c_char.from_buffer(memory)))())
"""
    result = open_sandbox(LEVELS[0]).run_python(code)
    assert (result.stdout, result.exit_code) == ("", 128 + signal.SIGSYS)
