"""What runs inside the sandbox: loads the program, then does what the judge asks of it; standard library only.

Everything here shares an interpreter with the program, so nothing that it says is trusted: the judge on the other
end of the pipe takes from it values in the closed codec and, for a test that must run here, a nonce.
"""

from __future__ import annotations

import builtins
import os
import resource
import sys

from mft_eval.sandbox.beside import run_beside
from mft_eval.sandbox.call_filter import deny_children
from mft_eval.sandbox.program_side import ProgramSide
from mft_eval.sandbox.protocol import READY
from mft_eval.sandbox.script_host import run_scripts
from mft_eval.sandbox.walls import LANDLOCK, NAMESPACES
from mft_eval.wire.channel import read_frame, write_frame
from mft_eval.wire.codec import TooLargeError, decode, encode
from mft_eval.wire.peer import raised

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any

# Taken before any program could patch them.
_TRUSTED_BUILTINS = dict(vars(builtins))
TMPFS_BYTES = 64 * 2**20
_MAX_OPEN_FILES = 256


def main(incoming: int, outgoing: int, walls: str) -> None:
    """Serves the judge until it closes the pipe. Its first message has the limits and the program.

    Without a pid namespace a program may start no process: none could be told from others to be ended.
    """
    raise_own_wall = deny_children if walls == LANDLOCK else _raise_nothing
    write_frame(outgoing, READY)
    (kind, limits, *rest), _ = decode(read_frame(incoming), [])
    _limit(limits, is_counted=walls == NAMESPACES)
    # What bubblewrap and the interpreter said while starting was kept; what the program says goes nowhere.
    if limits["is_captured"]:
        os.dup2(2, 1)
        stdout: Any = sys.stdout
        stdout.reconfigure(line_buffering=True)
    else:
        os.dup2(0, 2)
    if kind == "script":
        run_scripts(incoming, outgoing, raise_own_wall, *rest)
    else:
        raise_own_wall()
        serve_program(incoming, outgoing, *rest)


def serve_program(incoming: int, outgoing: int, program: str, names: tuple[str, ...]) -> None:
    """Runs the program, then does what is asked of it until the pipe is closed."""
    module = type(sys)("program")
    sys.modules["program"] = module
    try:
        # Running the program is the purpose; the sandbox is around this process.
        exec(compile(program, "<program>", "exec", dont_inherit=True), vars(module))  # noqa: S102
    except BaseException as error:
        write_frame(outgoing, raised(0, error))
        return
    side = ProgramSide(incoming, outgoing)
    write_frame(outgoing, _loaded(vars(module), names, side))
    while True:
        try:
            message, objects = decode(read_frame(incoming), [], side)
        except EOFError:
            return
        if message[0] == "test":
            run_beside(module, _TRUSTED_BUILTINS, message, incoming, outgoing)
        else:
            side.serve(message, objects)


def _loaded(namespace: dict[str, Any], names: tuple[str, ...], side: ProgramSide) -> bytes:
    """The answer that the program is loaded: its values of `names`, but for those too large, which none may need."""
    found = {}
    for name in names:
        try:
            if name in namespace:
                encode(namespace[name], [], is_exact=False, handles=side)
                found[name] = namespace[name]
        except TooLargeError:
            continue
    try:
        return encode(("returned", 0, found, ()), [], is_exact=False, handles=side)[0]
    except BaseException as error:
        return raised(0, error)


def _raise_nothing() -> None:
    """The walls around the whole are enough, or there are to be none."""


def _limit(limits: dict[str, Any], *, is_counted: bool) -> None:
    kinds = {
        # Some runtimes reserve far more of the address space than they ever use.
        getattr(resource, limits["memory_limit"]): limits["memory_bytes"],
        resource.RLIMIT_CPU: limits["cpu_seconds"],
        resource.RLIMIT_FSIZE: TMPFS_BYTES,
        resource.RLIMIT_NOFILE: _MAX_OPEN_FILES,
        resource.RLIMIT_CORE: 0,
    }
    if is_counted:
        # Elsewhere all the user's processes would count.
        kinds[resource.RLIMIT_NPROC] = limits["num_processes"]
    for kind, limit in kinds.items():
        resource.setrlimit(kind, (limit, limit))
