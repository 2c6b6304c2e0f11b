"""The tasks file: a YAML list of tasks with their paths and settings; errors name the key, the line and the fix."""

from __future__ import annotations

import glob
import json
import re
from collections.abc import Callable
from dataclasses import replace
from difflib import get_close_matches
from pathlib import Path
from typing import TYPE_CHECKING, Any

import yaml

from mft_data.errors import DataError
from mft_data.reading.fetched import is_elsewhere
from mft_data.reading.records import LEAST_WEIGHT, MOST_WEIGHT
from mft_data.reading.shapes import RECORD_FORMATS
from mft_data.reading.source_settings import check_fields
from mft_data.reading.sources import Source, check_task_name, find_files

if TYPE_CHECKING:
    from mft_data.reading.fetched import Fetched
    from mft_data.reading.source_settings import SourceSettings

SUFFIXES = (".yaml", ".yml")
FIM_FAMILIES = ("auto", "starcoder", "codellama", "qwen", "deepseek")
GLOB = re.compile(r"[*?[]")
# What a template cannot be given: the names of what it is rendered from.
RENDERED_NAMES = {"messages", "conversations", "chat_template", "add_generation_prompt", "continue_final_message"}


class TasksLoader(yaml.SafeLoader):
    """YAML 1.1 with floats such as 1e-4."""


TasksLoader.add_implicit_resolver(
    "tag:yaml.org,2002:float",
    re.compile(r"^[-+]?(?:\d[\d_]*\.[\d_]*|\.?\d[\d_]*)(?:[eE][-+]?\d+)$"),
    list("-+0123456789."),
)


def is_tasks_file(argument: str) -> bool:
    """Whether a source argument names a tasks file."""
    return argument.endswith(SUFFIXES) and "=" not in argument


def read_tasks_file(path: Path, defaults: SourceSettings, fetched: Fetched) -> list[Source]:
    """The sources of a tasks file in its order, each followed by its own validation source if it has one.

    `defaults` hold where a task says nothing. Raises DataError.
    """
    file = TasksFile(path, fetched)
    (top,) = file.mapping(file.root, "", ["tasks"], required=["tasks"]).values()
    tasks = file.mapping(top[1], "tasks", None)
    if not tasks:
        raise DataError("there are no tasks", where=str(path), fix="write `NAME: {paths: ...}` under `tasks:`")
    sources = []
    for name, (line, node) in tasks.items():
        check_task_name(name, file.place(line), "name it otherwise")
        sources += file.sources(name, node, defaults)
    return sources


class TasksFile:
    """The nodes of a tasks file."""

    def __init__(self, path: Path, fetched: Fetched) -> None:
        self.path, self.fetched = path, fetched
        try:
            self.loader = TasksLoader(path.read_text(encoding="utf-8"))
            root = self.loader.get_single_node()
        except (OSError, UnicodeDecodeError) as error:
            reason = error.strerror if isinstance(error, OSError) else "not UTF-8"
            raise DataError(f"cannot read the tasks file: {reason}", where=str(path)) from error
        except yaml.YAMLError as error:
            mark = getattr(error, "problem_mark", None)
            problem = getattr(error, "problem", None) or str(error).splitlines()[0]
            raise DataError(f"not valid YAML: {problem}", where=self.place(mark and mark.line + 1)) from error
        if not isinstance(root, yaml.MappingNode):
            raise DataError("the tasks file is not a mapping", where=str(path), fix="begin it with `tasks:`")
        self.root = root

    def place(self, line: int | None) -> str:
        """The file and a line of it."""
        return f"{self.path} line {line}" if line else str(self.path)

    def mapping(
        self, node: yaml.Node, name: str, valid: list[str] | None, required: list[str] | None = None
    ) -> dict[str, tuple[int, yaml.Node]]:
        """Line and node by key of a mapping, whose keys are among `valid` if there are such; raises DataError."""
        line = node.start_mark.line + 1
        if not isinstance(node, yaml.MappingNode):
            raise DataError(f'"{name}" is not a mapping', where=self.place(line), fix="write `key: value` under it")
        prefix = f"{name}." if name else ""
        found: dict[str, tuple[int, yaml.Node]] = {}
        for key_node, value_node in node.value:
            key, key_line = str(key_node.value), key_node.start_mark.line + 1
            if key in found:
                what = f'key "{prefix}{key}" is given twice, first on line {found[key][0]}'
                raise DataError(what, where=self.place(key_line))
            if valid is not None and key not in valid:
                near = get_close_matches(key, valid, n=1)
                fix = f'did you mean "{near[0]}"?' if near else f"valid keys: {', '.join(valid)}"
                raise DataError(f'unknown key "{prefix}{key}"', where=self.place(key_line), fix=fix)
            found[key] = key_line, value_node
        for key in required or ():
            if key not in found:
                raise DataError(f'key "{prefix}{key}" is missing', where=self.place(line), fix=f"add `{key}: ...`")
        return found

    def value(self, node: yaml.Node, name: str) -> Any:
        """The plain value of a node, without a key twice in any mapping; raises DataError."""
        if isinstance(node, yaml.MappingNode):
            entries = self.mapping(node, name, None)
            return {key: self.value(inner, f"{name}.{key}") for key, (_, inner) in entries.items()}
        try:
            return self.loader.construct_object(node, deep=True)
        except (yaml.YAMLError, ValueError) as error:
            line = node.start_mark.line + 1
            raise DataError(f'"{name}" has no value of YAML', where=self.place(line)) from error

    def sources(self, task: str, node: yaml.Node, defaults: SourceSettings) -> list[Source]:
        """The source of one task, and its validation source."""
        name = f"tasks.{task}"
        entries = self.mapping(node, name, list(PARSERS), required=["paths"])
        values: dict[str, Any] = {}
        for key, (line, inner) in entries.items():
            value = self.value(inner, f"{name}.{key}")
            try:
                values[key] = PARSERS[key](value)
            except ValueError as error:
                raise DataError(f'"{name}.{key}" is {shown(value)}: {error}', where=self.place(line)) from error
        held_out = values.get("validation")
        if "fim" in values and values.get("kind") != "fim":
            line = entries["fim"][0]
            raise DataError(f'"{name}.fim" is for tasks of another kind', where=self.place(line), fix="add `kind: fim`")
        settings = replace(
            defaults,
            **{SETTINGS[key]: value for key, value in values.items() if key in SETTINGS},
            **({"validation_fraction": held_out} if isinstance(held_out, float) else {}),
        )
        paths = self.paths(values["paths"], entries["paths"][0])
        if not isinstance(held_out, list):
            return [Source(task, paths, find_files(paths), None, settings)]
        if "validation_group" in values:
            line = entries["validation_group"][0]
            what = f'"{name}.validation_group" has no meaning beside paths of validation data'
            raise DataError(what, where=self.place(line), fix="leave one out")
        held_out_paths = self.paths(held_out, entries["validation"][0])
        return [
            Source(task, paths, find_files(paths), "train", settings),
            Source(task, held_out_paths, find_files(held_out_paths), "validation", replace(settings, limit=None)),
        ]

    def paths(self, patterns: list[str], line: int) -> tuple[Path, ...]:
        """The files and folders of paths and patterns, each once; raises DataError if there is none for one of them."""
        paths: dict[Path, None] = {}
        if len({is_elsewhere(pattern) for pattern in patterns}) > 1:
            what = "some paths of a task are here and some elsewhere"
            raise DataError(what, where=self.place(line), fix="bring them to one place, or make them two tasks")
        for pattern in patterns:
            if is_elsewhere(pattern):
                paths[self.fetched.fetch(pattern)] = None
                continue
            if Path(pattern).exists():
                paths[Path(pattern)] = None
                continue
            is_pattern = GLOB.search(pattern)
            found = sorted(glob.glob(pattern, recursive=True)) if is_pattern else []  # noqa: PTH207 - absolute ones, too
            if not found:
                raise DataError(f'"{pattern}" does not exist', where=self.place(line), fix="correct or remove it")
            paths |= {Path(path): None for path in found}
        return tuple(paths)


def shown(value: Any) -> str:
    """A value for an error, in one short line."""
    text = repr(value)
    return text if len(text) <= 60 else f"{text[:57]}..."


def parse_paths(value: Any) -> list[str]:
    """One path or pattern, or several."""
    paths = value if isinstance(value, list) else [value]
    if not paths or not all(isinstance(path, str) and path for path in paths):
        raise ValueError("write a path or a list of paths")
    return paths


def parse_format(value: Any) -> str | None:
    """The name of a shape, None for auto."""
    if value != "auto" and value not in RECORD_FORMATS:
        near = get_close_matches(str(value), RECORD_FORMATS, n=1)
        raise ValueError(f'did you mean "{near[0]}"?' if near else f"there are auto, {', '.join(RECORD_FORMATS)}")
    return None if value == "auto" else value


def parse_fields(value: Any) -> dict[str, str]:
    """What fields are read as."""
    if not isinstance(value, dict) or not all(isinstance(target, str) for target in value.values()):
        raise ValueError("write `FIELD: what it is read as` under it")
    check_fields(value)
    return value


def parse_limit(value: Any) -> int:
    """A count from 1."""
    if isinstance(value, bool) or not isinstance(value, int) or value < 1:
        raise ValueError("write a whole number from 1")
    return value


def parse_weight(value: Any) -> float:
    """A weight that a record may have."""
    if isinstance(value, bool) or not isinstance(value, int | float) or not LEAST_WEIGHT <= value <= MOST_WEIGHT:
        raise ValueError(f"write a number from {LEAST_WEIGHT:g} to {MOST_WEIGHT:g}")
    return float(value)


def parse_validation(value: Any) -> float | list[str]:
    """A fraction, or paths of validation data."""
    if isinstance(value, int | float) and not isinstance(value, bool) and 0 <= value < 1:
        return float(value)
    if not isinstance(value, str | list):
        raise ValueError("write a fraction from 0 to below 1, or paths of validation data")
    return parse_paths(value)


def parse_group(value: Any) -> str:
    """The name of a field."""
    if not isinstance(value, str) or not value:
        raise ValueError("write the name of a field, or (prompt)")
    return value


def parse_train_on(value: Any) -> str:
    """Which bot turns are trained on."""
    if value not in ("all", "last"):
        raise ValueError("write all or last")
    return value


def parse_kind(value: Any) -> str:
    """What is made of records."""
    if value not in ("conversation", "fim"):
        raise ValueError("write conversation or fim")
    return value


def parse_fim(value: Any) -> dict[str, Any]:
    """How documents are cut for filling in."""
    if not isinstance(value, dict) or not value.keys() <= {"sentinels", "spm", "spans"}:
        raise ValueError("write `sentinels:`, `spm:` and `spans:` under it")
    sentinels, spm = value.get("sentinels", "auto"), value.get("spm", 0.5)
    is_list = isinstance(sentinels, list) and len(sentinels) == 3 and all(isinstance(token, str) for token in sentinels)
    if not is_list and sentinels not in FIM_FAMILIES:
        raise ValueError(f"sentinels are one of {', '.join(FIM_FAMILIES)}, or [PREFIX, SUFFIX, MIDDLE]")
    if isinstance(spm, bool) or not isinstance(spm, int | float) or not 0 <= spm <= 1:
        raise ValueError("spm is a share from 0 to 1")
    if value.get("spans", "characters") not in ("characters", "syntax"):
        raise ValueError("spans are characters or syntax")
    return value


def parse_arguments(value: Any) -> dict[str, Any]:
    """Names and values for a chat template."""
    if not isinstance(value, dict):
        raise ValueError("write `NAME: VALUE` under it")
    if taken := sorted(value.keys() & RENDERED_NAMES):
        raise ValueError(f'"{taken[0]}" is not for the data to say')
    try:
        json.dumps(value, allow_nan=False)
    except TypeError as error:
        raise ValueError("a value is nothing that JSON has") from error
    return value


# The keys of a task, in the order that they are listed in.
PARSERS: dict[str, Callable[[Any], Any]] = {
    "paths": parse_paths,
    "format": parse_format,
    "fields": parse_fields,
    "limit": parse_limit,
    "weight": parse_weight,
    "validation": parse_validation,
    "validation_group": parse_group,
    "train_on": parse_train_on,
    "template_arguments": parse_arguments,
    "kind": parse_kind,
    "fim": parse_fim,
}
SETTINGS = {
    "format": "record_format",
    "fields": "fields",
    "limit": "limit",
    "weight": "weight",
    "validation_group": "validation_group",
    "train_on": "train_on",
    "template_arguments": "template_arguments",
    "kind": "kind",
    "fim": "fim",
}
