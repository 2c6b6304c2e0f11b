"""The journal of an unfinished run: every judgement as it is found, so that a killed run goes on where it was."""

import hashlib
import os
from dataclasses import asdict
from pathlib import Path
from typing import Any, BinaryIO

import orjson

from mft_eval.errors import EvalError
from mft_eval.judging.judgement import Judgement, Ruling

_FIRST_LINE = b'{"run":"'


def journal_path(out: str) -> Path:
    """Where the journal of the results file `out` lies."""
    path = Path(out)
    return path.with_name(f".{path.name}.journal")


class Journal:
    """Rulings and judgements of the run that `header` identifies, appended to a file line by line.

    A last line that a kill has cut short is left out and written anew.
    """

    def __init__(self, path: Path, header: dict[str, Any], *, resume: bool) -> None:
        self.rulings: dict[str, Ruling] = {}
        self.judgements: dict[tuple[str, int], Judgement] = {}
        self.path = path
        fingerprint = hashlib.sha256(orjson.dumps(header, option=orjson.OPT_SORT_KEYS)).hexdigest()
        num_bytes = self._read(fingerprint) if resume and path.exists() else 0
        try:
            self._file: BinaryIO = path.open("r+b" if num_bytes else "wb")
        except OSError as error:
            raise EvalError(f"cannot write the journal: {error.strerror}", where=str(path)) from error
        self._file.truncate(num_bytes)
        self._file.seek(num_bytes)
        if not num_bytes:
            self._write({"run": fingerprint})

    def _read(self, fingerprint: str) -> int:
        """Takes over what is whole; the number of its bytes."""
        stored = self.path.read_bytes()
        lines = stored.split(b"\n")[:-1]
        if not lines:
            return 0
        if orjson.loads(lines[0]) != {"run": fingerprint}:
            what = "the interrupted run had other problems, generations or settings"
            raise EvalError(what, where=str(self.path), fix="give the same, or start anew with --overwrite")
        for line in lines[1:]:
            record = orjson.loads(line)
            if "ruling" in record:
                self.rulings[record["problem_id"]] = Ruling(**record["ruling"])
            else:
                self.judgements[record["problem_id"], record["sample_index"]] = Judgement(**record["judgement"])
        return sum(len(line) + 1 for line in lines)

    def _write(self, record: dict[str, Any]) -> None:
        self._file.write(orjson.dumps(record, option=orjson.OPT_APPEND_NEWLINE))
        self._file.flush()

    def add_ruling(self, problem_id: str, ruling: Ruling) -> None:
        """Appends a ruling."""
        self.rulings[problem_id] = ruling
        self._write({"problem_id": problem_id, "ruling": asdict(ruling)})

    def add_judgement(self, problem_id: str, sample_index: int, judgement: Judgement) -> None:
        """Appends a judgement."""
        self.judgements[problem_id, sample_index] = judgement
        self._write({"problem_id": problem_id, "sample_index": sample_index, "judgement": asdict(judgement)})

    def close(self, *, is_finished: bool) -> None:
        """Closes the file; deletes it where the run's results are written, or where it holds no judgement to keep."""
        self._file.close()
        if is_finished or not self.judgements:
            self.path.unlink()


def check_no_journal(out: str, *, resume: bool, overwrite: bool) -> None:
    """Raises where an interrupted run of `out` lies and nobody has said what is to become of it."""
    path = journal_path(out)
    if path.exists() and not resume and not overwrite:
        raise EvalError(f"an interrupted run lies in {path}", fix="go on with --resume or start anew with --overwrite")
    if path.exists() and not _is_journal(path):
        raise EvalError(
            f"{path} is in the way and is not what mft-eval left there", fix="move it, or choose another OUT"
        )
    if resume and not os.path.exists(path) and Path(out).exists():  # noqa: PTH110
        raise EvalError(f"{out} is finished", fix="nothing is left to resume")


def _is_journal(path: Path) -> bool:
    """Whether a file is a journal, or what a kill has left of its first line."""
    if not path.is_file():
        return False
    with path.open("rb") as file:
        line = file.readline(200)
    if not line.endswith(b"\n"):
        return _FIRST_LINE.startswith(line[: len(_FIRST_LINE)])
    try:
        return set(orjson.loads(line)) == {"run"}
    except (orjson.JSONDecodeError, TypeError):
        return False
