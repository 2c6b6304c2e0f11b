"""The task sources of a build: their names, their files, and the lines in them."""

import hashlib
import os
import re
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

import orjson

from mft_data.errors import DataError
from mft_data.reading.fetched import STDIN, Fetched, is_elsewhere
from mft_data.reading.json_array import begins_with_array
from mft_data.reading.source_settings import SourceSettings
from mft_data.reading.tables import TABLE_SUFFIXES

SUFFIXES = (".jsonl", ".jsonl.gz", ".jsonl.zst", ".json", *TABLE_SUFFIXES)
# What Hugging Face's datasets leave in a folder beside the Arrow files.
HF_SPLITS, HF_STATE = "dataset_dict.json", "state.json"
TASK_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]*")
# Of a task's name, which becomes that of a folder.
MAX_NAME_CHARACTERS = 200


@dataclass(frozen=True, slots=True)
class SourceFile:
    """One file of a task; `name` is its path inside the source, `size_bytes` as it lies on disk."""

    path: Path
    name: str
    size_bytes: int


@dataclass(frozen=True, slots=True)
class Source:
    """A task and where its conversations are; `split` is where all go; None: to either, by what they say."""

    task: str
    paths: tuple[Path, ...]
    files: tuple[SourceFile, ...]
    split: str | None = None
    settings: SourceSettings = field(default_factory=SourceSettings)


def find_sources(arguments: list[str], settings: SourceSettings, fetched: Fetched) -> list[Source]:
    """The sources of `DIR` and `NAME=PATH` arguments, in their order; raises DataError."""
    sources = [find_source(argument, settings, fetched) for argument in arguments]
    counts = Counter(source.task for source in sources)
    for source in sources:
        if counts[source.task] > 1:
            paths = " and ".join(str(other.paths[0]) for other in sources if other.task == source.task)
            raise DataError(f'task "{source.task}" is named twice ({paths})', fix="name one of them: NAME=PATH")
    return sources


def find_source(argument: str, settings: SourceSettings, fetched: Fetched) -> Source:
    """The source of one argument: a folder, or a folder or file with a name before the first `=`.

    What is not here is `fetched`.
    """
    name, separator, rest = argument.partition("=")
    is_named = bool(separator) and "/" not in name
    location = rest if is_named else argument
    if is_named and not rest:
        raise DataError(f'source "{argument}" has no path after "="', fix="write NAME=PATH")
    if location == STDIN and not is_named:
        raise DataError("stdin has no name to give a task", fix="write NAME=-")
    path = fetched.fetch(location) if is_elsewhere(location) else Path(location)
    task = name if is_named else path.resolve().name
    if not path.exists():
        raise DataError(f'source "{path}" does not exist')
    if not path.is_dir() and not is_named and len(task) <= MAX_NAME_CHARACTERS:
        raise DataError(f'source "{path}" is not a folder', fix=f"give a file its task's name: NAME={path}")
    check_task_name(task, None, f"name it: NAME={path}")
    return Source(task, (path,), find_files((path,)), None, settings)


def check_task_name(task: str, where: str | None, fix: str) -> None:
    """Raises DataError if a task cannot have this name; `fix` says how to give it another."""
    if len(task) > MAX_NAME_CHARACTERS:
        what = f'"{task[:40]}..." has {len(task)} characters, too many for the name of a task'
        raise DataError(what, where=where, fix="shorten it")
    if not TASK_NAME.fullmatch(task):
        what = f'"{task}" cannot name a task (letters, digits, ".", "_", "-"; the first a letter or digit)'
        raise DataError(what, where=where, fix=fix)


def find_files(paths: tuple[Path, ...]) -> tuple[SourceFile, ...]:
    """The files of a source, each once, by their names below the folder around all of them; hidden ones are left out.

    Raises DataError if there are none.
    """
    path = ", ".join(map(str, paths))
    if len(paths) == 1:
        roots, folder = paths, paths[0] if paths[0].is_dir() else paths[0].parent
    else:
        # Absolute, but with links as they are: a linked folder's files are below the link.
        roots = tuple(Path(os.path.abspath(root)) for root in paths)  # noqa: PTH100
        folder = Path(os.path.commonpath([root if root.is_dir() else root.parent for root in roots]))
    candidates = (found for root in roots for found in (walk_files(root) if root.is_dir() else [root]))
    names = sorted({found.relative_to(folder).as_posix() for found in candidates if found.name.endswith(SUFFIXES)})
    if not names:
        raise DataError(f'source "{path}" has no file that ends in {", ".join(SUFFIXES)}')
    for name in names:
        if not name.isprintable():
            raise DataError(
                f"a file has the name {name!a}", where=str(path), fix="rename it: UTF-8, no control characters"
            )
        if not (folder / name).is_file():
            raise DataError(f'"{folder / name}" is no regular file', fix="write its lines to one, or remove it")
    return tuple(SourceFile(folder / name, name, (folder / name).stat().st_size) for name in names)


def walk_files(folder: Path) -> Iterator[Path]:
    """Every file below a folder that is not hidden, in linked folders, too; of .json ones those that are lists.

    Raises OSError if a folder cannot be read, and DataError if a link leads back to a folder around it.
    """

    def fail(error: OSError) -> None:
        raise error

    for parent, folders, names in os.walk(folder, onerror=fail, followlinks=True):
        folders[:] = [name for name in folders if not name.startswith(".")]
        around = {Path(parent).resolve(), *Path(parent).resolve().parents}
        for name in folders:
            link = Path(parent, name)
            if link.is_symlink() and link.resolve() in around:
                raise DataError(f'the link "{link}" leads back to a folder around it', fix="remove it")
        if HF_SPLITS in names:
            splits = ", ".join(sorted(folders))
            raise DataError(f'"{parent}" holds the splits of a dataset ({splits})', fix="name one: NAME=PATH/SPLIT")
        tables = table_names(Path(parent, HF_STATE)) if HF_STATE in names else None
        for name in names:
            is_other = tables is not None and name.endswith(".arrow") and name not in tables
            is_no_list = name.endswith(".json") and not begins_with_array(Path(parent, name))
            if not (name.startswith(".") or is_other or is_no_list):
                yield Path(parent, name)


def table_names(state_path: Path) -> list[str] | None:
    """The Arrow files of a dataset that was saved to disk, without what else was left there; None if it is not one."""
    try:
        return [entry["filename"] for entry in orjson.loads(state_path.read_bytes())["_data_files"]]
    except (KeyError, TypeError, ValueError):
        return None


def file_sha256(path: Path) -> str:
    """Hex digest of a file as it lies on disk."""
    with path.open("rb") as handle:
        return hashlib.file_digest(handle, "sha256").hexdigest()
