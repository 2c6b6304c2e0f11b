"""Which system calls a process may no longer make: seccomp filters, which its children inherit; standard library only.

The numbers are the kernel's, x86-64's and arm64's.
"""

from __future__ import annotations

import ctypes
import errno
import functools
import struct

from mft_eval.sandbox.system_calls import MACHINE, prctl

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterable
    from typing import Any

_ARCHITECTURES = {"x86_64": 0xC000003E, "aarch64": 0xC00000B7}
_X32 = 0x40000000
_LOAD, _JUMP_EQUAL, _JUMP_FROM, _JUMP_SET, _RETURN = 0x20, 0x15, 0x35, 0x45, 0x06
_NUMBER, _ARCHITECTURE, _FIRST_ARGUMENT = 0, 4, 16
_ALLOW, _ERROR, _KILL = 0x7FFF0000, 0x50000, 0x80000000
_PR_SET_SECCOMP, _FILTER_MODE = 22, 2
_NAMESPACE_FLAGS, _THREAD_FLAG = 0x7E020080, 0x10000
# Call -> its numbers on x86-64 and arm64; None where there is no such call.
_CALLS: dict[str, tuple[int | None, int | None]] = {
    "clone": (56, 220),
    "clone3": (435, 435),
    "fork": (57, None),
    "vfork": (58, None),
    # Namespaces, mounts and the kernel itself.
    "unshare": (272, 97),
    "setns": (308, 268),
    "mount": (165, 40),
    "umount2": (166, 39),
    "pivot_root": (155, 41),
    "chroot": (161, 51),
    "open_tree": (428, 428),
    "move_mount": (429, 429),
    "fsopen": (430, 430),
    "fsconfig": (431, 431),
    "fsmount": (432, 432),
    "fspick": (433, 433),
    "mount_setattr": (442, 442),
    "bpf": (321, 280),
    "perf_event_open": (298, 241),
    "userfaultfd": (323, 282),
    "io_uring_setup": (425, 425),
    "add_key": (248, 217),
    "request_key": (249, 218),
    "keyctl": (250, 219),
    "kexec_load": (246, 104),
    "init_module": (175, 105),
    "finit_module": (313, 273),
    "open_by_handle_at": (304, 265),
    # Other processes.
    "ptrace": (101, 117),
    "process_vm_readv": (310, 270),
    "process_vm_writev": (311, 271),
    "pidfd_getfd": (438, 438),
    "process_madvise": (440, 440),
    "kill": (62, 129),
    "tkill": (200, 130),
    "tgkill": (234, 131),
    "rt_sigqueueinfo": (129, 138),
    "rt_tgsigqueueinfo": (297, 240),
    "pidfd_send_signal": (424, 424),
    "prlimit64": (302, 261),
    "setpriority": (141, 140),
    "sched_setscheduler": (144, 119),
    "sched_setparam": (142, 118),
    "sched_setattr": (314, 274),
    "sched_setaffinity": (203, 122),
    "ioprio_set": (251, 30),
    "setsid": (112, 157),
    "setpgid": (109, 154),
    # Ways out to others.
    "socket": (41, 198),
    "shmget": (29, 194),
    "semget": (64, 190),
    "msgget": (68, 186),
    "mq_open": (240, 180),
    # What Landlock lets through: owners, modes, times and attributes of files.
    "chmod": (90, None),
    "fchmodat": (268, 53),
    "fchmodat2": (452, 452),
    "fchmod": (91, 52),
    "chown": (92, None),
    "lchown": (94, None),
    "fchownat": (260, 54),
    "fchown": (93, 55),
    "utime": (132, None),
    "utimes": (235, None),
    "futimesat": (261, None),
    "utimensat": (280, 88),
    "truncate": (76, 45),
    "setxattr": (188, 5),
    "lsetxattr": (189, 6),
    "fsetxattr": (190, 7),
    "setxattrat": (463, 463),
    "removexattr": (197, 14),
    "lremovexattr": (198, 15),
    "fremovexattr": (199, 16),
    "removexattrat": (466, 466),
    "file_setattr": (469, 469),
}
_KERNEL = frozenset(
    (
        *("unshare", "setns", "mount", "umount2", "pivot_root", "chroot", "open_tree", "move_mount", "fsopen"),
        *("fsconfig", "fsmount", "fspick", "mount_setattr", "bpf", "perf_event_open", "userfaultfd"),
        *("io_uring_setup", "add_key", "request_key", "keyctl", "kexec_load", "init_module", "finit_module"),
        *("open_by_handle_at", "ptrace", "process_vm_readv", "process_vm_writev", "pidfd_getfd", "process_madvise"),
    )
)
_OTHERS = frozenset(
    (
        *("socket", "shmget", "semget", "msgget", "mq_open", "setpriority", "sched_setscheduler", "sched_setparam"),
        *("sched_setattr", "sched_setaffinity", "ioprio_set"),
    )
)
SIGNALS = frozenset(("kill", "tkill", "tgkill", "rt_sigqueueinfo", "rt_tgsigqueueinfo", "pidfd_send_signal"))
_METADATA = frozenset(
    (
        *("chmod", "fchmodat", "fchmodat2", "fchmod", "chown", "lchown", "fchownat", "fchown", "utime", "utimes"),
        *("futimesat", "utimensat", "setxattr", "lsetxattr", "fsetxattr", "setxattrat", "removexattr", "lremovexattr"),
        *("fremovexattr", "removexattrat", "file_setattr", "setsid", "setpgid"),
    )
)
Instruction = tuple[int, int, int, int]


def is_known_machine() -> bool:
    """Whether the numbers of this machine's system calls are known."""
    return MACHINE in _ARCHITECTURES


def deny_kernel() -> None:
    """Takes away namespaces, mounts, the debugging of others and the kernel's rarer doors."""
    _install(_KERNEL, is_fork_denied=False)


def deny_others(more: Iterable[str] = ()) -> None:
    """Takes away what reaches other processes of the user where no namespace hides them: sockets, shared memory."""
    _install(_OTHERS | frozenset(more), is_fork_denied=False, is_limit_own=True)


def deny_children() -> None:
    """Takes away new processes, new sessions and the owners, modes and times of files; threads are let through."""
    _install(_METADATA, is_fork_denied=True)


def _install(names: frozenset[str], *, is_fork_denied: bool, is_limit_own: bool = False) -> None:
    _, head = _prepared(names, is_fork_denied=is_fork_denied, is_limit_own=is_limit_own)
    prctl(_PR_SET_SECCOMP, _FILTER_MODE, ctypes.c_char_p(head))


@functools.cache
def _prepared(names: frozenset[str], *, is_fork_denied: bool, is_limit_own: bool) -> tuple[Any, bytes]:
    """The instructions in memory that stays, and what the kernel is told of them."""
    instructions = _program(names, is_fork_denied=is_fork_denied, is_limit_own=is_limit_own)
    code = b"".join(struct.pack("<HBBI", *instruction) for instruction in instructions)
    held = ctypes.create_string_buffer(code, len(code))
    return held, struct.pack("@HP", len(instructions), ctypes.addressof(held))


def prepare() -> None:
    """Makes the filter of `deny_kernel` once, for all forks of this process."""
    _prepared(_KERNEL, is_fork_denied=False, is_limit_own=False)


def _program(
    names: Iterable[str], *, is_fork_denied: bool, is_limit_own: bool, machine: str = MACHINE
) -> list[Instruction]:
    found = [
        *((_LOAD, 0, 0, _ARCHITECTURE), (_JUMP_EQUAL, 1, 0, _ARCHITECTURES[machine]), (_RETURN, 0, 0, _KILL)),
        (_LOAD, 0, 0, _NUMBER),
    ]
    if machine == "x86_64":
        found += [(_JUMP_FROM, 0, 1, _X32), (_RETURN, 0, 0, _KILL)]
    # Its flags are out of a filter's sight; without it, libraries use clone.
    found += _refuse("clone3", errno.ENOSYS, machine)
    for name in sorted(names):
        found += _refuse(name, errno.EPERM, machine)
    if is_fork_denied:
        found += [*_refuse("fork", errno.EAGAIN, machine), *_refuse("vfork", errno.EAGAIN, machine)]
    if is_limit_own:
        # The limits of a process other than the caller, whose number is given first.
        found += [
            (_JUMP_EQUAL, 0, 4, _number("prlimit64", machine) or 0),
            *((_LOAD, 0, 0, _FIRST_ARGUMENT), (_JUMP_EQUAL, 1, 0, 0), (_RETURN, 0, 0, _ERROR | errno.EPERM)),
            (_RETURN, 0, 0, _ALLOW),
        ]
    found += [
        (_JUMP_EQUAL, 0, 5 if is_fork_denied else 3, _number("clone", machine) or 0),
        *((_LOAD, 0, 0, _FIRST_ARGUMENT), (_JUMP_SET, 0, 1, _NAMESPACE_FLAGS), (_RETURN, 0, 0, _ERROR | errno.EPERM)),
    ]
    if is_fork_denied:
        found += [(_JUMP_SET, 1, 0, _THREAD_FLAG), (_RETURN, 0, 0, _ERROR | errno.EAGAIN)]
    return [*found, (_RETURN, 0, 0, _ALLOW)]


def _refuse(name: str, number: int, machine: str) -> list[Instruction]:
    call = _number(name, machine)
    return [] if call is None else [(_JUMP_EQUAL, 0, 1, call), (_RETURN, 0, 0, _ERROR | number)]


def _number(name: str, machine: str) -> int | None:
    return _CALLS[name][list(_ARCHITECTURES).index(machine)]
