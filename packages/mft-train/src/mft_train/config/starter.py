"""The commented starter config and the JSON schema, both made from the typed configuration."""

from __future__ import annotations

import textwrap
from typing import TYPE_CHECKING, Any, Literal, get_args, get_origin

import orjson
import yaml
from pydantic import BaseModel

from mft_train.config.config import RunConfig

if TYPE_CHECKING:
    from collections.abc import Iterator

    from pydantic.fields import FieldInfo

WIDTH = 100


def starter_text() -> str:
    """A config with every key, its description and its default, or an example where none or a better one is known."""
    return "\n".join(section_lines(RunConfig, None)) + "\n"


def section_lines(model: type[BaseModel], values: BaseModel | None) -> Iterator[str]:
    """The lines of one section; `values` holds its defaults if its own section has some."""
    for name, field in model.model_fields.items():
        value = getattr(values, name) if values else starting_value(field)
        yield from textwrap.wrap(describe(field), WIDTH, initial_indent="# ", subsequent_indent="# ")
        if isinstance(value, BaseModel):
            yield f"{name}:"
            yield from (f"  {line}" for line in section_lines(type(value), value))
        else:
            yield yaml.safe_dump({name: value}, allow_unicode=True).strip()


def starting_value(field: FieldInfo) -> Any:
    """The field's example if it has one, else its default."""
    return field.examples[0] if field.examples else field.default


def describe(field: FieldInfo) -> str:
    """The field's description, with its choices if it has a fixed list of them."""
    choices = get_args(field.annotation) if get_origin(field.annotation) is Literal else ()
    words = [choice if isinstance(choice, str) else str(choice).lower() for choice in choices]
    return f"{field.description}: {' | '.join(words)}" if words else f"{field.description}"


def schema() -> bytes:
    """The JSON schema of a run's config, for editors and checks."""
    return orjson.dumps(RunConfig.model_json_schema(), option=orjson.OPT_INDENT_2)
