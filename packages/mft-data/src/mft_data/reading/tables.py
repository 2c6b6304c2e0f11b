"""Parquet and Arrow files as lines of JSON, read a batch of rows at a time."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import orjson

from mft_data.errors import DataError

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

TABLE_SUFFIXES = (".parquet", ".arrow")
BATCH_ROWS = 1000


def is_table(path: Path) -> bool:
    """Whether a file has rows and columns, by its name."""
    return path.name.endswith(TABLE_SUFFIXES)


def table_lines(path: Path) -> Iterator[bytes]:
    """Each row of a Parquet or Arrow file as a line of JSON; raises DataError.

    What is null is left out: a table cannot tell it from what is not there. Memory holds a row group's pages, or one
    batch of an Arrow file at a time.
    """
    try:
        import pyarrow
    except ImportError as error:
        raise DataError(
            "Parquet and Arrow files need pyarrow", where=str(path), fix="pip install 'mft-data[tables]'"
        ) from error
    number = 0
    try:
        for batch in table_batches(path):
            for row in batch.to_pylist():
                number += 1
                yield orjson.dumps(without_nulls(row), option=orjson.OPT_APPEND_NEWLINE)
    except orjson.JSONEncodeError as error:
        raise DataError(
            f"row {number} has a value that JSON has not ({error})", where=str(path), fix="leave its column out"
        ) from error
    except (pyarrow.ArrowException, OSError) as error:
        reason = (str(error).strip().splitlines() or [type(error).__name__])[0]
        raise DataError(f"the table cannot be read ({reason})", where=str(path)) from error


def table_batches(path: Path) -> Iterator[Any]:
    """The rows of a Parquet or Arrow file in batches of at most BATCH_ROWS; raises pyarrow's exceptions."""
    import pyarrow

    if path.name.endswith(".parquet"):
        import pyarrow.parquet

        with pyarrow.parquet.ParquetFile(path) as file:
            yield from file.iter_batches(BATCH_ROWS)
        return
    with pyarrow.memory_map(str(path)) as content:
        try:
            # What Hugging Face's datasets write.
            batches: Any = pyarrow.ipc.open_stream(content)
        except pyarrow.ArrowInvalid:
            file = pyarrow.ipc.open_file(content)
            batches = (file.get_batch(number) for number in range(file.num_record_batches))
        for batch in batches:
            for start in range(0, batch.num_rows, BATCH_ROWS):
                yield batch.slice(start, BATCH_ROWS)


def without_nulls(value: Any) -> Any:
    """The value without the members of objects that are null, of any depth."""
    if isinstance(value, dict):
        return {key: without_nulls(inner) for key, inner in value.items() if inner is not None}
    return [without_nulls(inner) for inner in value] if isinstance(value, list) else value
