"""The judge's end of the pipe to a sandboxed program: what a test may learn from it, and when it is over."""

from __future__ import annotations

import builtins
import sys
import types

from mft_eval.wire.channel import read_frame, write_frame
from mft_eval.wire.codec import CannotCrossError, GarbageError, TooLargeError, decode, encode
from mft_eval.wire.exceptions import counterpart, names_of
from mft_eval.wire.handle import BINARY, CALLABLE, CLASS, COMPARISONS, ITERATOR, OBJECT, Handle
from mft_eval.wire.peer import Peer

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any

# The program's exit status, which the server that started its sandbox knows, says how it ended.
PROGRAM_ENDED = "program-ended"
_ITERATION = frozenset(("iter", "next", "len"))
# What the program alone decides, knowing what it is held against: a class can be equal to everything.
_PROGRAMS_WORD = COMPARISONS | {*BINARY, "divmod", "contains", "isinstance", "issubclass", "bool"}
_BUILTIN_ITERATORS = (
    *(type(iter(iterable)) for iterable in ([], (), {}, "", set(), range(0), b"")),
    *(map, filter, zip, enumerate, reversed, types.GeneratorType),
)


class VerdictReached(BaseException):
    """Ends the test at once; out of reach of a test's `except Exception`."""


class Session(Peer):
    """The pipe to one program; `ending` is the (verdict, detail) that a fatal event has fixed.

    Where `may_use_objects` is false, a result that is no plain value and no iterator is a wrong answer: it is so
    wherever the reference solution gives plain values. `uses_objects` says whether the test needed more than calls.
    `programs_word` names what the program itself decided about its objects, or is empty.
    """

    is_exact = True

    def __init__(self, incoming: int, outgoing: int, *, may_use_objects: bool) -> None:
        super().__init__(incoming, outgoing)
        self.may_use_objects = may_use_objects
        self.uses_objects = False
        self.programs_word = ""
        self.test_globals: dict[str, Any] = {}
        self.measures: dict[str, float] = {}
        self.last_error: Exception | None = None
        self.last_error_name = ""
        self.last_ask: tuple[Any, ...] = ()
        self.failed_line = 0
        self.ending: tuple[str, str] | None = None
        self._is_loading = False
        self._named: set[int] = set()

    def ended(self, verdict: str, detail: str) -> VerdictReached:
        """Fixes the ending, and is what the caller raises."""
        self.ending = self.ending or (verdict, detail)
        return VerdictReached()

    def refused(self, what: str) -> VerdictReached:
        """Ends the session for a breach of the rules."""
        return self.ended("refused", f"wrote to the judge's pipe: {what}")

    def load(self, program: str, names: list[str], limits: dict[str, Any]) -> dict[str, Any]:
        """Has the program run; its values of `names`, functions and classes as handles. Ends if it raises."""
        try:
            write_frame(self.outgoing, encode(("program", limits, program, tuple(names)), [], is_exact=True)[0])
            self._is_loading = True
            answer, _ = decode(read_frame(self.incoming), [], self)
        except GarbageError as error:
            raise self.refused(str(error)) from None
        except (EOFError, BrokenPipeError):
            raise self.ended(PROGRAM_ENDED, "") from None
        except TooLargeError:
            raise self.ended("refused", "a program too large for the codec") from None
        finally:
            self._is_loading = False
        if type(answer) is tuple and len(answer) == 4 and answer[:2] == ("returned", 0) and type(answer[2]) is dict:
            return answer[2]
        found = names_of(answer) if type(answer) is tuple and answer[:1] == ("raised",) else None
        if found is None:
            raise self.refused("not an answer")
        raise self.ended("out-of-memory" if found[0] == "MemoryError" else "exception", found[0])

    def ask_about(self, operation: str, *operands: Any) -> Any:
        """The program's answer; ends the session where the pipe breaks, carries garbage or more than it may."""
        if self.ending:
            raise VerdictReached
        self._note(operation, operands)
        self.last_ask = (operation, *operands)
        try:
            return super().ask_about(operation, *operands)
        except GarbageError as error:
            raise self.refused(str(error)) from None
        except (EOFError, BrokenPipeError):
            raise self.ended(PROGRAM_ENDED, "") from None

    def encode_ask(self, message: tuple[Any, ...]) -> tuple[bytes, list[Any]]:
        """The encoded message; an argument that cannot cross ends the session."""
        try:
            return super().encode_ask(message)
        except CannotCrossError as error:
            raise self.ended("wrong", f"an argument of type {error} cannot cross") from None
        except TooLargeError:
            raise self.ended("refused", "an argument too large for the codec") from None

    def serve_until_answer(self, number: int, objects: list[Any]) -> tuple[Any, ...]:
        """The answer; one whose values this process has no memory for ends the session."""
        try:
            return super().serve_until_answer(number, objects)
        except MemoryError:
            raise self.ended("refused", "a value too large for the judge") from None

    def _note(self, operation: str, operands: tuple[Any, ...]) -> None:
        target = next(operand for operand in operands if type(operand) is Handle)
        if operation == "call" and target._handle_number in self._named:
            return
        if operation in _ITERATION and target._handle_kind == ITERATOR:
            return
        self.uses_objects = True
        if not self.may_use_objects:
            raise self.ended("wrong", f"{operation} of a {target._handle_name}")
        if operation in _PROGRAMS_WORD and not self.programs_word:
            self.programs_word = f"the program's own {operation} on its {target._handle_name}"

    def check_taken(self, handle: Handle) -> None:
        """Ends the session for an object where the reference gives plain values."""
        if self._is_loading:
            self._named.add(handle._handle_number)
        elif handle._handle_number not in self._named and handle._handle_kind != ITERATOR:
            self.uses_objects = True
            if not self.may_use_objects:
                raise self.ended("wrong", f"returned {handle._handle_name}")

    def kind_of(self, value: Any) -> str:
        """The test's own functions, iterators, classes and their instances may be given to the program."""
        kind = type(value)
        if kind is types.FunctionType and value.__globals__ is self.test_globals:
            return CALLABLE
        if kind is types.MethodType and getattr(value.__func__, "__globals__", None) is self.test_globals:
            return CALLABLE
        if kind in _BUILTIN_ITERATORS:
            return ITERATOR
        if isinstance(value, type) and value.__module__ == "test":
            return CLASS
        if kind.__module__ == "test":
            return OBJECT
        raise CannotCrossError(kind.__name__)

    def hand_over(self, value: Any) -> tuple[bytes, int, str]:
        """Like any peer's, but what the standard library holds goes by its name: the program has it too."""
        if type(value) is not Handle:
            name = getattr(value, "__name__", None)
            module = getattr(value, "__module__", None)
            if isinstance(name, str) and (module == "builtins" or module in sys.stdlib_module_names):
                holder = builtins if module == "builtins" else sys.modules.get(module)
                if getattr(holder, name, None) is value:
                    return b"n", 0, f"{module}:{name}"
        return super().hand_over(value)

    def take(self, tag: bytes, number: int, label: str) -> Any:
        """Like any peer's; the program names nothing of this process."""
        if tag == b"n":
            raise GarbageError("a name")
        return super().take(tag, number, label)

    def check_operation(self, operation: str, operands: tuple[Any, ...]) -> None:
        """The program may call and iterate over what it was given, and use public names of instances."""
        own = [operand for operand in operands[:2] if type(operand) is not Handle and self._is_given(operand)]
        if not own:
            raise self.refused(f"asked for {operation[:20]} of nothing that it was given")
        kinds = {self.kind_of(target) for target in own}
        is_simple = operation == "call" or (operation in _ITERATION and ITERATOR in kinds)
        if not is_simple and kinds != {OBJECT}:
            raise TypeError(f"{operation} of what may only be called or iterated over")
        is_attribute = operation in ("getattr", "setattr", "delattr")
        if is_attribute and (type(operands[1]) is not str or operands[1].startswith("_")):
            raise AttributeError(operands[1])

    def _is_given(self, value: Any) -> bool:
        number = self._numbers.get(id(value))
        return number is not None and self._given[number] is value

    def caught(self, error: BaseException) -> None:
        """What ends the session is not the program's to catch, nor is a failed assertion of the test."""
        if isinstance(error, (VerdictReached, GarbageError, EOFError, BrokenPipeError)):
            raise error
        if isinstance(error, AssertionError) and error is not self.last_error:
            raise self.ended("wrong", "an assertion in a callback") from None

    def answered(self, answer: tuple[Any, ...], objects: list[Any]) -> Any:
        """What the program's operation returned, or raises what it raised."""
        match answer:
            case ("returned", _, result, _):
                self.refill_all(objects, answer)
                return result
            case ("cannot-cross", _, str(kind)):
                raise self.ended("wrong", f"a value of type {kind[:80]} cannot cross")
            case ("too-large", _):
                raise self.ended("refused", "a result too large for the codec")
        names = names_of(answer) if answer[0] == "raised" else None
        if names is None:
            raise self.refused("not an answer")
        if "Exception" not in names:
            raise self.ended("exception", names[0])
        self.last_error = counterpart(names, answer)
        self.last_error_name = names[0]
        raise self.last_error
