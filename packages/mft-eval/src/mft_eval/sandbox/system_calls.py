"""System calls that the standard library has no function for; standard library only."""

from __future__ import annotations

import ctypes
import os
import signal

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any

# Without giving up the interpreter's lock: a new process that comes back from clone has no other thread.
_LIBC = ctypes.PyDLL(None, use_errno=True)
# User, mount, pid, network, ipc, uts and cgroup namespaces of one's own.
_NEW_NAMESPACES = 0x10000000 | 0x20000 | 0x20000000 | 0x40000000 | 0x8000000 | 0x4000000 | 0x2000000
_CLONE = {"x86_64": 56, "aarch64": 220}
_CAPSET = {"x86_64": 126, "aarch64": 91}
_CAPABILITY_VERSION = 0x20080522
_PR_SET_PDEATHSIG, _PR_SET_NO_NEW_PRIVS = 1, 38
_MS_NOSUID_NODEV = 2 | 4
MACHINE = os.uname().machine


def call(number: int, *arguments: Any) -> int:
    """The result of a system call; raises OSError where it fails. An int is passed as a long."""
    given = [ctypes.c_long(item) if isinstance(item, int) else item for item in arguments]
    return _checked(_LIBC.syscall(ctypes.c_long(number), *given))


def prctl(option: int, *arguments: Any) -> int:
    """The result of prctl; raises OSError where it fails."""
    given = [ctypes.c_ulong(item) if isinstance(item, int) else item for item in arguments]
    return _checked(_LIBC.prctl(option, *given, *[ctypes.c_ulong(0)] * (4 - len(given))))


def _checked(result: int) -> int:
    if result < 0:
        number = ctypes.get_errno()
        raise OSError(number, os.strerror(number))
    return result


def clone_into_namespaces() -> int:
    """Forks; the child, which gets 0, is the first process of namespaces of its own, with every capability there."""
    flags = _NEW_NAMESPACES | signal.SIGCHLD
    return call(_CLONE[MACHINE], flags, 0, 0, 0, 0)


def mount_tmpfs(path: str, num_bytes: int) -> None:
    """Mounts an empty file system of limited size that everyone may write to."""
    options = f"size={num_bytes},mode=1777".encode()
    _checked(_LIBC.mount(b"tmpfs", path.encode(), b"tmpfs", ctypes.c_ulong(_MS_NOSUID_NODEV), options))


def end_with_parent(number: int) -> None:
    """Has the kernel send this process a signal when its parent ends."""
    prctl(_PR_SET_PDEATHSIG, number)


def forgo_privileges() -> None:
    """No program that this process becomes has more rights than it has: a set-user-id bit counts for nothing."""
    prctl(_PR_SET_NO_NEW_PRIVS, 1)


def drop_capabilities() -> None:
    """Gives up every capability; for good, where `forgo_privileges` came before."""
    header = (ctypes.c_uint32 * 2)(_CAPABILITY_VERSION, 0)
    call(_CAPSET[MACHINE], ctypes.byref(header), ctypes.byref((ctypes.c_uint32 * 6)()))
