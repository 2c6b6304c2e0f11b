"""Which row a rank holds, against streaming's own partition."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from mft_train.rows.dataset_dir import open_dataset
from mft_train.rows.row_stream import RowStream, place_in_deal


def partition(num_samples, num_nodes, ranks_per_node, batch_size, done):
    """Streaming's deal: for each rank in order its positions in the epoch, -1 for none."""
    from streaming.base.partition import get_partitions

    dealt = get_partitions("relaxed", num_samples, 1, num_nodes, ranks_per_node, 1, batch_size, done)
    return dealt.reshape(num_nodes * ranks_per_node, -1)


def check(num_samples, num_nodes, ranks_per_node, batch_size, done):
    world_size = num_nodes * ranks_per_node
    dealt = partition(num_samples, num_nodes, ranks_per_node, batch_size, done)
    counted = []
    for rank, positions in enumerate(dealt):
        place = place_in_deal(rank, world_size, num_nodes)
        for index, position in enumerate(positions[positions >= 0]):
            expected = done + index * world_size + place
            if expected < num_samples:
                assert position == expected, f"rank {rank}, row {index}"
                counted.append(expected)
    assert sorted(counted) == list(range(done, num_samples)), "every row of the epoch counts once"


@pytest.mark.parametrize(("num_nodes", "ranks_per_node"), [(1, 2), (2, 1), (2, 8), (4, 8)])
@pytest.mark.parametrize("num_samples", [200, 193, 129])
@pytest.mark.parametrize("done", [0, 64])
def test_a_rank_holds_the_rows_that_streaming_deals_to_it(num_nodes, ranks_per_node, num_samples, done):
    check(num_samples, num_nodes, ranks_per_node, 2, done)


@given(
    num_nodes=st.integers(1, 5),
    ranks_per_node=st.integers(1, 8),
    batch_size=st.integers(1, 3),
    steps=st.integers(0, 3),
    rest=st.integers(1, 400),
)
def test_so_it_is_for_every_number_of_machines(num_nodes, ranks_per_node, batch_size, steps, rest):
    done = steps * batch_size * num_nodes * ranks_per_node
    # streaming repeats rows in its own way where there are fewer than ranks
    check(done + rest + 2 * num_nodes * ranks_per_node, num_nodes, ranks_per_node, batch_size, done)


@pytest.mark.parametrize(("num_nodes", "ranks_per_node"), [(1, 2), (2, 1), (2, 8), (4, 8)])
def test_each_row_of_an_epoch_counts_in_one_rank(tiny_dataset, monkeypatch, num_nodes, ranks_per_node):
    """The rows of each rank are taken one rank after the other, with streaming's deal in the place of its processes."""
    monkeypatch.setenv("LOCAL_WORLD_SIZE", "1")
    dataset, world_size, num_samples = open_dataset(str(tiny_dataset)), num_nodes * ranks_per_node, 29
    stream = RowStream(dataset, {}, 2 * world_size, 0, 0, 1)
    dealt = partition(num_samples, num_nodes, ranks_per_node, 2, 0)
    counted = []
    for rank, positions in enumerate(dealt):
        stream.place, stream.world_size = place_in_deal(rank, world_size, num_nodes), world_size
        for start in range(0, len(positions), 2):
            numbers = [position for position in positions[start : start + 2] if position >= 0]
            samples = [stream.streaming[int(number)] for number in numbers]
            rows = stream.step(samples, start * world_size, 0).rows
            counted += [number for number, row in zip(numbers, rows, strict=True) if np.any(row.loss_mask)]
    assert sorted(counted) == list(range(num_samples))
