"""The kind of task that is made from problems, and what it is made with."""

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class TaskKind:
    """Its name on the command line; for `explain` the explanations by problem id that programs are written from."""

    name: str = "plain"
    explanations: Mapping[str, str] | None = None

    @property
    def explanations_sha256(self) -> str | None:
        """Of the explanations in the order of their problems' ids, hexadecimal; None without any."""
        if self.explanations is None:
            return None
        return hashlib.sha256(repr(sorted(self.explanations.items())).encode("utf-8", "surrogatepass")).hexdigest()
