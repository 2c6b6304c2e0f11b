"""Databases made to tell SQL queries apart: small tables whose values are those that the right query asks for."""

import random
import re
import sqlite3
from collections.abc import Collection, Iterator
from contextlib import closing
from typing import Any

from mft_eval.sandbox.sql_host import shown_rows

NUM_DATABASES = 12
_MOST_TRIED = 120
_MOST_ROWS = 12
_WORDS = ("amber", "birch", "cedar", "delta", "ember", "fjord")
_TEXT = re.compile(r"'((?:[^']|'')*)'")
_NUMBER = re.compile(r"(?<![\w.])\d+(?:\.\d+)?")
_NOT_CODE = re.compile(r"'(?:[^']|'')*'|\"(?:[^\"]|\"\")*\"|`[^`]*`|--[^\n]*|/\*.*?\*/", re.DOTALL)
Case = tuple[str, bool, str]


def is_ordered_query(query: str) -> bool:
    """Whether the rows of `query` have an order: ORDER BY stands outside of every parenthesis."""
    code = _NOT_CODE.sub(" x ", query)
    while (inner := re.sub(r"\([^()]*\)", " ", code)) != code:
        code = inner
    return re.search(r"\border\s+by\b", code, re.IGNORECASE) is not None


def make_cases(schema: str, query: str) -> list[Case]:
    """For each of up to `NUM_DATABASES` databases its script, whether order counts, and the rows of `query`.

    The first is that of `schema` itself where that inserts rows. The others have tables filled at random; those come
    first for which `query` gives rows. One where the rows depend on the order in which the tables hold theirs, as
    behind a LIMIT, asks for nothing definite and is left out; where only the order of the rows does, for equal keys,
    it does not count there.
    """
    full: list[Case] = []
    empty: list[Case] = []
    for script in _databases(schema, query):
        case = _case(script, query)
        if case is not None:
            (full if case[2] else empty).append(case)
        if len(full) == NUM_DATABASES:
            break
    return [*full, *empty][:NUM_DATABASES]


def _case(script: str, query: str) -> Case | None:
    with closing(sqlite3.connect(":memory:")) as database, closing(sqlite3.connect(":memory:")) as shuffled:
        try:
            database.executescript(script)
            _copy_shuffled(database, shuffled)
            rows, other_rows = (list(side.execute(query)) for side in (database, shuffled))
        except sqlite3.Error:
            return None
    if shown_rows(rows, is_ordered=False) != shown_rows(other_rows, is_ordered=False):
        return None
    in_order = shown_rows(rows, is_ordered=True)
    is_ordered = is_ordered_query(query) and in_order == shown_rows(other_rows, is_ordered=True)
    return script, is_ordered, shown_rows(rows, is_ordered=is_ordered)


def _copy_shuffled(database: sqlite3.Connection, other: sqlite3.Connection) -> None:
    """Copies tables and views; the tables without keys, whose rows SQLite would keep in their order."""
    for kind, name, statement in database.execute("SELECT type, name, sql FROM sqlite_master ORDER BY rowid"):
        if kind == "table" and not name.startswith("sqlite_"):
            described = list(database.execute(f"PRAGMA table_info({_quoted(name)})"))
            columns = ", ".join(f"{_quoted(column[1])} {column[2]}" for column in described)
            other.execute(f"CREATE TABLE {_quoted(name)} ({columns})")
            rows = list(database.execute(f"SELECT * FROM {_quoted(name)}"))  # noqa: S608
            random.Random(0).shuffle(rows)
            marks = ", ".join("?" * len(described))
            other.executemany(f"INSERT INTO {_quoted(name)} VALUES ({marks})", rows)  # noqa: S608
        elif kind == "view":
            other.execute(statement)


def _databases(schema: str, query: str) -> Iterator[str]:
    """Scripts: `schema` itself where it inserts rows, then its tables and views with rows made at random."""
    with closing(sqlite3.connect(":memory:")) as database:
        database.executescript(schema)
        found = list(database.execute("SELECT type, name, sql FROM sqlite_master WHERE sql IS NOT NULL ORDER BY rowid"))
        tables = [name for kind, name, _ in found if kind == "table" and not name.startswith("sqlite_")]
        if any(database.execute(f"SELECT 1 FROM {_quoted(name)}").fetchone() for name in tables):  # noqa: S608
            yield schema
        columns = {name: list(database.execute(f"PRAGMA table_info({_quoted(name)})")) for name in tables}
        links = {
            (name, link[3]) for name in tables for link in database.execute(f"PRAGMA foreign_key_list({_quoted(name)})")
        }
    head = "".join(f"{statement};\n" for _, name, statement in found if not name.startswith("sqlite_"))
    for seed in range(_MOST_TRIED):
        yield head + "".join(_rows(columns, links, query, random.Random(seed)))


def _rows(
    columns: dict[str, list[Any]], links: Collection[tuple[str, str]], query: str, draw: random.Random
) -> list[str]:
    """INSERT statements; a row that breaks a constraint is passed over."""
    asked = [found.replace("''", "'").replace("%", "") for found in _TEXT.findall(query)]
    texts = [*_WORDS, *asked, *asked, *(near for found in asked for near in (found.swapcase(), found[:1] + "x"))]
    numbers = [float(found) for found in _NUMBER.findall(_TEXT.sub("", query))]
    near = [round(number + step) for number in numbers for step in (-1, 0, 1)]
    statements = []
    for table, described in columns.items():
        for row in range(draw.randint(1, _MOST_ROWS)):
            values = []
            for _, name, kind, is_needed, _, key in described:
                if (table, name) in links:
                    # Keys are counted from 1, so that most links meet.
                    value = str(draw.randint(1, _MOST_ROWS // 2))
                elif key and "CHAR" not in kind.upper() and "TEXT" not in kind.upper():
                    value = str(row + 1)
                elif not is_needed and draw.random() < 0.1:
                    value = "NULL"
                else:
                    value = _value(kind, name, texts, near, draw)
                values.append(value)
            statements.append(f"INSERT OR IGNORE INTO {_quoted(table)} VALUES ({', '.join(values)});\n")  # noqa: S608
    return statements


def _value(kind: str, name: str, texts: list[str], near: list[int], draw: random.Random) -> str:
    """A literal for a column of the declared type `kind`."""
    kind = kind.upper()
    if "DATE" in kind or "TIME" in kind or ("date" in name.lower() and "INT" not in kind):
        return f"'20{draw.randint(18, 24)}-{draw.randint(1, 12):02}-{draw.randint(1, 28):02}'"
    if "INT" in kind or "BOOL" in kind:
        return str(draw.choice(near) if near and draw.random() < 0.6 else draw.randint(0, 9))
    if any(word in kind for word in ("REAL", "FLOA", "DOUB", "NUM", "DEC")):
        return str(draw.choice(near) if near and draw.random() < 0.6 else draw.randint(0, 40) / 4)
    # Text, or no type at all; some texts hold a number, as columns declared so often do.
    found = str(draw.choice(near)) if near and draw.random() < 0.4 else draw.choice(texts)
    return "'" + found.replace("'", "''") + "'"


def _quoted(name: str) -> str:
    return '"' + name.replace('"', '""') + '"'
