"""A program of our own that a nursery serves before any other: what it loads and specializes its forks need not.

Standard library only.
"""

from __future__ import annotations

import os
import sys

from mft_eval.sandbox.program_host import serve_program
from mft_eval.wire.channel import write_frame
from mft_eval.wire.codec import encode

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any

PROGRAM = "def f(x, *rest):\n    return [x, str(x), (x / 2, {x: True}), *rest]\n"
# The interpreter specializes code that has run a few times.
NUM_CALLS = 16


class _Function:
    """Stands for the program's function, the first thing that it hands over."""

    number = 0

    def hand_over(self, value: Any) -> tuple[bytes, int, str]:
        """The number of the function."""
        return b"y", value.number, ""

    def take(self, tag: bytes, number: int, label: str) -> Any:
        """Raises: nothing is read here."""
        raise NotImplementedError


def rehearse() -> None:
    """Serves the program as a host does, over pipes that hold all questions at once; nobody reads the answers."""
    incoming, questions = os.pipe()
    answers, outgoing = os.pipe()
    for number in range(1, NUM_CALLS + 1):
        operands = (_Function(), (number, ["a", 1.5], None), {})
        question = ("ask", number, "call", operands)
        write_frame(questions, encode(question, [], is_exact=True, handles=_Function())[0])
    os.close(questions)
    serve_program(incoming, outgoing, PROGRAM, ("f",))
    for descriptor in (incoming, answers, outgoing):
        os.close(descriptor)
    del sys.modules["program"]
