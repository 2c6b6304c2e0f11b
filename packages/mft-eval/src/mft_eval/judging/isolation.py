"""How far programs are kept from this machine: what was asked for, settled once against what the machine has."""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

from mft_eval.errors import EvalError
from mft_eval.judging.machine import NO_SANDBOX, check_layers, missing_layers, starts, why_not
from mft_eval.judging.pool import JudgePool
from mft_eval.sandbox.bubblewrap import find_bwrap
from mft_eval.sandbox.walls import LANDLOCK, NAMESPACES, NONE

STRICT, BEST_EFFORT, BARE = "strict", "best-effort", "none"
ISOLATIONS = (STRICT, BEST_EFFORT, BARE)


@dataclass(frozen=True, slots=True)
class Isolation:
    """What was asked for by name, the walls around each program, and the layers of a whole sandbox that they lack."""

    name: str
    walls: str = NAMESPACES
    missing_layers: tuple[str, ...] = ()


def settle(name: str) -> Isolation:
    """What of the isolation called `name`, one of `ISOLATIONS`, this machine can give.

    Whether it can give the strict one is tried where a pool is opened, which costs less.
    """
    if name == STRICT:
        return Isolation(STRICT)
    if name == BARE:
        return Isolation(BARE, NONE, NO_SANDBOX)
    # They load ctypes, which a run in namespaces can do without.
    from mft_eval.sandbox.call_filter import is_known_machine
    from mft_eval.sandbox.file_rules import landlock_version

    with JudgePool(find_bwrap(), 1) as pool:
        if starts(pool):
            return Isolation(name, NAMESPACES, missing_layers(pool))
        reason = why_not(pool)
    if not (landlock_version() and is_known_machine()):
        what = f"neither namespaces ({reason}) nor Landlock work on this machine"
        raise EvalError(what, fix="mft-eval doctor says what mends it; --isolation none runs without a sandbox")
    with JudgePool(find_bwrap(), 1, LANDLOCK) as pool:
        return Isolation(name, LANDLOCK, missing_layers(pool))


def make_pool(isolation: Isolation, num_workers: int) -> JudgePool:
    """Servers of judgements behind the walls of `isolation`, to be checked before they judge."""
    return JudgePool(find_bwrap(), num_workers, isolation.walls)


def check_pool(isolation: Isolation, pool: JudgePool) -> None:
    """Raises where the isolation is strict and a layer does not hold here."""
    if isolation.name == STRICT:
        check_layers(pool)


@contextmanager
def open_pool(isolation: Isolation, num_workers: int) -> Iterator[JudgePool]:
    """A pool that is ready to judge."""
    with make_pool(isolation, num_workers) as pool:
        check_pool(isolation, pool)
        yield pool
