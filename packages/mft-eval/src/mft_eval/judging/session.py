"""The judge's end of the pipe to a sandboxed program: its functions as proxies; standard library only."""

import builtins
import signal
import subprocess
from typing import Any, NoReturn

from mft_eval.wire.channel import read_frame, write_frame
from mft_eval.wire.codec import CannotCrossError, GarbageError, TooLargeError, decode, encode, refill

_NOT_RAISED = (
    # A test that iterates over calls would take these for the end of the iteration, and skip its assertions.
    StopIteration,
    StopAsyncIteration,
    # Cannot be made without the exceptions that it holds.
    ExceptionGroup,
)


class VerdictReached(BaseException):
    """Ends the test at once; out of reach of a test's `except Exception`."""


class ProgramError(Exception):
    """Stands for an exception of the program whose type the judge has no counterpart for."""


class Session:
    """One sandboxed program and the pipe to it; `ending` is the (verdict, detail) that a fatal event has fixed."""

    def __init__(self, process: subprocess.Popen[bytes]) -> None:
        self.process = process
        self.num_calls = 0
        self.last_error: Exception | None = None
        self.last_error_name = ""
        self.ending: tuple[str, str] | None = None

    def ended(self, verdict: str, detail: str) -> VerdictReached:
        """Fixes the ending, and is what the caller raises."""
        self.ending = self.ending or (verdict, detail)
        return VerdictReached()

    def refused(self, what: str) -> VerdictReached:
        return self.ended("refused", f"wrote to the judge's pipe: {what}")

    def exchange(self, payload: bytes) -> bytes:
        """The program's answer to `payload`; ends the session when the pipe breaks or carries garbage."""
        try:
            write_frame(self.process.stdin.fileno(), payload)
            return read_frame(self.process.stdout.fileno())
        except GarbageError as error:
            raise self.refused(str(error)) from None
        except (EOFError, BrokenPipeError):
            raise self.ended(*process_ending(self.process)) from None

    def ask(self, payload: bytes, objects: list[Any], number: int) -> tuple[Any, ...]:
        """The decoded answer, checked to be a tuple that answers message `number`."""
        try:
            answer, _ = decode(self.exchange(payload), objects)
        except GarbageError as error:
            raise self.refused(str(error)) from None
        except MemoryError:
            raise self.ended("refused", "a value too large for the judge") from None
        if type(answer) is not tuple or len(answer) < 2 or answer[1] != number:
            raise self.refused("not an answer")
        return answer

    def load(self, program: str) -> None:
        answer = self.ask(program.encode("utf-8", "surrogatepass"), [], 0)
        if answer[0] == "raised":
            names = self._names(answer)
            raise self.ended("out-of-memory" if names[0] == "MemoryError" else "exception", names[0])
        if answer != ("loaded", 0):
            raise self.refused("not an answer")

    def call(self, name: str, arguments: tuple[Any, ...], keywords: dict[str, Any]) -> Any:
        """What the program's function returns, its mutable arguments updated in place; or raises what it raised."""
        if self.ending:
            raise VerdictReached
        self.num_calls += 1
        number = self.num_calls
        try:
            payload, objects = encode(("call", number, name, arguments, keywords), [], is_exact=True)
        except CannotCrossError as error:
            raise self.ended("needs-inside", f"argument of type {error}") from None
        except TooLargeError:
            raise self.ended("refused", "an argument too large for the codec") from None
        answer = self.ask(payload, objects, number)
        match answer:
            case ("returned", _, result, updates) if type(updates) is tuple and len(updates) == len(objects):
                self._refill_all(objects, updates)
                return result
            case ("cannot-cross", _, str(kind)):
                raise self.ended("result-cannot-cross", kind[:80])
            case ("too-large", _):
                raise self.ended("refused", "a result too large for the codec")
            case ("raised", _, _):
                raise self._counterpart(self._names(answer))
        raise self.refused("not an answer")

    def _refill_all(self, objects: list[Any], updates: tuple[Any, ...]) -> None:
        try:
            for container, items in zip(objects, updates, strict=True):
                refill(container, items)
        except GarbageError as error:
            raise self.refused(str(error)) from None

    def _names(self, answer: tuple[Any, ...]) -> tuple[str, ...]:
        names = answer[2] if len(answer) > 2 else ()
        if type(names) is not tuple or not names or not all(type(name) is str for name in names):
            raise self.refused("not an answer")
        return tuple(name[:80] for name in names)

    def _counterpart(self, names: tuple[str, ...]) -> BaseException:
        """What to raise here for an exception of the program whose type and base types are called `names`."""
        if "Exception" not in names:
            return self.ended("exception", names[0])
        kinds = [getattr(builtins, name, None) for name in names]
        kind = next(kind for kind in kinds if isinstance(kind, type) and issubclass(kind, Exception))
        if issubclass(kind, _NOT_RAISED):
            kind = ProgramError
        # Past __init__, which for some types (UnicodeDecodeError) wants arguments.
        self.last_error = kind.__new__(kind)
        self.last_error_name = names[0]
        return self.last_error


class Proxy:
    """Stands in the test for a function of the program; anything but a call needs the program's own object."""

    def __init__(self, session: Session, name: str) -> None:
        self._session = session
        self._name = name

    def __call__(self, *arguments: Any, **keywords: Any) -> Any:
        return self._session.call(self._name, arguments, keywords)

    def _need(self, *_: Any) -> NoReturn:
        raise self._session.ended("needs-inside", f"an object of the program, {self._name}")

    __getattr__ = __instancecheck__ = __subclasscheck__ = _need


def process_ending(process: subprocess.Popen[bytes]) -> tuple[str, str]:
    """The verdict on a program whose process is gone, or has closed the pipe."""
    try:
        status = process.wait(timeout=1)
    except subprocess.TimeoutExpired:
        return "killed", "closed the judge's pipe"
    if status <= 128:
        return "killed", f"left with status {status}"
    number = status - 128
    if number == signal.SIGXCPU:
        return "timeout", "CPU time"
    known = {item.value: item.name for item in signal.Signals}
    return "killed", known.get(number, f"signal {number}")
