"""The fields of a decoded JSON record, checked, and named in words."""

from __future__ import annotations

from itertools import islice
from typing import Any

from mft_data.errors import RecordError
from mft_data.reading.conversation import RESERVED_CHARACTER


def string_field(entry: dict[str, Any], field: str, where: str = "the record") -> str:
    """The string under `field`; raises RecordError if it is missing, no string, or holds the reserved character."""
    text = entry.get(field)
    if isinstance(text, str) and RESERVED_CHARACTER not in text:
        return text
    name = f'field "{field}"' if where == "the record" else f'field "{field}" of {where}'
    if field not in entry:
        raise RecordError(f"{name} is missing", fix=found_fields(entry, where))
    if not isinstance(text, str):
        raise RecordError(f"{name} is {json_type(text)}, not a string")
    raise RecordError(f"{name} holds the noncharacter U+FDD0, which is reserved")


def filled_field(record: dict[str, Any], field: str) -> str:
    """The string under `field`; raises RecordError if there is none or it is empty or blank."""
    text = string_field(record, field)
    if not text.strip():
        raise RecordError(f'field "{field}" is {"blank" if text else "empty"}')
    return text


def optional_field(record: dict[str, Any], field: str) -> str:
    """The string under `field`, empty where the field is missing or null; raises RecordError if it is anything else."""
    return "" if record.get(field) is None else string_field(record, field)


def found_fields(entry: dict[str, Any], where: str = "the record") -> str:
    """Which fields an object has, in words; at most eight of them."""
    names = [quoted(name) for name in islice(entry, 8)]
    more = f" and {len(entry) - len(names)} more" if len(entry) > len(names) else ""
    return f"{where} has {', '.join(names) or 'no fields'}{more}"


def quoted(text: str) -> str:
    """`text` on one line and in quotes, cut to 40 characters."""
    shown = text if len(text) <= 40 else f"{text[:40]}..."
    return f'"{shown}"' if shown.isprintable() else ascii(shown)


def json_type(value: Any) -> str:
    """The JSON type of a decoded value, with its article."""
    names = {type(None): "null", bool: "a boolean", str: "a string", list: "a list", dict: "an object"}
    return names.get(type(value), "a number")
