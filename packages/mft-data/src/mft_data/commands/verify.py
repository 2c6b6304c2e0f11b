"""Compares every byte of a dataset with what its manifest says, and every row with the format."""

from __future__ import annotations

import hashlib
import os
from collections import Counter
from pathlib import Path
from typing import TYPE_CHECKING, Any

import orjson

from mft_data.dataset.dataset_dir import MANIFEST, read_manifest
from mft_data.dataset.fingerprints import manifest_bytes
from mft_data.dataset.mds import mds_columns
from mft_data.dataset.row_rules import RowLimits, broken_rules, read_rows
from mft_data.dataset.shard_columns import ShardError, is_file_name, parse_index, parse_shard
from mft_data.encoding.tokenizer import open_tokenizer, tokenizer_sha256
from mft_data.errors import DataError, plural
from mft_data.reading.sources import TASK_NAME, file_sha256
from mft_data.rows.split import SPLITS

if TYPE_CHECKING:
    from collections.abc import Iterator

    from mft_data.dataset.row_rules import Rows
    from mft_data.dataset.shard_columns import ShardEntry

ANEW = "build the dataset anew"
COPY = "copy it again or build the dataset anew"

COUNTS = ("conversations", "rows", "tokens", "supervised_tokens")
# Only in a dataset with pairs.
PAIRS = "pairs"
LEFT_OUT = ("rejected", "duplicates", "over_limit", "overlong_dropped")
SPLIT_FIELDS = dict.fromkeys(COUNTS, int) | {"index_sha256": (str, type(None))}
MANIFEST_FIELDS = {
    "seq_length": int,
    "template_sha256": str,
    "tokenizer_sha256": str,
    "tokenizer_files": dict,
    "vocab_size": int,
    "max_token_id": int,
    "eos_token": str,
    "eos_token_id": int,
    "columns": dict,
    "contaminated": str,
    "rejects_sha256": str,
    "content_sha256": str,
    "tasks": [
        {
            "name": str,
            "conversations": dict.fromkeys(LEFT_OUT, int) | {"read": int, "contaminated": int},
            "splits": dict.fromkeys(SPLITS, SPLIT_FIELDS),
        }
    ],
}


def load_manifest(dataset_dir: Path) -> dict[str, Any]:
    """The manifest of a dataset, with the fields that are compared here; raises DataError."""
    manifest = read_manifest(dataset_dir)
    path = dataset_dir / MANIFEST
    if missing := next(missing_fields(manifest, MANIFEST_FIELDS, ""), None):
        raise DataError(f"the manifest has no sound field {missing}", where=str(path), fix=ANEW)
    for task in manifest["tasks"]:
        if not TASK_NAME.fullmatch(task["name"]):
            raise DataError(f"{task['name']!a} cannot name a task", where=str(path), fix=ANEW)
    for name in manifest["tokenizer_files"]:
        if not is_file_name(name):
            raise DataError(f"{name!a} cannot name a file of the tokenizer", where=str(path), fix=ANEW)
    return manifest


def missing_fields(value: Any, fields: Any, name: str) -> Iterator[str]:
    """The names of fields that are not there or have another type."""
    if isinstance(fields, dict):
        for key, field in fields.items():
            inner = f"{name}.{key}" if name else key
            if isinstance(value, dict) and key in value:
                yield from missing_fields(value[key], field, inner)
            else:
                yield inner
    elif isinstance(fields, list):
        if not isinstance(value, list):
            yield name
        else:
            for position, entry in enumerate(value):
                yield from missing_fields(entry, fields[0], f"{name}[{position}]")
    elif not isinstance(value, fields) or isinstance(value, bool):
        yield name


def find_problems(dataset_dir: Path, manifest: dict[str, Any], is_quick: bool) -> Iterator[DataError]:
    """Everything that is wrong with a dataset, in the order of its files.

    What a damaged file says of others is not looked into. `is_quick` leaves the contents of shards and the meaning of
    the tokenizer out. Raises OSError if a file that is there cannot be read.
    """
    path = dataset_dir / MANIFEST
    if path.read_bytes() != manifest_bytes(manifest):
        yield DataError("the manifest was changed after the build", where=str(path), fix=ANEW)
    yield from manifest_problems(path, manifest)
    yield from tokenizer_problems(dataset_dir / "tokenizer", manifest, is_quick)
    yield from reject_problems(dataset_dir / "rejects.jsonl", manifest)
    for split in SPLITS:
        for task_id, task in enumerate(manifest["tasks"]):
            yield from stream_problems(dataset_dir / split / task["name"], manifest, task_id, split, is_quick)
    yield from extra_file_problems(dataset_dir, manifest)


def manifest_problems(path: Path, manifest: dict[str, Any]) -> Iterator[DataError]:
    """Where the manifest disagrees with itself."""
    ids_dtype = "uint16" if manifest["max_token_id"] < 1 << 16 else "uint32"
    columns = mds_columns(ids_dtype, manifest.get("features", []))
    if manifest["columns"] != columns:
        yield DataError(f"the columns are not {orjson.dumps(columns).decode()}", where=str(path), fix=ANEW)
    for task_id, task in enumerate(manifest["tasks"]):
        if task.get("task_id") != task_id:
            yield DataError(f'the task_id of task "{task["name"]}" is not {task_id}', where=str(path), fix=ANEW)
        records = task["conversations"]
        dropped = LEFT_OUT if manifest["contaminated"] == "report" else (*LEFT_OUT, "contaminated")
        left = records["read"] - sum(records[name] for name in dropped)
        written = sum(task["splits"][split]["conversations"] for split in SPLITS)
        if written != left:
            has = f"{written} {plural(written, 'conversation')} in its splits"
            what = f'task "{task["name"]}" has {has}, {left} {plural(left, "was", "were")} left of its records'
            yield DataError(what, where=str(path), fix=ANEW)


def tokenizer_problems(tokenizer_dir: Path, manifest: dict[str, Any], is_quick: bool) -> Iterator[DataError]:
    """Where the tokenizer is not the one that the manifest names."""
    files = manifest["tokenizer_files"]
    problems = [
        problem
        for name, sha256 in {"tokenizer.json": None, "chat_template.jinja": None, **files}.items()
        for problem in file_problems(tokenizer_dir / name, sha256)
    ]
    yield from problems
    if problems or is_quick:
        return
    try:
        tokenizer = open_tokenizer(tokenizer_dir)
    except DataError as problem:
        yield problem
        return
    if tokenizer_sha256(tokenizer_dir) != manifest["tokenizer_sha256"]:
        yield DataError("the tokenizer is not that of tokenizer_sha256", where=str(tokenizer_dir), fix=ANEW)
    if files["chat_template.jinja"] != manifest["template_sha256"]:
        yield DataError("the chat template is not that of template_sha256", where=str(tokenizer_dir), fix=ANEW)
    found = {
        "vocab_size": tokenizer.get_vocab_size(with_added_tokens=True),
        "max_token_id": max(tokenizer.get_vocab(with_added_tokens=True).values()),
        "eos_token_id": tokenizer.token_to_id(manifest["eos_token"]),
    }
    for name, value in found.items():
        if value != manifest[name]:
            what = f"the manifest says {name} {manifest[name]}, the tokenizer {value}"
            yield DataError(what, where=str(tokenizer_dir), fix=ANEW)


def reject_problems(path: Path, manifest: dict[str, Any]) -> Iterator[DataError]:
    """Where the list of rejects is not the one that was written, or disagrees with the manifest's counts."""
    problems = list(file_problems(path, manifest["rejects_sha256"]))
    yield from problems
    if problems:
        return
    try:
        counts = Counter(orjson.loads(line)["task"] for line in path.read_bytes().splitlines())
    except (KeyError, TypeError, ValueError):
        yield DataError("a line is not a reject", where=str(path), fix=ANEW)
        return
    for task in manifest["tasks"]:
        listed, rejected = counts[task["name"]], task["conversations"]["rejected"]
        if listed != rejected:
            rejects = f'{listed} {plural(listed, "reject")} of task "{task["name"]}"'
            what = f"{rejects} {plural(listed, 'is', 'are')} listed, the manifest says {rejected}"
            yield DataError(what, where=str(path), fix=ANEW)


def file_problems(path: Path, sha256: str | None) -> Iterator[DataError]:
    """Whether a file is missing, or not the one of this digest; without a digest the manifest does not list it."""
    if sha256 is None:
        yield DataError(f"the manifest does not list {path.name}", where=str(path.parent), fix=ANEW)
    elif not path.is_file():
        yield DataError(f"{path.name} is missing", where=str(path.parent), fix=COPY)
    elif file_sha256(path) != sha256:
        yield DataError("the file is not as it was built (its sha256 differs)", where=str(path), fix=COPY)


def stream_problems(
    stream_dir: Path, manifest: dict[str, Any], task_id: int, split: str, is_quick: bool
) -> Iterator[DataError]:
    """Where the rows of one task and split are not what the manifest says."""
    expected = manifest["tasks"][task_id]["splits"][split]
    entries: list[ShardEntry] = []
    if expected["index_sha256"] is not None:
        index_path = stream_dir / "index.json"
        problems = list(file_problems(index_path, expected["index_sha256"]))
        yield from problems
        if problems:
            return
        try:
            entries = parse_index(index_path.read_bytes())
        except ShardError as error:
            yield DataError(str(error), where=str(index_path), fix=ANEW)
            return
    found = Counter(dict.fromkeys((*COUNTS, PAIRS), 0))
    is_whole = True
    for entry in entries:
        path = stream_dir / entry.name
        try:
            check_size(path, entry)
            if not is_quick:
                rows = load_rows(path, entry, manifest["columns"])
                limits = RowLimits(manifest["seq_length"], manifest["max_token_id"], task_id)
                yield from row_problems(path, rows, limits, found["rows"])
                found.update(rows.counts)
        except DataError as problem:
            yield problem
            is_whole = False
    if is_quick:
        found["rows"] = sum(entry.num_rows for entry in entries)
    if is_whole:
        for name in ("rows",) if is_quick else (*COUNTS, PAIRS):
            if found[name] != expected.get(name, 0):
                stated = expected.get(name, 0)
                what = f"the shards hold {held(found[name], name)}, the manifest says {stated}"
                yield DataError(what, where=str(stream_dir), fix=ANEW)


def check_size(path: Path, entry: ShardEntry) -> None:
    """Raises DataError if a shard is missing or has another size than the index says."""
    if not path.is_file():
        raise DataError(f"{path.name} is missing", where=str(path.parent), fix=COPY)
    num_bytes = path.stat().st_size
    if num_bytes != entry.num_bytes:
        what = f"the shard has {num_bytes} {plural(num_bytes, 'byte')}, its index says {entry.num_bytes}"
        raise DataError(what, where=str(path), fix=COPY)


def load_rows(path: Path, entry: ShardEntry, columns: dict[str, str]) -> Rows:
    """The rows of a shard that is the one of the index; raises DataError."""
    content = path.read_bytes()
    if hashlib.sha256(content).hexdigest() != entry.sha256:
        raise DataError("the shard is not as it was built (its sha256 differs)", where=str(path), fix=COPY)
    try:
        shard = parse_shard(content)
        if shard.description != entry.description or shard.num_rows != entry.num_rows:
            raise ShardError("the shard disagrees with its index about its columns or the number of its rows")
        if shard.encodings != columns:
            raise ShardError(f"the columns are {orjson.dumps(shard.encodings).decode()}, the manifest says others")
        return read_rows(shard)
    except ShardError as error:
        raise DataError(str(error), where=str(path), fix=ANEW) from error


def row_problems(path: Path, rows: Rows, limits: RowLimits, first_row: int) -> Iterator[DataError]:
    """The rules that rows break; rows are counted as `inspect --row` counts them."""
    for words, positions in broken_rules(rows, limits):
        others = f" (as have {len(positions) - 1} more)" if len(positions) > 1 else ""
        yield DataError(f"row {first_row + positions[0]} {words}{others}", where=str(path), fix=ANEW)


def extra_file_problems(dataset_dir: Path, manifest: dict[str, Any]) -> Iterator[DataError]:
    """The files that no build has put there."""
    expected = {dataset_dir / MANIFEST, dataset_dir / "rejects.jsonl"}
    expected |= {dataset_dir / "tokenizer" / name for name in manifest["tokenizer_files"]}
    for split in SPLITS:
        for task in manifest["tasks"]:
            if task["splits"][split]["index_sha256"] is not None:
                expected |= stream_files(dataset_dir / split / task["name"])
    for path in sorted(unaccounted(dataset_dir, expected)):
        yield DataError(f"{path.name!a} does not belong here", where=str(path.parent), fix="remove it")


def unaccounted(dataset_dir: Path, expected: set[Path]) -> Iterator[Path]:
    """Every file that is not expected, every link, and every folder with nothing in it."""
    for parent, folders, names in os.walk(dataset_dir):
        paths = [Path(parent, name) for name in (*folders, *names)]
        yield from (path for path in paths if path.is_symlink() or (path.is_file() and path not in expected))
        if not paths:
            yield Path(parent)


def stream_files(stream_dir: Path) -> set[Path]:
    """The files of a stream; if its index cannot tell, all that look like shards."""
    index_path = stream_dir / "index.json"
    try:
        names = {entry.name for entry in parse_index(index_path.read_bytes())}
    except (ShardError, OSError):
        names = {path.name for path in stream_dir.glob("shard.*.mds")}
    return {index_path, *(stream_dir / name for name in names)}


def describe(manifest: dict[str, Any], is_quick: bool) -> str:
    """What was found to be sound, in words."""
    totals = {
        name: sum(task["splits"][split].get(name, 0) for task in manifest["tasks"] for split in SPLITS)
        for name in (*COUNTS, PAIRS)
    }
    checked = "sizes and counts are" if is_quick else "every byte is"
    counts = {"tasks": len(manifest["tasks"]), **totals}
    return f"{checked} as built: " + ", ".join(
        held(count, name) for name, count in counts.items() if count or name != PAIRS
    )


def held(count: int, name: str) -> str:
    """One of COUNTS, or of PAIRS, in words."""
    return f"{count:,} {plural(count, name.removesuffix('s').replace('_', ' '))}"
