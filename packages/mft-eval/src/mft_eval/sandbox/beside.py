"""A test that must run beside the program, in its interpreter; standard library only."""

from __future__ import annotations

import sys

from mft_eval.sandbox.protocol import NONCE_BYTES
from mft_eval.wire.channel import read_exactly, write_frame
from mft_eval.wire.codec import encode

TYPE_CHECKING = False
if TYPE_CHECKING:
    from types import ModuleType
    from typing import Any


def run_beside(
    module: ModuleType, trusted_builtins: dict[str, Any], message: tuple[Any, ...], incoming: int, outgoing: int
) -> None:
    """Runs the test over the program's own objects, and sends the nonce back only after its last line."""
    _, number, preamble, entry_point, names, test = message
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
        names = tuple(kind.__name__ for kind in type(error).__mro__)
        write_frame(outgoing, encode(("failed", number, names, is_from_test), [], is_exact=False)[0])
    else:
        # The nonce waited in the pipe, not in this process's memory, while the program's functions ran.
        write_frame(outgoing, read_exactly(incoming, NONCE_BYTES))
