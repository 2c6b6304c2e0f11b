"""Streams have the bytes that the streaming library writes."""

import numpy as np
import pytest
from streaming import MDSWriter

from mft_data.dataset.mds import ShardWriter, mds_columns
from mft_data.encoding.encoder import EncodedBatch
from mft_data.rows.rows import encode_rows


def tree(folder):
    """Name and content of every file in a folder."""
    return {str(path.relative_to(folder)): path.read_bytes() for path in sorted(folder.rglob("*")) if path.is_file()}


@pytest.mark.parametrize("dtype", ["uint16", "uint32"])
def test_every_byte_of_a_stream_is_what_the_streaming_library_writes(tmp_path, monkeypatch, dtype):
    monkeypatch.setattr("mft_data.dataset.mds.SHARD_BYTES", 3000)
    generator = np.random.default_rng(0)
    lengths = np.concatenate([generator.integers(1, 300, size=40), [70_000]])
    ids = generator.integers(0, 60_000, size=lengths.sum()).astype(dtype)
    encoded = EncodedBatch(ids, (ids % 2).astype(np.uint8), lengths)
    rows = [[0], [5, 2], *([position] for position in range(6, 41))]
    writer = ShardWriter(tmp_path / "ours", mds_columns(dtype))
    for sample in encode_rows(encoded, rows, 3):
        writer.write(sample)
    writer.finish()
    starts = np.cumsum(lengths) - lengths
    with MDSWriter(
        columns=mds_columns(dtype), out=str(tmp_path / "theirs"), hashes=["sha256"], size_limit=3000
    ) as theirs:
        for row in rows:
            spans = [slice(starts[p], starts[p] + lengths[p]) for p in row]
            columns = {
                name: np.concatenate([getattr(encoded, name)[span] for span in spans])
                for name in ("input_ids", "loss_mask")
            }
            theirs.write({**columns, "segment_lengths": lengths[row].astype(np.uint32), "task_id": 3})
    assert len(tree(tmp_path / "ours")) > 5
    assert tree(tmp_path / "ours") == tree(tmp_path / "theirs")
