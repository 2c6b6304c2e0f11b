"""Runs one SQL query on databases inside the sandbox; standard library only.

A query cannot change this script, whose output is therefore to be believed but for its rows.
"""

from __future__ import annotations

import json
import sqlite3
import sys

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterable
    from typing import Any

QUERY_FILE = "query.sql"
# Up to here an integer and a float that are equal are shown alike.
_MOST_EXACT = 10**9
_ALLOWED = frozenset((sqlite3.SQLITE_SELECT, sqlite3.SQLITE_READ, sqlite3.SQLITE_FUNCTION, sqlite3.SQLITE_RECURSIVE))


def open_database(script: str) -> sqlite3.Connection:
    """A database in memory that `script` has filled, and that can only be read from then on."""
    connection = sqlite3.connect(":memory:")
    # A column may hold bytes that are no UTF-8.
    connection.text_factory = _text
    connection.executescript(script)
    connection.set_authorizer(_authorize)
    return connection


def shown_rows(rows: Iterable[tuple[Any, ...]], *, is_ordered: bool) -> str:
    """The rows, one to a line; where order does not count, sorted. 2.0 is shown as 2, floats to nine digits."""
    lines = [" ".join(map(_shown, row)) for row in rows]
    return "".join(f"{line}\n" for line in (lines if is_ordered else sorted(lines)))


def joined(every: Iterable[str]) -> str:
    """The rows of several databases in one text, a line before those of each."""
    return "".join(f"database\n{rows}" for rows in every)


def _shown(value: Any) -> str:
    if value is None:
        return "null"
    if isinstance(value, float):
        # One zero: -0.0 is equal to it.
        return format(value + 0.0, ".9g")
    if isinstance(value, int):
        return str(value) if abs(value) < _MOST_EXACT else format(float(value), ".9g")
    # In hexadecimal a text has no space and is never read as a number.
    return f"blob:{value.hex()}" if isinstance(value, bytes) else f"text:{value.encode('utf-8', 'replace').hex()}"


def _text(stored: bytes) -> str:
    return stored.decode("utf-8", "replace")


def _authorize(action: int, *_: Any) -> int:
    return sqlite3.SQLITE_OK if action in _ALLOWED else sqlite3.SQLITE_DENY


def main() -> None:
    """Reads databases from stdin and the query from a file, and writes the rows of each."""
    given = json.load(sys.stdin)
    with open(QUERY_FILE, encoding="utf-8", errors="replace") as file:  # noqa: PTH123
        query = file.read()
    sys.stdout.write(joined(_answer(query, **database) for database in given))


def _answer(query: str, script: str, *, is_ordered: bool) -> str:
    cursor = open_database(script).execute(query)
    if cursor.description is None:
        raise ValueError("the query gives no rows")
    return shown_rows(cursor, is_ordered=is_ordered)


if __name__ == "__main__":
    main()
