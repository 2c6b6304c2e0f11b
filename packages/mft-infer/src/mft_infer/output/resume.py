"""What an unfinished generations file already has, checked against what is asked now."""

from pathlib import Path
from typing import Any

from mft_infer.errors import InferError
from mft_infer.output.generation import FORMATS
from mft_infer.output.generations_file import Key, read_lines
from mft_infer.output.run_record import check_same_run


def finished_lines(
    path: Path, prompt_digests: dict[Key, str], run: dict[str, Any], sample_format: str
) -> dict[Key, bytes]:
    """The lines of `path` that need not be made again, by key; those with an error are tried anew.

    `sample_format` is what its lines are written in. `prompt_digests` are those of everything that is asked. Raises
    InferError for a line that another run made, or of another prompt.
    """
    finished: dict[Key, bytes] = {}
    id_name, _ = FORMATS[sample_format]
    for number, (record, line) in enumerate(read_lines(path), start=1):
        where = f"{path} line {number}"
        if id_name not in record:
            raise InferError("the line has another format", where=where, fix="choose another --format or another OUT")
        check_same_run(record.get("run"), run, where)
        key: Any = (record.get(id_name), record.get("sample_index"))
        if prompt_digests.get(key) != record.get("prompt_sha256"):
            what = "has changed" if key in prompt_digests else "is not asked for"
            raise InferError(
                f'sample {key[1]} of problem "{key[0]}" {what}',
                where=where,
                fix="resume with the prompts it was made from, or choose another OUT",
            )
        if record.get("finish_reason") != "error":
            finished[key] = line
    return finished
