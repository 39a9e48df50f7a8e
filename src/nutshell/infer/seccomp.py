"""The system calls that model-written Python may make, as a seccomp filter: everything that is not listed is refused.

`seccomp_filter()` is a classic BPF program (Linux `Documentation/userspace-api/seccomp_filter.rst`) for `bwrap --seccomp FD` or
`prctl(PR_SET_SECCOMP)`. A list of what is allowed also stops what nobody thought of, and system calls that Linux gains later.
A refused call fails with EPERM, so the program sees `PermissionError` and may go on.

No process can be made (a thread can), no socket but a connected pair, no memory that the limit of the address space misses
(memfd, System V shared memory), nothing that changes namespaces, mounts, clocks, keys or other processes.
"""

from __future__ import annotations

import errno
import platform
import struct

# name: (number on x86_64, number on aarch64), from asm/unistd_64.h and asm-generic/unistd.h; -1 where there is none
ALLOWED = {
    # files
    "read": (0, 63), "write": (1, 64), "readv": (19, 65), "writev": (20, 66), "pread64": (17, 67), "pwrite64": (18, 68),
    "open": (2, -1), "openat": (257, 56), "close": (3, 57), "close_range": (436, 436), "stat": (4, -1), "fstat": (5, 80),
    "lstat": (6, -1), "newfstatat": (262, 79), "statx": (332, 291), "statfs": (137, 43), "fstatfs": (138, 44),
    "access": (21, -1), "faccessat": (269, 48), "faccessat2": (439, 439), "lseek": (8, 62), "readlink": (89, -1),
    "readlinkat": (267, 78), "getdents64": (217, 61), "getcwd": (79, 17), "chdir": (80, 49), "fchdir": (81, 50),
    "mkdir": (83, -1), "mkdirat": (258, 34), "rmdir": (84, -1), "unlink": (87, -1), "unlinkat": (263, 35),
    "rename": (82, -1), "renameat": (264, 38), "renameat2": (316, 276), "link": (86, -1), "linkat": (265, 37),
    "symlink": (88, -1), "symlinkat": (266, 36), "ftruncate": (77, 46), "fsync": (74, 82),
    "fdatasync": (75, 83), "umask": (95, 166), "getxattr": (191, 8), "lgetxattr": (192, 9), "fgetxattr": (193, 10),
    "listxattr": (194, 11), "llistxattr": (195, 12), "flistxattr": (196, 13), "dup": (32, 23),
    "dup2": (33, -1), "dup3": (292, 24), "pipe": (22, -1),
    "pipe2": (293, 59), "sendfile": (40, 71), "copy_file_range": (326, 285), "fadvise64": (221, 223),
    # waiting, and what an asyncio event loop needs
    "poll": (7, -1), "ppoll": (271, 73), "select": (23, -1), "pselect6": (270, 72), "epoll_create1": (291, 20),
    "epoll_ctl": (233, 21), "epoll_wait": (232, -1), "epoll_pwait": (281, 22), "eventfd2": (290, 19),
    "sendto": (44, 206), "recvfrom": (45, 207), "shutdown": (48, 210), "getsockname": (51, 204), "getsockopt": (55, 209),
    # memory and threads
    "mmap": (9, 222), "munmap": (11, 215), "mremap": (25, 216), "mprotect": (10, 226), "madvise": (28, 233),
    "brk": (12, 214), "futex": (202, 98), "set_tid_address": (218, 96), "set_robust_list": (273, 99), "rseq": (334, 293),
    "arch_prctl": (158, -1), "membarrier": (324, 283), "sched_yield": (24, 124), "sched_getaffinity": (204, 123),
    # itself; the pid namespace hides every other process
    "execve": (59, 221), "exit": (60, 93), "exit_group": (231, 94), "getpid": (39, 172), "getppid": (110, 173),
    "gettid": (186, 178), "getuid": (102, 174), "geteuid": (107, 175), "getgid": (104, 176), "getegid": (108, 177),
    "getresuid": (118, 148), "getresgid": (120, 150), "getgroups": (115, 158), "getpgrp": (111, -1), "getpgid": (121, 155),
    "getsid": (124, 156), "getrusage": (98, 165), "getrlimit": (97, 163), "uname": (63, 160),
    "wait4": (61, 260), "getrandom": (318, 278),
    # dropping rights before the program starts; they cannot be won back
    "setgroups": (116, 159), "setresuid": (117, 147), "setresgid": (119, 149),
    # signals and time
    "rt_sigaction": (13, 134), "rt_sigprocmask": (14, 135), "rt_sigreturn": (15, 139), "rt_sigpending": (127, 136),
    "rt_sigsuspend": (130, 133), "rt_sigtimedwait": (128, 137), "sigaltstack": (131, 132), "restart_syscall": (219, 128),
    "alarm": (37, -1), "pause": (34, -1), "setitimer": (38, 103), "getitimer": (36, 102), "nanosleep": (35, 101),
    "clock_nanosleep": (230, 115), "clock_gettime": (228, 113), "clock_getres": (229, 114), "gettimeofday": (96, 169),
    "time": (201, -1), "times": (100, 153),
}  # fmt: skip
# Where no namespace hides what is outside: signals would reach other processes, and Landlock does not cover these calls on files.
IN_NAMESPACES = {
    "kill": (62, 129), "tgkill": (234, 131), "chmod": (90, -1), "fchmod": (91, 52), "fchmodat": (268, 53), "utimensat": (280, 88),
    "truncate": (76, 45),
}  # fmt: skip
CLONE, CLONE3, SOCKETPAIR, IOCTL, FCNTL, PRLIMIT = (56, 220), (435, 435), (53, 199), (16, 29), (72, 25), (302, 261)

CLONE_THREAD = 0x10000
AF_UNIX, SOCK_STREAM, SOCK_TYPE_MASK = 1, 1, 0xF
IOCTLS = (0x5401, 0x541B, 0x5421, 0x5450, 0x5451)  # TCGETS, FIONREAD, FIONBIO, FIONCLEX, FIOCLEX: none changes a terminal
# F_SETOWN, F_SETOWN_EX: signals to another process; F_SETLEASE, F_NOTIFY: on files of others; F_SETPIPE_SZ: the kernel's memory
FCNTLS_REFUSED = (8, 15, 1024, 1026, 1031)

ARCHITECTURES = {"x86_64": (0, 0xC000003E), "aarch64": (1, 0xC00000B7)}  # column above, AUDIT_ARCH of linux/audit.h
NUMBER, ARCHITECTURE, ARGUMENT = 0, 4, 16  # byte offsets in struct seccomp_data; an argument has 8 bytes, its low half first
LOAD, AND, JUMP_EQUAL, RETURN = 0x20, 0x54, 0x15, 0x06
ALLOW, REFUSE, KILL = 0x7FFF0000, 0x00050000, 0x80000000


def seccomp_filter(namespaces: bool = True, machine: str = "") -> bytes:
    """The filter as `struct sock_filter[]`; without `namespaces`, for the level that has none, it refuses a few calls more.

    ValueError on a processor whose system calls have no numbers here.
    """
    machine = machine or platform.machine()
    if machine not in ARCHITECTURES:
        raise ValueError(f"no system call numbers for {machine}. Accepted: {', '.join(ARCHITECTURES)}.")
    column, audit = ARCHITECTURES[machine]
    refuse, no_such_call = REFUSE | errno.EPERM, REFUSE | errno.ENOSYS
    # Another architecture's calls (32-bit ones through int 0x80) have other numbers: such a program ends.
    program = [_step(LOAD, ARCHITECTURE), _step(JUMP_EQUAL, audit, 1, 0), _step(RETURN, KILL), _step(LOAD, NUMBER)]
    for numbers in [*ALLOWED.values(), *(IN_NAMESPACES.values() if namespaces else ())]:
        if numbers[column] >= 0:
            program += _when(numbers[column], [_step(RETURN, ALLOW)])
    # glibc makes threads by clone3, whose flags a filter cannot see; "no such call" makes it use clone.
    program += _when(CLONE3[column], [_step(RETURN, no_such_call)])
    thread = [_step(LOAD, ARGUMENT), _step(AND, CLONE_THREAD), _step(JUMP_EQUAL, 0, 1, 0), _step(RETURN, ALLOW)]
    program += _when(CLONE[column], [*thread, _step(RETURN, refuse)])
    pair = [_step(LOAD, ARGUMENT), _step(JUMP_EQUAL, AF_UNIX, 0, 4), _step(LOAD, ARGUMENT + 8), _step(AND, SOCK_TYPE_MASK)]
    pair += [_step(JUMP_EQUAL, SOCK_STREAM, 0, 1), _step(RETURN, ALLOW)]
    program += _when(SOCKETPAIR[column], [*pair, _step(RETURN, refuse)])
    known = [step for request in IOCTLS for step in _when(request, [_step(RETURN, ALLOW)])]
    program += _when(IOCTL[column], [_step(LOAD, ARGUMENT + 8), *known, _step(RETURN, refuse)])
    owners = [step for command in FCNTLS_REFUSED for step in _when(command, [_step(RETURN, refuse)])]
    program += _when(FCNTL[column], [_step(LOAD, ARGUMENT + 8), *owners, _step(RETURN, ALLOW)])
    own_limits = [_step(LOAD, ARGUMENT), *_when(0, [_step(RETURN, ALLOW)])]  # not those of another process
    program += _when(PRLIMIT[column], [*own_limits, _step(RETURN, refuse)])
    return b"".join([*program, _step(RETURN, refuse)])


def _step(code: int, value: int, if_true: int = 0, if_false: int = 0) -> bytes:
    """One instruction; a jump skips `if_true` or `if_false` of those that follow."""
    return struct.pack("=HBBI", code, if_true, if_false, value)


def _when(value: int, then: list[bytes]) -> list[bytes]:
    """Do `then` where the loaded value is `value`, else go on behind it."""
    return [_step(JUMP_EQUAL, value, 0, len(then)), *then]
