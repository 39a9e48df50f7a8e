"""What runs inside the sandbox, before the program: give up rights, set limits, say that it is ready, run the program.

`sandbox.py` hands this file, compiled, and a job to a bare `python -I -S`, which calls `main(job)`. The job: level, folder,
program, limits (of `resource`, by name), uid, ready (the descriptor to report on), and, where this process makes its own walls,
what to mount and the seccomp filter. Every import costs milliseconds of each run, so ctypes is loaded only where it is needed.
"""

import _thread
import builtins
import os
import resource
import sys
from sys import argv

MS_RDONLY, MS_NOSUID, MS_NODEV, MS_REMOUNT, MS_BIND, MS_REC, MS_PRIVATE, MNT_DETACH = 1, 2, 4, 32, 4096, 16384, 1 << 18, 2
CLONE_NEWNS, CLONE_NEWUTS, CLONE_NEWIPC, CLONE_NEWUSER = 0x20000, 0x4000000, 0x8000000, 0x10000000
CLONE_NEWPID, CLONE_NEWNET = 0x20000000, 0x40000000
PR_SET_PDEATHSIG, PR_SET_SECCOMP, PR_SET_NO_NEW_PRIVS, SECCOMP_MODE_FILTER = 1, 22, 38, 2
SYS_CAPSET, SYS_PIVOT_ROOT = {"x86_64": (126, 155), "aarch64": (91, 41)}.get(os.uname().machine, (-1, -1))
LANDLOCK_CREATE_RULESET, LANDLOCK_ADD_RULE, LANDLOCK_RESTRICT_SELF = 444, 445, 446
LANDLOCK_RIGHTS = {1: 13, 2: 14, 3: 15, 4: 15, 5: 16}  # ABI: how many rights over files it knows (linux/landlock.h)
LANDLOCK_READ = 0b1101  # execute, read a file, read a folder


def call(name, *arguments):
    """A function of libc; OSError where it returns -1. Numbers travel as longs, as `syscall` and `prctl` want them."""
    import ctypes

    libc = ctypes.CDLL(None, use_errno=True)
    result = getattr(libc, name)(*[ctypes.c_long(a) if isinstance(a, int) else a for a in arguments])
    if result == -1:
        number = ctypes.get_errno()
        raise OSError(number, f"{name}: {os.strerror(number)}")
    return result


def enter_namespaces(job):
    """Own mounts, processes, network, IPC and host name; returns in the process that will be the program."""
    uid, gid = os.getuid(), os.getgid()
    spaces = CLONE_NEWNS | CLONE_NEWUTS | CLONE_NEWIPC | CLONE_NEWPID | CLONE_NEWNET
    call("unshare", spaces if uid == 0 else spaces | CLONE_NEWUSER)
    if uid != 0:
        for name, line in (("setgroups", "deny"), ("uid_map", f"{uid} {uid} 1"), ("gid_map", f"{gid} {gid} 1")):
            with open(f"/proc/self/{name}", "w") as file:
                file.write(line)
    die_with(job["parent"])
    mount_root(job)
    for _ in range(2):  # the first child is pid 1 of its namespace: it reaps, and its end is the end of all
        pid = os.fork()
        if pid:
            for number in (0, job["ready"]):
                os.close(number)
            status = os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])
            os._exit(status if status >= 0 else 128 - status)
        call("prctl", PR_SET_PDEATHSIG, 9, 0, 0, 0)


def die_with(parent):
    """Be killed when the process that waits for us is. To be called after a change of user, which undoes it."""
    call("prctl", PR_SET_PDEATHSIG, 9, 0, 0, 0)
    if os.getppid() != parent:  # it died just before
        os._exit(1)


def mount_root(job):
    """A root folder that holds what the job lists, read-only, and a small folder to write to."""
    root = job["folder"].encode()  # its mount is seen in this namespace only
    call("mount", None, b"/", None, MS_REC | MS_PRIVATE, None)
    call("mount", b"tmpfs", root, b"tmpfs", MS_NOSUID | MS_NODEV, b"size=1m,mode=0755")
    for source, target in job["mounts"]:
        target = root + target.encode()
        if os.path.isdir(source):
            os.makedirs(target, exist_ok=True)
        else:
            os.makedirs(os.path.dirname(target), exist_ok=True)
            open(target, "w").close()
        device = 0 if source.startswith("/dev/") else MS_NODEV
        call("mount", source.encode(), target, None, MS_BIND, None)
        call("mount", None, target, None, MS_BIND | MS_REMOUNT | MS_RDONLY | MS_NOSUID | device, None)
    for source, target in job["links"]:
        os.symlink(source, root.decode() + target)
    os.mkdir(root + b"/tmp")
    call("mount", b"tmpfs", root + b"/tmp", b"tmpfs", MS_NOSUID | MS_NODEV, b"mode=0777,nr_inodes=4096,size=%d" % job["disk"])
    os.chdir(root)
    sys.path[:] = job["path"]
    call("syscall", SYS_PIVOT_ROOT, b".", b".")
    call("umount2", b".", MNT_DETACH)  # the old root lies over the new one
    call("mount", None, b"/", None, MS_BIND | MS_REMOUNT | MS_RDONLY | MS_NOSUID | MS_NODEV, None)
    job["folder"] = "/tmp"


def drop_rights(uid):
    """Be nobody in particular where this is root."""
    if uid and os.getuid() == 0:
        os.setgroups([])
        os.setresgid(uid, uid, uid)
        os.setresuid(uid, uid, uid)


def drop_capabilities():
    """Hold no capability, and gain none by what is executed."""
    import ctypes

    header, none = (ctypes.c_uint32 * 2)(0x20080522, 0), (ctypes.c_uint32 * 6)()  # _LINUX_CAPABILITY_VERSION_3
    call("syscall", SYS_CAPSET, header, none)
    call("prctl", PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0)


def restrict_files(readable, writable):
    """Landlock: read below `readable`, everything below `writable`; no TCP, no signal and no abstract socket to outsiders."""
    import ctypes

    abi = call("syscall", LANDLOCK_CREATE_RULESET, None, 0, 1)
    rights = (1 << LANDLOCK_RIGHTS.get(abi, 16)) - 1
    wishes = (ctypes.c_uint64 * 3)(rights, 3 if abi >= 4 else 0, 3 if abi >= 6 else 0)
    rules = call("syscall", LANDLOCK_CREATE_RULESET, wishes, 24 if abi >= 6 else 16 if abi >= 4 else 8, 0)
    for path, granted in [*((path, LANDLOCK_READ) for path in readable), (writable, rights)]:
        if not os.path.isdir(path):
            granted &= 0b111 | 1 << 14 | 1 << 15  # what a file can have: execute, write, read, truncate, ioctl
        folder = os.open(path, os.O_PATH | os.O_CLOEXEC)
        rule = granted.to_bytes(8, sys.byteorder) + folder.to_bytes(4, sys.byteorder)
        call("syscall", LANDLOCK_ADD_RULE, rules, 1, rule, 0)
        os.close(folder)
    call("syscall", LANDLOCK_RESTRICT_SELF, rules, 0)
    os.close(rules)


def filter_calls(program):
    """Load a seccomp filter into this process."""
    import ctypes

    class Program(ctypes.Structure):  # struct sock_fprog
        _fields_ = [("length", ctypes.c_ushort), ("steps", ctypes.c_char_p)]

    call("prctl", PR_SET_SECCOMP, SECCOMP_MODE_FILTER, ctypes.byref(Program(len(program) // 8, program)), 0, 0)


def prepare(job):
    """Everything before the program."""
    level = job["level"]
    if level == "namespaces":
        enter_namespaces(job)
    drop_rights(job["uid"])
    if level in ("landlock", "limits") and sys.platform == "linux":
        die_with(job["parent"])
    if level in ("namespaces", "landlock"):
        drop_capabilities()
        restrict_files(["/"] if level == "namespaces" else [source for source, _ in job["mounts"]], job["folder"])
    for name, value in job["limits"].items():
        hard = resource.getrlimit(getattr(resource, name))[1]
        value = value if hard == resource.RLIM_INFINITY else min(value, hard)
        resource.setrlimit(getattr(resource, name), (value, value))
    os.chdir(job["folder"])
    if job["filter"]:
        filter_calls(job["filter"])
    os.write(job["ready"], b"1")
    os.close(job["ready"])


def main(job):
    """Run the program as `__main__`; what fails from here on is its own fault."""
    prepare(job)
    path = os.path.join(job["folder"], "program.py")
    with open(path, "w", encoding="utf-8", errors="replace") as file:  # for tracebacks and `inspect`
        file.write(job["program"])
    builtins.exit = builtins.quit = sys.exit  # type: ignore[assignment]  # as `site` would have it
    sys.excepthook = report
    argv[:] = [path]
    _thread.stack_size(1 << 20)  # 8 MB each would be most of the memory
    sys.modules["__main__"] = module = type(sys)("__main__")
    module.__file__ = path
    exec(compile(job["program"], path, "exec"), module.__dict__)


def report(kind, error, trace):
    """Print an uncaught exception without the two frames that lie above the program."""
    for _ in range(2):
        trace = trace and trace.tb_next
    sys.__excepthook__(kind, error.with_traceback(trace), trace)
