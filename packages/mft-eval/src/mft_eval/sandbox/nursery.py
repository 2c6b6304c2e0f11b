"""A warm process that sandboxes are forked from, each behind walls of its own; standard library only.

It knows no test and no program. Whoever started it sends a message for each sandbox, with the descriptors of its pipes,
of its stderr, of where its exit status is written, and of /proc; the answer carries a descriptor of the sandbox's first
process. Nothing is started twice from the same process, and nothing of a sandbox comes back into the nursery.
"""

from __future__ import annotations

import contextlib
import gc
import os
import signal
import socket
import sys

from mft_eval.sandbox import call_filter, file_rules, program_host, system_calls
from mft_eval.sandbox.protocol import NOT_STARTED, NUM_DESCRIPTORS, STARTED
from mft_eval.sandbox.rehearsal import rehearse
from mft_eval.sandbox.walls import LANDLOCK, NAMESPACES, NONE

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable

_UNPRIVILEGED_ID = 65534
# What programs import most, so that none has to load it.
_PRELOADED = ("bisect", "collections", "copy", "functools", "heapq", "itertools", "math", "operator", "re", "typing")


def main() -> None:
    """Starts sandboxes until whoever asks for them is gone. Its arguments: the kind of walls, and readable folders."""
    walls, *readable = sys.argv[1:]
    control = socket.socket(fileno=os.dup(0))
    null = os.open(os.devnull, os.O_RDWR)
    os.dup2(null, 0)
    os.dup2(null, 1)
    os.close(null)
    system_calls.end_with_parent(signal.SIGKILL)
    for name in _PRELOADED:
        __import__(name)
    call_filter.prepare()
    sys.argv[1:] = []
    rehearse()
    # Ended sandboxes are nobody's business.
    signal.signal(signal.SIGCHLD, signal.SIG_IGN)
    gc.collect()
    gc.freeze()
    while True:
        message, descriptors, _, _ = socket.recv_fds(control, 1, NUM_DESCRIPTORS)
        if not message:
            # Nothing is left to be tidied up.
            os._exit(0)
        for descriptor in descriptors:
            # No program that the host starts is to have them.
            os.set_inheritable(descriptor, False)
        _start(control, descriptors, walls, readable)
        for descriptor in descriptors:
            os.close(descriptor)


def _start(control: socket.socket, descriptors: list[int], walls: str, readable: list[str]) -> None:
    noise = descriptors[2]
    try:
        child = system_calls.clone_into_namespaces() if walls == NAMESPACES else os.fork()
    except OSError as error:
        os.write(noise, f"the sandbox's namespaces: {error.strerror}\n".encode())
        control.send(NOT_STARTED)
        return
    if child == 0:
        try:
            control.close()
            _KEEPERS[walls](descriptors, readable)
        except BaseException as error:
            os.write(noise, f"{type(error).__name__}: {error}\n".encode())
        finally:
            os._exit(1)
    try:
        process = os.pidfd_open(child)
    except ProcessLookupError:
        control.send(NOT_STARTED)
        return
    socket.send_fds(control, [STARTED], [process])
    os.close(process)


def _keep_namespaces(descriptors: list[int], _: list[str]) -> None:
    """The life of the first process of new namespaces: when it ends, everything in them does."""
    status, processes = descriptors[3:]
    if os.getpid() != 1:
        raise OSError("no pid namespace")
    system_calls.end_with_parent(signal.SIGKILL)
    # Only who is nobody outside may set who is who inside; no further user namespace may be made.
    _write_proc(processes, "self/setgroups", "deny")
    for name in ("self/uid_map", "self/gid_map"):
        _write_proc(processes, name, f"{_UNPRIVILEGED_ID} {_UNPRIVILEGED_ID} 1")
    # Where /proc/sys is closed, the filter of system calls denies them all the same.
    with contextlib.suppress(OSError):
        _write_proc(processes, "sys/user/max_user_namespaces", "0")
    os.close(processes)
    system_calls.mount_tmpfs("/tmp", program_host.TMPFS_BYTES)  # noqa: S108
    os.chdir("/tmp")  # noqa: S108
    system_calls.forgo_privileges()
    system_calls.drop_capabilities()
    call_filter.deny_kernel()
    os.setsid()
    host = _fork_host(descriptors[:4], NAMESPACES, lambda: None)
    _await(host, status)


def _keep_landlock(descriptors: list[int], readable: list[str]) -> None:
    """Without namespaces: the process beside the sandbox that ends everything in it and clears its folder away."""
    version = file_rules.landlock_version()

    def raise_walls() -> None:
        system_calls.forgo_privileges()
        system_calls.drop_capabilities()
        file_rules.restrict_files(version, readable, os.getcwd())  # noqa: PTH109
        call_filter.deny_kernel()
        call_filter.deny_others(file_rules.calls_let_through(version))

    _keep_folder(descriptors, LANDLOCK, raise_walls)


def _keep_nothing(descriptors: list[int], _: list[str]) -> None:
    """No walls: the program may do whatever the user may."""
    _keep_folder(descriptors, NONE, lambda: None)


def _keep_folder(descriptors: list[int], walls: str, raise_walls: Callable[[], None]) -> None:
    # A nursery of namespaces does without them, and so do all of its forks.
    import shutil
    import tempfile

    status = descriptors[3]
    os.close(descriptors[4])
    # Until there is something to clear away.
    signal.pthread_sigmask(signal.SIG_BLOCK, [signal.SIGTERM])
    system_calls.end_with_parent(signal.SIGTERM)
    signal.signal(signal.SIGCHLD, signal.SIG_DFL)
    folder = tempfile.mkdtemp(prefix="mft-eval-")
    os.environ["HOME"] = os.environ["TMPDIR"] = folder
    os.chdir(folder)

    def clear(*_: object) -> None:
        signal.signal(signal.SIGTERM, signal.SIG_IGN)
        _end_group(host)
        for place, names, _files in os.walk(folder):
            for name in names:
                # A folder that the program has closed even to itself.
                if not os.path.islink(path := f"{place}/{name}"):  # noqa: PTH114
                    os.chmod(path, 0o700)  # noqa: PTH101
        shutil.rmtree(folder, ignore_errors=True)
        os._exit(0)

    signal.signal(signal.SIGTERM, clear)
    host = _fork_host(descriptors[:4], walls, raise_walls)
    signal.pthread_sigmask(signal.SIG_UNBLOCK, [signal.SIGTERM])
    _await(host, status)
    clear()


def _end_group(host: int) -> None:
    for end in (os.killpg, os.kill):
        try:
            end(host, signal.SIGKILL)
        except ProcessLookupError:
            continue


def _fork_host(descriptors: list[int], walls: str, raise_walls: Callable[[], None]) -> int:
    """The process that runs the program."""
    incoming, outgoing, noise, status = descriptors
    signal.signal(signal.SIGCHLD, signal.SIG_DFL)
    host = os.fork()
    if host:
        for descriptor in descriptors[:3]:
            os.close(descriptor)
        return host
    try:
        os.dup2(noise, 2)
        os.close(noise)
        os.close(status)
        if walls != NAMESPACES:
            os.setsid()
            signal.signal(signal.SIGTERM, signal.SIG_DFL)
            signal.pthread_sigmask(signal.SIG_UNBLOCK, [signal.SIGTERM])
        raise_walls()
        program_host.main(incoming, outgoing, walls)
        os._exit(0)
    except BaseException as error:
        os.write(2, f"{type(error).__name__}: {error}\n".encode())
    finally:
        os._exit(1)


def _await(host: int, status: int) -> None:
    """Waits for the program's process, whoever ends before it, and tells its exit status."""
    signal.signal(signal.SIGINT, signal.SIG_DFL)
    while True:
        ended, found = os.wait()
        if ended == host:
            break
    code = os.waitstatus_to_exitcode(found)
    os.write(status, str(128 - code if code < 0 else code).encode())


def _write_proc(processes: int, name: str, text: str) -> None:
    descriptor = os.open(name, os.O_WRONLY, dir_fd=processes)
    try:
        os.write(descriptor, text.encode())
    finally:
        os.close(descriptor)


_KEEPERS = {NAMESPACES: _keep_namespaces, LANDLOCK: _keep_landlock, NONE: _keep_nothing}
