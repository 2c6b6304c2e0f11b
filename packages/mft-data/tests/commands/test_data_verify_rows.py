"""The verify command: rows that break the format."""

import numpy as np
import orjson
import pytest

LIMIT = 64
SHARD = "train/code/shard.00000.mds"
INDEX = "train/code/index.json"


def edit(name, position, value):
    """A change of one value in row 1."""

    def change(number, row):
        if number == 1:
            row[name][position] = value

    return change


def drop_last(name):
    """A change that leaves the last value of every row's column out."""

    def change(_number, row):
        row[name] = row[name][:-1]

    return change


def lengthen(number, row):
    """Row 1 beyond LIMIT, with segments to match."""
    if number == 1:
        extra = LIMIT + 1 - len(row["input_ids"])
        row["input_ids"] = np.pad(row["input_ids"], (0, extra))
        row["loss_mask"] = np.pad(row["loss_mask"], (0, extra))
        row["segment_lengths"][-1] += extra


def set_task_id(number, row):
    """Another task in row 1."""
    if number == 1:
        row["task_id"] = 2


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (edit("input_ids", 3, 60_000), "row 1 has ids above "),
        (edit("loss_mask", 3, 2), "row 1 has a loss_mask with other values than 0 and 1"),
        (edit("loss_mask", 0, 1), "row 1 has a segment whose first token is supervised"),
        (edit("segment_lengths", 0, 1), "row 1 has segment_lengths that do not sum to its tokens"),
        (edit("segment_lengths", 0, 0), "row 1 has an empty segment"),
        (drop_last("loss_mask"), "row 0 has a loss_mask of another length than input_ids (as have "),
        (lengthen, f"row 1 has more than {LIMIT} tokens"),
        (set_task_id, "row 1 has another task_id than 0"),
    ],
)
def test_rows_that_break_the_format(dataset, change, message, helpers):
    helpers.write_rows(dataset, change)
    lines = [line for line in helpers.problems(dataset) if message in line]
    assert len(lines) == 1
    assert lines[0].endswith(f", in {SHARD}, build the dataset anew")


def test_rows_are_counted_as_inspect_counts_them(dataset, monkeypatch, helpers):
    monkeypatch.setattr("mft_data.dataset.mds.SHARD_BYTES", 1_000)
    helpers.write_rows(dataset, lambda number, row: row["loss_mask"].__setitem__(3, 7) if number in (4, 5) else None)
    assert len(list((dataset / "train" / "code").glob("shard.*.mds"))) > 2
    lines = [line for line in helpers.problems(dataset) if "other values than 0 and 1" in line]
    rows = [row for row in (4, 5) if any(line.startswith(f"row {row} has") for line in lines)]
    assert rows[0] == 4
    shown = helpers.run("inspect", dataset, "--task", "code", "--row", "4", "--json").stdout
    assert orjson.loads(shown)["segments"][0]["loss_mask"][3] == 7


def test_a_wrong_dtype(dataset, helpers):
    helpers.write_rows(dataset, lambda number, row: None, ids_dtype="uint32")
    (line,) = helpers.problems(dataset)
    assert line.startswith('the columns are {"input_ids":"ndarray:uint32"')
    assert line.endswith(f"the manifest says others, in {SHARD}, build the dataset anew")
