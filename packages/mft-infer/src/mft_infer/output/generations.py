"""The generations JSONL: one completion a line, on a pipe as it comes, in a file all at once."""

import os
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path

import orjson

from mft_infer.errors import InferError


@dataclass(frozen=True, slots=True)
class Generation:
    """One completion; `num_tokens` counts the tokens generated, the stop token among them."""

    problem_id: str
    sample_index: int
    completion: str
    finish_reason: str
    num_tokens: int


def check_out(path: Path, *, overwrite: bool) -> None:
    """Refuse a file that is there already, unless it may be replaced."""
    if str(path) == "-":
        return
    if path.is_dir():
        raise InferError(f"{path} is a directory", fix="name a file")
    if path.exists() and not overwrite:
        raise InferError(f"{path} exists", fix="choose another OUT or use --overwrite")


@contextmanager
def written_generations(path: Path) -> Iterator[Callable[[Generation], None]]:
    """A function that writes one generation to `path`; a file appears by one rename, if the block succeeds."""
    if str(path) == "-":
        stream = sys.stdout.buffer

        def write(generation: Generation) -> None:
            stream.write(orjson.dumps(asdict(generation)) + b"\n")
            stream.flush()

        yield write
        return
    path.parent.mkdir(parents=True, exist_ok=True)
    partial_path = path.parent / f".{path.name}.partial-{os.getpid()}"
    try:
        with partial_path.open("wb") as file:
            yield lambda generation: file.write(orjson.dumps(asdict(generation)) + b"\n")
            file.flush()
            os.fsync(file.fileno())
        partial_path.replace(path)
    finally:
        partial_path.unlink(missing_ok=True)
