"""What runs inside the sandbox: loads the program, then calls its functions or runs a test; standard library only.

Everything here shares an interpreter with the program, so nothing that it says is trusted: the judge on the other
end of the pipe takes from it values in the closed codec and, for a test that must run here, a nonce.
"""

import builtins
import os
import resource
import sys
import types
from typing import Any

from mft_eval.wire.channel import read_exactly, read_frame, write_frame
from mft_eval.wire.codec import CannotCrossError, TooLargeError, contents, decode, encode

READY = b"ready"
NONCE_BYTES = 32
TMPFS_BYTES = 64 * 2**20
_MAX_PROCESSES = 16
_MAX_OPEN_FILES = 256


def main() -> None:
    """Serves the judge until it closes the pipe; the arguments are the limits: bytes of memory, seconds of CPU."""
    memory_bytes, cpu_seconds = map(int, sys.argv[1:])
    incoming, outgoing = _take_pipe()
    _limit(memory_bytes, cpu_seconds)
    write_frame(outgoing, READY)
    source = read_frame(incoming).decode("utf-8", "surrogatepass")
    trusted_builtins = dict(vars(builtins))
    module = types.ModuleType("program")
    sys.modules["program"] = module
    try:
        # Running the program is the purpose; the sandbox is around this process.
        exec(compile(source, "<program>", "exec", dont_inherit=True), vars(module))  # noqa: S102
    except BaseException as error:
        _send(outgoing, ("raised", 0, _type_names(error)))
        return
    _send(outgoing, ("loaded", 0))
    while True:
        try:
            request, objects = decode(read_frame(incoming), [])
        except EOFError:
            return
        if request[0] == "call":
            write_frame(outgoing, _call(vars(module), request, objects))
        else:
            _run_test(module, trusted_builtins, request, incoming, outgoing)


def _take_pipe() -> tuple[int, int]:
    """The descriptors from and to the judge, moved away from stdin and stdout, which become empty."""
    incoming, outgoing = os.dup(0), os.dup(1)
    null = os.open(os.devnull, os.O_RDWR)
    for standard in (0, 1):
        os.dup2(null, standard)
    return incoming, outgoing


def _limit(memory_bytes: int, cpu_seconds: int) -> None:
    limits = {
        resource.RLIMIT_AS: memory_bytes,
        resource.RLIMIT_CPU: cpu_seconds,
        resource.RLIMIT_FSIZE: TMPFS_BYTES,
        resource.RLIMIT_NPROC: _MAX_PROCESSES,
        resource.RLIMIT_NOFILE: _MAX_OPEN_FILES,
        resource.RLIMIT_CORE: 0,
    }
    for kind, limit in limits.items():
        resource.setrlimit(kind, (limit, limit))
    # What bubblewrap and the interpreter said while starting went to the judge; what the program says goes nowhere.
    os.dup2(0, 2)


def _send(outgoing: int, message: tuple[Any, ...]) -> None:
    write_frame(outgoing, encode(message, [], is_exact=False)[0])


def _type_names(error: BaseException) -> tuple[str, ...]:
    return tuple(kind.__name__ for kind in type(error).__mro__)


def _call(namespace: dict[str, Any], request: tuple[Any, ...], objects: list[Any]) -> bytes:
    """The encoded reply to one call: what it returned and what its mutable arguments hold now, or what it raised."""
    _, number, name, arguments, keywords = request
    try:
        if name not in namespace:
            raise NameError(name)
        result = namespace[name](*arguments, **keywords)
        reply = ("returned", number, result, tuple(contents(container) for container in objects))
        return encode(reply, objects, is_exact=False)[0]
    except CannotCrossError as error:
        reply = ("cannot-cross", number, str(error))
    except TooLargeError:
        reply = ("too-large", number)
    except BaseException as error:
        reply = ("raised", number, _type_names(error))
    return encode(reply, [], is_exact=False)[0]


def _run_test(
    module: types.ModuleType,
    trusted_builtins: dict[str, Any],
    request: tuple[Any, ...],
    incoming: int,
    outgoing: int,
) -> None:
    """Runs the test here, over the program's own objects, and sends the nonce back only after its last line."""
    _, number, preamble, entry_point, names, test = request
    namespace = {"__name__": "test", "__builtins__": trusted_builtins}
    try:
        if entry_point not in vars(module):
            raise NameError(entry_point)
        exec(compile(preamble, "<preamble>", "exec", dont_inherit=True), namespace)  # noqa: S102
        for name in names:
            if name == entry_point or (name in vars(module) and name not in namespace):
                namespace[name] = getattr(module, name)
        sys.settrace(None)
        sys.setprofile(None)
        exec(compile(test, "<test>", "exec", dont_inherit=True), namespace)  # noqa: S102
    except BaseException as error:
        frame = error.__traceback__
        while frame is not None and frame.tb_next is not None:
            frame = frame.tb_next
        is_from_test = frame is not None and frame.tb_frame.f_code.co_filename == "<test>"
        _send(outgoing, ("failed", number, _type_names(error), is_from_test))
    else:
        # The nonce waited in the pipe, not in this process's memory, while the program's functions ran.
        write_frame(outgoing, read_exactly(incoming, NONCE_BYTES))
