"""Which files a process may no longer reach: Landlock rules, which its children inherit; standard library only."""

from __future__ import annotations

import ctypes
import os
import stat
import struct

from mft_eval.sandbox.call_filter import SIGNALS
from mft_eval.sandbox.system_calls import call

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterable

_CREATE, _ADD, _RESTRICT = 444, 445, 446
_ASK_VERSION, _PATH_BENEATH = 1, 1
_EXECUTE, _WRITE, _READ, _READ_DIR = 1, 2, 4, 8
_TRUNCATE, _DEVICES = 1 << 14, 1 << 15
_READING = _EXECUTE | _READ | _READ_DIR
_ON_FILES = _EXECUTE | _WRITE | _READ | _TRUNCATE | _DEVICES
# From the version on that is named, the kernel can also deny these: version -> rights over files.
_RIGHTS = {1: (1 << 13) - 1, 2: 1 << 13, 3: _TRUNCATE, 5: _DEVICES}
_TCP_VERSION, _SCOPE_VERSION = 4, 6
_TCP, _SCOPES = 3, 3
_DEVICE_FILES = ("/dev/null", "/dev/zero", "/dev/random", "/dev/urandom")


def landlock_version() -> int:
    """The version of Landlock that the kernel speaks; 0 where it has none."""
    try:
        return call(_CREATE, 0, 0, _ASK_VERSION)
    except OSError:
        return 0


def calls_let_through(version: int) -> frozenset[str]:
    """The system calls that this version of Landlock cannot keep from reaching others."""
    signals = SIGNALS if version < _SCOPE_VERSION else frozenset[str]()
    return signals | ({"truncate"} if version < min(v for v, right in _RIGHTS.items() if right == _TRUNCATE) else set())


def restrict_files(version: int, readable: Iterable[str], writable: str) -> None:
    """Leaves this process the files below `readable` to read and those below `writable`, and a few devices.

    Where the kernel can, signals and abstract sockets reach no process outside, and TCP none at all.
    """
    handled = sum(right for first, right in _RIGHTS.items() if first <= version)
    fields = [handled, _TCP if version >= _TCP_VERSION else 0, _SCOPES if version >= _SCOPE_VERSION else 0]
    num_fields = 3 if version >= _SCOPE_VERSION else 2 if version >= _TCP_VERSION else 1
    attributes = struct.pack(f"<{num_fields}Q", *fields[:num_fields])
    rules = call(_CREATE, ctypes.c_char_p(attributes), len(attributes), 0)
    allowed = [*((path, _READING) for path in readable), *((path, _READ | _WRITE) for path in _DEVICE_FILES)]
    for path, rights in [*allowed, (writable, handled)]:
        place = os.open(path, os.O_PATH | os.O_CLOEXEC)
        kept = rights & handled & (-1 if stat.S_ISDIR(os.fstat(place).st_mode) else _ON_FILES)
        call(_ADD, rules, _PATH_BENEATH, ctypes.c_char_p(struct.pack("<Qi", kept, place)), 0)
        os.close(place)
    call(_RESTRICT, rules, 0)
    os.close(rules)
