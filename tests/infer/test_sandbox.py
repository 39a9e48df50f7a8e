"""The sandbox against attacks: each program tries something, and prints ESCAPED only where it succeeded."""

import os
import shutil
import socket
import subprocess
import sys
import threading
import time

import pytest

from nutshell.infer.cgroup import parent_group
from nutshell.infer.sandbox import DISK, LEVELS, Sandbox, SandboxError, _probe
from nutshell.infer.seccomp import ALLOWED, seccomp_filter

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="the sandbox is made of Linux's parts")

CALL = """
import ctypes, os
libc = ctypes.CDLL(None, use_errno=True)
def call(number, *arguments):
    result = libc.syscall(number, *[ctypes.c_long(a) if isinstance(a, int) else a for a in arguments])
    if result == -1:
        raise OSError(ctypes.get_errno(), os.strerror(ctypes.get_errno()))
    return result
"""
X86 = pytest.mark.skipif(os.uname().machine != "x86_64", reason="system call numbers of x86_64")


def system_call(number: int, *arguments: object) -> str:
    return CALL + f"call({', '.join(map(repr, (number, *arguments)))}); print('ESCAPED')"


# Each prints ESCAPED where it gets what it wants.
ATTACKS = {
    # network
    "tcp to the host": "import socket; socket.create_connection(('127.0.0.1', PORT), 2); print('ESCAPED')",
    "udp": "import socket; socket.socket(2, 2).sendto(b'x', ('127.0.0.1', 9)); print('ESCAPED')",
    "ipv6": "import socket; socket.socket(10, 1).connect(('::1', PORT)); print('ESCAPED')",
    "abstract unix socket": "import socket; s = socket.socket(1, 1); s.connect('\\0nutshell-PID'); print('ESCAPED')",
    "abstract socket from a datagram pair": "import socket; a, b = socket.socketpair(1, 2); a.sendto(b'x', '\\0nutshell-PID')\n"
    "print('ESCAPED')",
    "netlink": "import socket; socket.socket(16, 3, 0); print('ESCAPED')",
    "packet socket": "import socket; socket.socket(17, 3, 3); print('ESCAPED')",
    "vsock": "import socket; socket.socket(40, 1); print('ESCAPED')",
    "kernel crypto socket": "import socket; socket.socket(38, 5); print('ESCAPED')",
    "name lookup": "import socket; print(socket.gethostbyname('localhost'), 'ESCAPED')",
    "listen": "import socket; socket.create_server(('', 0)); print('ESCAPED')",
    # files
    "shadow": "print(open('/etc/shadow').read(), 'ESCAPED')",
    "passwd": "print(open('/etc/passwd').read(), 'ESCAPED')",
    "homes": "import os; print(os.listdir('/root'), os.listdir('/home'), 'ESCAPED')",
    "the caller's folder": "import os; print(os.listdir(CWD), 'ESCAPED')",
    "a secret in the host's /tmp": "print(open(SECRET).read(), 'ESCAPED')",
    "leave by dots": "print(open('../' * 40 + SECRET[1:]).read(), 'ESCAPED')",
    "symlink to a secret": "import os; os.symlink(SECRET, 'x'); print(open('x').read(), 'ESCAPED')",
    "hard link to the interpreter": "import os, sys; os.link(sys.executable, '/tmp/py'); print('ESCAPED')",
    "overwrite the interpreter": "import sys; open(sys.executable, 'r+b').write(b'x'); print('ESCAPED')",
    "replace the interpreter": "import os, sys; os.rename('/tmp/program.py', sys.executable); print('ESCAPED')",
    "overwrite the library": "import os; open(os.__file__, 'a').write('x'); print('ESCAPED')",
    "leave a pyc behind": "import os; os.makedirs(os.path.dirname(os.__file__) + '/__pycache__/x'); print('ESCAPED')",
    "write to the root": "open('/x', 'w'); print('ESCAPED')",
    "write to /dev": "open('/dev/x', 'w'); print('ESCAPED')",
    "shared memory left behind": "open('/dev/shm/x', 'w'); print('ESCAPED')",
    "disk": "import os; print(sorted(os.listdir('/dev'))); open('/dev/vda', 'rb'); print('ESCAPED')",
    "memory of the kernel": "open('/dev/mem', 'rb'); print('ESCAPED')",
    "terminal": "open('/dev/tty'); print('ESCAPED')",
    "make a device": "import os; os.mknod('/tmp/null', 0o20666, os.makedev(1, 3)); print('ESCAPED')",
    "make a pipe in the file system": "import os; os.mkfifo('/tmp/pipe'); print('ESCAPED')",
    "setuid file": "import os; open('x', 'w'); os.chmod('x', 0o4755); os.chown('x', 0, 0); print('ESCAPED')",
    "extended attributes": "import os; os.setxattr('/tmp', 'trusted.x', b'1'); print('ESCAPED')",
    "kernel settings": "open('/proc/sys/kernel/core_pattern', 'w').write('|/tmp/x'); print('ESCAPED')",
    "other processes in /proc": "print(open('/proc/1/environ').read(), open('/proc/PID/environ').read(), 'ESCAPED')",
    "control groups": "import os; os.mkdir('/sys/fs/cgroup/x'); print('ESCAPED')",
    "a shell": "import os; os.execv('/bin/sh', ['sh', '-c', 'echo ESCAPED'])",
    "chroot": "import os; os.chroot('/tmp'); print('ESCAPED')",
    "open by handle": system_call(304, -100, b"\0" * 32, 0),
    # processes and signals
    "fork": "import os\nif os.fork() == 0: print('ESCAPED')",
    "vfork": system_call(58),
    "clone without thread": system_call(56, 17, 0, 0, 0, 0),
    "clone3": system_call(435, b"\0" * 88, 88),
    "spawn": "import os, sys; os.posix_spawn(sys.executable, ['py', '-c', 'print(\"ESCAPED\")'], {})",
    "subprocess": "import subprocess, sys; print(subprocess.check_output([sys.executable, '-c', 'print(\"ESCAPED\")']))",
    "kill the caller": "import os; os.kill(PID, 9); print('ESCAPED')",
    "kill everything": "import os; os.kill(-1, 9); os.killpg(PID, 9); print('ESCAPED')",
    "stop the parent": "import os; os.kill(os.getppid(), 19); os.kill(os.getppid(), 9); import time; time.sleep(.05)\n"
    "if os.getppid() not in (0, 1): print('ESCAPED')",
    "signal by owner of a descriptor": "import fcntl, os; fcntl.fcntl(0, fcntl.F_SETOWN, PID); print('ESCAPED')",
    "session of its own": "import os; os.setsid(); print('ESCAPED')",
    "ptrace": system_call(101, 16, os.getpid(), 0, 0),
    "memory of another process": system_call(310, os.getpid(), 0, 0, 0, 0, 0),
    "pidfd": "import os; os.pidfd_open(1); print('ESCAPED')",
    "descriptor of another process": system_call(438, 3, 0, 0),
    "limits of another process": "import resource; resource.prlimit(PID, 7, (1, 1)); print('ESCAPED')",
    "raise a limit": "import resource; resource.setrlimit(resource.RLIMIT_AS, (-1, -1)); print('ESCAPED')",
    "priority": "import os; os.setpriority(0, 0, -20); print('ESCAPED')",
    "scheduler": "import os; os.sched_setscheduler(0, 1, os.sched_param(50)); print('ESCAPED')",
    "become root": "import os; os.setuid(0); print('ESCAPED')",
    "become root by resuid": "import os; os.setresuid(0, 0, 0); print('ESCAPED')",
    # the kernel
    "mount": system_call(165, b"none", b"/tmp", b"tmpfs", 0, 0),
    "new mount interface": system_call(428, -100, b"/", 0),
    "unmount": system_call(166, b"/tmp", 2),
    "user namespace": system_call(272, 0x10000000),
    "user namespace by clone": system_call(56, 0x10000011, 0, 0, 0, 0),
    "enter a namespace": system_call(308, 0, 0),
    "keys": system_call(250, 0, -3, 0),
    "add a key": system_call(248, b"user", b"x", b"x", 1, -3),
    "bpf": system_call(321, 0, 0, 0),
    "io_uring": system_call(425, 8, b"\0" * 120),
    "perf": system_call(298, b"\0" * 120, 0, -1, -1, 0),
    "userfaultfd": system_call(323, 1),
    "fanotify": system_call(300, 0, 0),
    "kernel module": system_call(313, 0, b"", 0),
    "reboot": system_call(169, 0xFEE1DEAD, 672274793, 0),
    "swap": system_call(168, b"/tmp/x"),
    "ports of the machine": system_call(173, 0, 1, 1),
    "kernel log": system_call(103, 3, b"\0" * 99, 99),
    "host name": "import socket; socket.sethostname('x'); print('ESCAPED')",
    "clock": "import time; time.clock_settime(0, 0); print('ESCAPED')",
    "clock of old": system_call(164, b"\0" * 16, 0),
    "another seccomp filter": system_call(317, 1, 0, b"\0" * 16),
    "core dumps and death signals": system_call(157, 4, 1, 0, 0, 0),
    "hidden file in memory": "import os; os.memfd_create('x'); print('ESCAPED')",
    "secret memory": system_call(447, 0),
    "System V memory": system_call(29, 1, 1 << 20, 0o1777),
    "System V semaphore": system_call(64, 1, 1, 0o1777),
    "message queue": system_call(68, 1, 0o1777),
    "POSIX message queue": system_call(240, b"x", 0o102, 0o666, 0),
    "type into the terminal": "import fcntl\nfor n in range(3): fcntl.ioctl(n, 0x5412, b'x'); print('ESCAPED')",
    "x32 calls": system_call(0x40000000 + 41, 2, 1, 0),
    "lock memory": system_call(151, 3),
    # what was inherited
    "environment": "import os\nif os.environ.keys() - {'HOME', 'PWD', 'LC_CTYPE', 'LD_LIBRARY_PATH'}: print('ESCAPED')",
    "descriptors": "import os\nfor n in range(3, 4096):\n try: os.fstat(n); print('ESCAPED', n)\n except OSError: pass",
    "stdin can be written": "import os; os.write(0, b'x'); print('ESCAPED')",
    "stdin can be mapped and written": "import mmap; mmap.mmap(0, 4)[0] = 1; print('ESCAPED')",
    "read back what was printed": "import os; print('x', flush=True); os.read(1, 1); print('ESCAPED')",
    "the job and its secrets": "import sys; print([n for n in sys._getframe(1).f_locals if n == 'token'] and 'ESCAPED')",
    # resources
    "open files": "files = [open('/dev/null') for _ in range(200)]; print('ESCAPED')",
    "threads": "import threading as t, time\nfor _ in range(200): t.Thread(target=time.sleep, args=(9,), daemon=True).start()\n"
    "print('ESCAPED')",
    "disk fill": "for n in range(DISK // 2**20 + 2): open(f'{n}', 'wb').write(b'x' * 2**20)\nprint('ESCAPED')",
    "one big file": "f = open('x', 'wb')\nfor _ in range(DISK // 2**20 + 2): f.write(b'x' * 2**20)\nprint('ESCAPED')",
    "sparse file": "open('x', 'wb').truncate(1 << 40); print('ESCAPED')",
    "memory": "x = bytearray(1 << 33); print('ESCAPED')",
    "memory in pieces": "x = [bytes(1 << 20) for _ in range(1000)]; print('ESCAPED')",
    "memory mapped and shared": "import mmap; x = mmap.mmap(-1, 1 << 32); print('ESCAPED')",
    "huge power of ten": "x = 1 << (1 << 36); print('ESCAPED')",
    "recursion": "import sys; sys.setrecursionlimit(10**9)\ndef f(n): return f(n + 1) + 1\nf(0); print('ESCAPED')",
    "segmentation fault": "import ctypes; ctypes.string_at(0); print('ESCAPED')",
    "illegal instruction": "import mmap, ctypes; m = mmap.mmap(-1, 4096, prot=7); m.write(b'\\x0f\\x0b')\n"
    "ctypes.CFUNCTYPE(None)(ctypes.addressof(ctypes.c_char.from_buffer(m)))(); print('ESCAPED')",
    "abort": "import os; os.abort()",
}
ONLY_X86 = [name for name, code in ATTACKS.items() if code.startswith(CALL)]


def open_or_skip(level):
    problem = _probe(level)
    if problem:
        pytest.skip(f"the level {level} does not work here: {problem}")
    return Sandbox.open(level)


@pytest.fixture(scope="module", params=LEVELS)
def sandbox(request):
    return open_or_skip(request.param)


@pytest.fixture(scope="module")
def outside(tmp_path_factory):
    """What an escape would find: an open port, an abstract socket, a file that everybody can read."""
    secret = tmp_path_factory.mktemp("outside") / "secret"
    secret.write_text("s3cret")
    with socket.create_server(("127.0.0.1", 0)) as server, socket.socket(socket.AF_UNIX) as abstract:
        abstract.bind(f"\0nutshell-{os.getpid()}")
        abstract.listen()
        values = {"PORT": str(server.getsockname()[1]), "PID": str(os.getpid()), "DISK": str(DISK)}
        yield {**values, "SECRET": repr(str(secret)), "CWD": repr(os.getcwd())}


def aimed(code: str, outside: dict[str, str]) -> str:
    for word, value in outside.items():
        code = code.replace(word, value)
    return code


@pytest.mark.parametrize("name", [pytest.param(name, marks=X86) if name in ONLY_X86 else name for name in ATTACKS])
@pytest.mark.parametrize("level", [LEVELS[0], pytest.param(LEVELS[1], marks=pytest.mark.slow)])
def test_stops(level, outside, name):
    sandbox = open_or_skip(level)
    code = aimed(ATTACKS[name], outside)
    result = sandbox.run_python(code, stdin="0123456789", timeout=10, memory=64 << 20)
    assert "ESCAPED" not in result.stdout, result
    assert result.level.startswith(sandbox.level)
    if name in ("environment", "descriptors", "the job and its secrets", "stop the parent"):
        assert result.exit_code == 0 or name == "stop the parent", result
    else:
        assert result.status in ("error", "killed", "memory"), result
        assert not any(mistake in result.stderr for mistake in ("SyntaxError", "NameError")), result


@X86
def test_stops_many_in_one_program(sandbox, outside):
    """All that is refused and not fatal, so that every level is tried quickly."""
    names = list(ATTACKS)[: list(ATTACKS).index("read back what was printed")]
    codes = [aimed(ATTACKS[name], outside) for name in names]
    program = f"for code in {codes!r}:\n    try: exec(code, {{}})\n    except Exception: pass\nprint('the end')"
    result = sandbox.run_python(program, stdin="0123456789", timeout=20)
    assert result.stdout.splitlines()[-1] == "the end", result
    assert "ESCAPED" not in result.stdout


@pytest.mark.parametrize(
    ("code", "status"),
    [
        ("while True: pass", "timeout"),
        ("import time; time.sleep(60)", "timeout"),
        ("import signal, time\nfor n in range(1, 65):\n try: signal.signal(n, 1)\n except (OSError, ValueError): pass\n"
         "time.sleep(60)", "timeout"),
        ("import os, time; os.close(1); os.close(2); time.sleep(60)", "timeout"),
        ("x = 10 ** 10 ** 8", "timeout"),
        ("import re; re.match('(a+)+$', 'a' * 60 + 'b')", "timeout"),
        ("import atexit, time; atexit.register(time.sleep, 60)", "timeout"),
        ("input()\nwhile True: input()", "error"),
        ("while True: print('x' * 1000)", "output"),
        ("import os\nwhile True: os.write(2, b'x' * 4096)", "output"),
        ("import sys; sys.stdout.write('x' * 10**7)", "output"),
        ("import os; os.kill(os.getpid(), 9)", "killed"),
        ("raise MemoryError", "memory"),
    ],
)  # fmt: skip
def test_ends_in_time(sandbox, code, status):
    start = time.monotonic()
    result = sandbox.run_python(code, timeout=3 if status == "output" else 0.3, output_limit=10_000)
    assert result.status == status
    assert time.monotonic() - start < 3
    assert len(result.stdout) <= 10_000
    assert len(result.stderr) <= 10_000


@pytest.mark.parametrize(
    ("code", "stdout"),
    [
        ("print(input()[::-1], input())", "olleh Grüße\n"),
        ("import sys; print(len(sys.stdin.read()))", "12\n"),
        ("print('Grüße, 世界 🥜')", "Grüße, 世界 🥜\n"),
        ("import tempfile\nwith tempfile.TemporaryFile('w+') as f: print(f.write('x' * 10**6), f.seek(0), len(f.read()))",
         "1000000 0 1000000\n"),
        ("import os, shutil; os.makedirs('a/b'); open('a/b/c', 'w').write('1'); shutil.copytree('a', 'd')\n"
         "print(os.listdir('d/b'))",
         "['c']\n"),
        ("import threading as t; r = []; w = [t.Thread(target=r.append, args=(n,)) for n in range(8)]\n"
         "[x.start() for x in w]; [x.join() for x in w]; print(sorted(r))", "[0, 1, 2, 3, 4, 5, 6, 7]\n"),
        ("from concurrent.futures import ThreadPoolExecutor as P\nprint(list(P(4).map(abs, [-1, 2])))", "[1, 2]\n"),
        ("import asyncio\nasync def f(): await asyncio.sleep(0.01); return 5\nprint(asyncio.run(f()))", "5\n"),
        ("import array, bisect, collections, csv, datetime, decimal, fractions, functools, hashlib, heapq, itertools, json\n"
         "import math, operator, queue, random, re, sqlite3, statistics, string, textwrap, typing, unittest, uuid, zlib\n"
         "print(hashlib.md5(b'').hexdigest()[:4])",
         "d41d\n"),
        ("import pickle\nclass A: pass\nprint(type(pickle.loads(pickle.dumps(A()))) is A, __name__)", "True __main__\n"),
        ("import dataclasses as d\n@d.dataclass\nclass A:\n  x: 'int' = 3\nprint(A())", "A(x=3)\n"),
        ("import sys; print(sys.argv, __file__)", "['/tmp/program.py'] /tmp/program.py\n"),
        ("print(sum(i * i for i in range(10**5)))", "333328333350000\n"),
        ("import datetime; print(datetime.datetime.now().year > 2000)", "True\n"),
        ("import sqlite3; c = sqlite3.connect('x.db'); c.execute('create table t(a)'); c.commit(); print('made')", "made\n"),
        ("def f(n): return n and f(n - 1)\nprint(f(900))", "0\n"),
        ("", ""),
    ],
)  # fmt: skip
def test_correct_programs_work(sandbox, code, stdout):
    result = sandbox.run_python(code, stdin="hello\nGrüße\n", timeout=10)
    assert (result.stdout, result.stderr, result.status, result.exit_code) == (stdout, "", "ok", 0)


@pytest.mark.parametrize(
    ("code", "exit_code"), [("raise SystemExit(7)", 7), ("exit(3)", 3), ("import os; os._exit(9)", 9), ("quit()", 0)]
)
def test_exit_codes(sandbox, code, exit_code):
    result = sandbox.run_python(code)
    assert result.exit_code == exit_code
    assert result.status == ("error" if exit_code else "ok")


def test_a_traceback_shows_the_program_alone(sandbox):
    result = sandbox.run_python("def f(x):\n    return 1 / x\n\nf(0)")
    lines = result.stderr.splitlines()
    assert lines[0] == "Traceback (most recent call last):"
    assert lines[-1] == "ZeroDivisionError: division by zero"
    assert [line for line in lines if "File" in line] == [
        '  File "/tmp/program.py", line 4, in <module>',
        '  File "/tmp/program.py", line 2, in f',
    ]
    assert "SyntaxError" in sandbox.run_python("def f(:").stderr


def children():
    return subprocess.run(["ps", "-o", "pid=", "--ppid", str(os.getpid())], capture_output=True, text=True).stdout.split()


@pytest.mark.skipif(shutil.which("ps") is None, reason="ps is not installed")
def test_nothing_is_left_behind(sandbox, tmp_path, monkeypatch):
    """No child, descriptor, file, process of the run's kind or thread, however a program ends."""
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    before = (os.listdir("/proc/self/fd"), threading.active_count(), len(children()))
    marked = "import time; open('left', 'w'); marker = 'nutshell-marker'\n"
    for code in ("print(1)", "time.sleep(60)", "1/0", "while 1: print('x' * 999)", "import os; os.abort()"):
        sandbox.run_python(marked + code, timeout=0.3, output_limit=1000)
        assert (os.listdir("/proc/self/fd"), threading.active_count(), len(children())) == before
        assert os.listdir(tmp_path) == []
        assert not parent_group() or not list(parent_group().glob(f"nutshell-{os.getpid()}-*"))
    alive = subprocess.run(["ps", "-eo", "args"], capture_output=True, text=True).stdout
    assert "marshal.load(open(" not in alive


@pytest.mark.parametrize("code", ["print('\ud800')", "x = '\0'", "#" * (DISK + 1), "\ud800"])
def test_text_that_is_no_program_is_the_programs_fault(sandbox, code):
    assert sandbox.run_python(code).status == "error"


def test_input_of_any_kind_is_read(sandbox):
    assert sandbox.run_python("import sys; print(len(sys.stdin.buffer.read()))", stdin="\ud800\0\n").stdout == "5\n"
    assert sandbox.run_python("print(len(input()))", stdin="x" * 10**7, memory=256 << 20).stdout == "10000000\n"


def test_a_control_group_counts_what_the_kernel_holds(sandbox, monkeypatch):
    if parent_group() is None:
        pytest.skip("no control group with a limit of memory can be made here")
    monkeypatch.setattr("nutshell.infer.sandbox.KERNEL", 0)
    monkeypatch.setattr("nutshell.infer.sandbox.DISK", 1 << 20)
    result = sandbox.run_python("n = 0\nwhile True: open(str(n) + 'x' * 200, 'w').close(); n += 1", memory=24 << 20, timeout=10)
    assert result.level == sandbox.level + "+cgroup"
    assert result.status == ("memory" if sandbox.level == "bubblewrap" else "error")  # the other one limits the number of files


def test_runs_do_not_see_each_other(sandbox):
    """Eight at once, each with its own folder, none disturbed by another's threads or death."""
    results = []
    code = "import os, time, threading\nopen(str({n}), 'w'); time.sleep(0.1); print(sorted(os.listdir()))\n"
    greedy = "for _ in range(25): threading.Thread(target=time.sleep, args=(0.2,)).start()\n"

    def run(n):
        results.append((n, sandbox.run_python(code.format(n=n) + (greedy if n % 2 else ""), timeout=10)))

    threads = [threading.Thread(target=run, args=(n,)) for n in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    for n, result in results:
        assert (result.stdout, result.status) == (f"{[str(n), 'program.py']}\n", "ok"), result


def test_a_broken_sandbox_is_an_error_and_no_result(sandbox, monkeypatch):
    monkeypatch.setattr("nutshell.infer.sandbox._mounts", lambda: [("/no/such/library", "/usr/lib")])
    with pytest.raises(SandboxError, match="did not start"):
        sandbox.run_python("print(1)")


def test_what_is_printed_cannot_pass_for_a_broken_sandbox(sandbox):
    result = sandbox.run_python("import sys; print('bwrap: no', file=sys.stderr); sys.exit(1)")
    assert result.status == "error"
    assert result.exit_code == 1


def test_levels_by_name(monkeypatch):
    with pytest.raises(ValueError, match="Accepted: auto, bubblewrap, namespaces, landlock, limits"):
        Sandbox.open("jail")
    _probe.cache_clear()
    monkeypatch.setattr("nutshell.infer.sandbox.shutil.which", lambda name: None)
    with pytest.raises(SandboxError, match=r"bwrap is not installed.*apt-get install bubblewrap"):
        Sandbox.open("bubblewrap")
    monkeypatch.setattr("nutshell.infer.sandbox._probe", lambda level: "" if level in ("landlock", "limits") else "not here")
    with pytest.raises(SandboxError, match="not here"):
        Sandbox.open()
    assert Sandbox.open("limits").level == "limits"
    _probe.cache_clear()


@pytest.mark.parametrize(
    "wrong", [{"timeout": 0}, {"memory": -1}, {"output_limit": 0}, {"timeout": float("nan")}, {"timeout": float("inf")}]
)
def test_limits_that_make_no_sense(wrong):
    with pytest.raises(ValueError, match="Accepted: above 0"):
        Sandbox("bubblewrap").run_python("", **wrong)


def test_the_filter_is_for_known_processors_only():
    with pytest.raises(ValueError, match="Accepted: x86_64, aarch64"):
        seccomp_filter(machine="riscv64")
    for column, machine in enumerate(("x86_64", "aarch64")):
        numbers = [row[column] for row in ALLOWED.values() if row[column] >= 0]
        assert len(set(numbers)) == len(numbers)
        assert len(seccomp_filter(machine=machine)) % 8 == 0
