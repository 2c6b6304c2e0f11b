"""The values of options that click has no type for: parsed here, without loading what will use them."""

from pathlib import Path
from typing import Any

import click

ESCAPES = {"n": "\n", "t": "\t", "\\": "\\"}


def parse_role_markers(_context: click.Context, _parameter: click.Parameter, values: tuple[str, ...]) -> dict[str, str]:
    """Role to marker text of `ROLE=TEXT` options; `\\n`, `\\t` and `\\\\` in TEXT are escapes."""
    from mft_data.reading.conversation import RESERVED_CHARACTER, ROLES

    markers: dict[str, str] = {}
    for value in values:
        role, separator, text = value.partition("=")
        if not separator or role not in ROLES:
            raise click.BadParameter(f"{value!r} is not ROLE=TEXT with a role of {', '.join(ROLES)}")
        if ROLES[role] in markers:
            raise click.BadParameter(f"role {role} has two markers")
        if RESERVED_CHARACTER in text:
            raise click.BadParameter("the noncharacter U+FDD0 is reserved")
        markers[ROLES[role]] = unescape(text)
    return markers


def unescape(text: str) -> str:
    """`text` with its escapes replaced."""
    characters = iter(text)
    plain = ""
    for character in characters:
        if character == "\\":
            escape = next(characters, "")
            if escape not in ESCAPES:
                raise click.BadParameter(rf"{text!r} has an escape other than \n, \t and \\")
            plain += ESCAPES[escape]
        else:
            plain += character
    return plain


def parse_template(_context: click.Context, _parameter: click.Parameter, value: str) -> str:
    """The name of a template, or the path of a file with one."""
    if value in ("mft", "mftcoder", "tokenizer") or Path(value).is_file():
        return value
    raise click.BadParameter(f"{value!r} is not mft, mftcoder, tokenizer, or a file")


def parse_record_format(_context: click.Context, _parameter: click.Parameter, value: str) -> str | None:
    """The name of a record shape, None for auto."""
    from mft_data.reading.shapes import RECORD_FORMATS

    if value != "auto" and value not in RECORD_FORMATS:
        raise click.BadParameter(f"{value!r} is not one of auto, {', '.join(RECORD_FORMATS)}")
    return None if value == "auto" else value


def parse_fields(_context: click.Context, _parameter: click.Parameter, values: tuple[str, ...]) -> dict[str, str]:
    """Field to the name that it is read under, of `FIELD=NAME` options."""
    from mft_data.reading.source_settings import check_fields

    fields = dict(value.rpartition("=")[::2] for value in values)
    if len(fields) < len(values) or "" in fields:
        raise click.BadParameter("give each field once, as FIELD=NAME")
    try:
        check_fields(fields)
    except ValueError as error:
        raise click.BadParameter(str(error)) from error
    return fields


def parse_max_rejects(_context: click.Context, _parameter: click.Parameter, value: str | None) -> Any:
    """The MaxRejects of `N` or `P%`, None without."""
    from mft_data.reading.records import MaxRejects

    if value is None:
        return None
    try:
        if value.endswith("%"):
            percent = float(value[:-1])
            if 0 <= percent <= 100:
                return MaxRejects(count=None, percent=percent)
        elif int(value) >= 0:
            return MaxRejects(count=int(value))
    except ValueError:
        pass
    raise click.BadParameter(f"{value!r} is neither a count nor a percentage like 1%")


def parse_part(_context: click.Context, _parameter: click.Parameter, value: str | None) -> tuple[int, int] | None:
    """The numbers of `I/N`."""
    if value is None:
        return None
    part, slash, num_parts = value.partition("/")
    if slash and part.isdecimal() and num_parts.isdecimal() and 1 <= int(part) <= int(num_parts):
        return int(part), int(num_parts)
    raise click.BadParameter(f"{value!r} is not I/N with I from 1 to N")
