"""Reading a run's YAML file, with overrides, into a RunConfig; errors name the key, the line and the fix."""

from __future__ import annotations

import difflib
import re
from pathlib import Path
from typing import TYPE_CHECKING, Any, get_origin

import orjson
import yaml
from pydantic import BaseModel, ValidationError

from mft_train.config.config import RunConfig
from mft_train.config.whole_file import write_whole
from mft_train.errors import TrainError

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

KeyPath = tuple[str, ...]


class ConfigLoader(yaml.SafeLoader):
    """YAML 1.1 with floats such as 1e-4 and without duplicate keys."""


ConfigLoader.add_implicit_resolver(
    "tag:yaml.org,2002:float",
    re.compile(r"^[-+]?(?:\d[\d_]*\.[\d_]*|\.?\d[\d_]*)(?:[eE][-+]?\d+)$"),
    list("-+0123456789."),
)


def read_config(path: Path, overrides: Sequence[str] = ()) -> RunConfig:
    """The validated config of a YAML file, after `key.sub=value` overrides; raises TrainError."""
    try:
        text = path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        reason = error.strerror if isinstance(error, OSError) else "not UTF-8"
        raise TrainError(f"cannot read the config: {reason}", where=str(path)) from error
    settings, lines = parse_yaml(text, str(path))
    places = {key: f"{path} line {line}" for key, line in lines.items()}
    for override in overrides:
        apply_override(settings, places, override)
    try:
        return RunConfig.model_validate(settings)
    except ValidationError as error:
        raise explain(error, places, str(path)) from error


def write_config(config: RunConfig, path: Path) -> None:
    """Writes the resolved config, every key in declaration order, in place of an older one."""
    staging = path.with_name(f".{path.name}.partial")
    staging.write_text(yaml.safe_dump(config.model_dump(), sort_keys=False, allow_unicode=True), encoding="utf-8")
    staging.replace(path)


def write_new_settings(settings: dict[str, Any], path: Path) -> None:
    """Writes the settings of a config file in their order; raises TrainError if the file exists."""
    write_new_file(yaml.safe_dump(settings, sort_keys=False, allow_unicode=True), path)


def write_new_file(text: str, path: Path) -> None:
    """Writes a file that appears whole or not at all; raises TrainError if it exists."""
    if path.exists():
        raise TrainError(f'"{path}" exists, it is not overwritten', fix="choose another name")
    write_whole(text.encode(), path)


def parse_yaml(text: str, where: str) -> tuple[dict[str, Any], dict[KeyPath, int]]:
    """The mapping in `text` and the 1-based line of each of its keys; raises TrainError."""
    try:
        root = yaml.compose(text, Loader=ConfigLoader)
        settings = yaml.load(text, Loader=ConfigLoader)  # noqa: S506 - a SafeLoader
    except yaml.MarkedYAMLError as error:
        line = f" line {error.problem_mark.line + 1}" if error.problem_mark else ""
        raise TrainError(f"not valid YAML: {error.problem}", where=f"{where}{line}") from error
    except yaml.YAMLError as error:
        raise TrainError(f"not valid YAML: {str(error).splitlines()[0]}", where=where) from error
    if not isinstance(settings, dict):
        raise TrainError("the config is not a mapping", where=where, fix="write one `key: value` per line")
    lines: dict[KeyPath, int] = {}
    record_lines(root, (), lines, where)
    return settings, lines


def record_lines(node: yaml.Node, prefix: KeyPath, lines: dict[KeyPath, int], where: str) -> None:
    """Notes the line of every key of nested mappings in `lines`; raises TrainError on a key given twice."""
    if not isinstance(node, yaml.MappingNode):
        return
    for key_node, value_node in node.value:
        key = (*prefix, str(key_node.value))
        line = key_node.start_mark.line + 1
        if key in lines:
            raise TrainError(
                f'key "{".".join(key)}" is given twice, first on line {lines[key]}', where=f"{where} line {line}"
            )
        lines[key] = line
        record_lines(value_node, key, lines, where)


def flatten_values(settings: dict[str, Any], prefix: str = "", whole: Sequence[str] = ()) -> Iterator[tuple[str, Any]]:
    """Dotted keys and values, in their order; a mapping that is empty or named in `whole` is a value."""
    for key, value in settings.items():
        if isinstance(value, dict) and value and key not in whole:
            yield from flatten_values(value, f"{prefix}{key}.")
        else:
            yield f"{prefix}{key}", value


def flatten(settings: dict[str, Any]) -> Iterator[tuple[str, str]]:
    """Dotted keys and values as text, in their order."""
    for key, value in flatten_values(settings):
        yield key, value if isinstance(value, str) else orjson.dumps(value, default=str).decode()


def apply_override(settings: dict[str, Any], places: dict[KeyPath, str], override: str) -> None:
    """Sets one `key.sub=value` in `settings`, the value read as YAML; raises TrainError."""
    name, equals, value = override.partition("=")
    if not equals or not name:
        raise TrainError(f'"{override}" is not an override', fix="write key=value or key.sub=value")
    *parents, last = key_path(name)
    section = settings
    for parent in parents:
        if section.get(parent) is None:
            section[parent] = {}
        section = section[parent]
        if not isinstance(section, dict):
            raise TrainError(f'"{parent}" in override "{override}" is not a section')
    try:
        section[last] = yaml.load(value, Loader=ConfigLoader)  # noqa: S506 - a SafeLoader
    except yaml.YAMLError as error:
        raise TrainError(f'the value of override "{override}" is not valid YAML') from error
    places[(*parents, last)] = f'override "{override}"'


def key_path(name: str) -> KeyPath:
    """The keys that a dotted name goes through; what follows a mapping such as `mixture` is one key, a task's name."""
    words = name.split(".")
    for depth in range(1, len(words)):
        if is_mapping(tuple(words[:depth])):
            return (*words[:depth], ".".join(words[depth:]))
    return tuple(words)


def is_mapping(key: KeyPath) -> bool:
    """Whether a key holds a mapping with keys of the user's own."""
    section = section_model(key[:-1])
    field = section.model_fields.get(key[-1]) if section else None
    return field is not None and get_origin(field.annotation) is dict


def explain(error: ValidationError, places: dict[KeyPath, str], where: str) -> TrainError:
    """The first problem of a pydantic error as one line with the key, its place and the nearest valid key."""
    problem = error.errors()[0]
    # A union adds the name of its branch to the location: keep the longest part that is a key of the file.
    location = tuple(str(part) for part in problem["loc"])
    while location not in places and len(location) > 1 and problem["type"] != "missing":
        location = location[:-1]
    name = ".".join(location)
    place = places.get(location, where)
    if problem["type"] == "extra_forbidden":
        near = difflib.get_close_matches(location[-1], valid_keys(location[:-1]), n=1)
        fix = f'did you mean "{near[0]}"?' if near else f"valid keys: {', '.join(valid_keys(location[:-1]))}"
        return TrainError(f'unknown key "{name}"', where=place, fix=fix)
    if problem["type"] == "missing":
        return TrainError(f'key "{name}" is missing', where=place, fix=f"add `{name}: ...`")
    message = problem["msg"].removeprefix("Value error, ")
    if not name:
        return TrainError(message, where=place)
    value = problem["input"]
    if isinstance(value, dict):
        return TrainError(f'"{name}": {message}', where=place)
    return TrainError(f'"{name}" is {value!r}: {message[0].lower()}{message[1:]}', where=place)


def valid_keys(section: KeyPath) -> list[str]:
    """The keys that a (nested) section accepts."""
    model = section_model(section)
    return list(model.model_fields) if model else []


def section_model(section: KeyPath) -> type[BaseModel] | None:
    """The type of a (nested) section, None if there is none of that name."""
    model: type[BaseModel] = RunConfig
    for name in section:
        field = model.model_fields.get(name)
        if field is None or not (isinstance(field.annotation, type) and issubclass(field.annotation, BaseModel)):
            return None
        model = field.annotation
    return model
