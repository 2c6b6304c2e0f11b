"""Looking over the machine: kernel settings, the sandbox's layers, toolchains, and what mends each."""

from mft_eval.judging.machine import (
    Finding,
    kernel_findings,
    landlock_finding,
    layer_findings,
    toolchain_findings,
)
from mft_eval.judging.pool import JudgePool
from mft_eval.sandbox.bubblewrap import find_bwrap
from mft_eval.scoring.tables import plain_table


def doctor() -> tuple[str, bool]:
    """What was found, as a table; and whether every layer of the sandbox holds."""
    with JudgePool(find_bwrap(), 1) as pool:
        layers = layer_findings(pool)
    findings = [*kernel_findings(), *layers, landlock_finding(), *toolchain_findings()]
    head = ["", "state", "what mends it"]
    rows = [[f"{'ok' if found.is_ok else '--'} {found.name}", found.state, found.mend] for found in findings]
    return plain_table(head, rows), all(map(_holds, layers))


def _holds(found: Finding) -> bool:
    return found.is_ok
