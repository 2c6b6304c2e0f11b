"""The optimizer's state in ranges: however it was dealt to writers, every reader gets its own numbers, or an error."""

import itertools

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from mft_train.checkpoint.moments import Moments, read_moments, write_moments


def dealt(size, cuts):
    """The ranges of a flat tensor between cuts."""
    edges = [0, *sorted(cuts), size]
    return [range(start, stop) for start, stop in itertools.pairwise(edges)]


def write(folder, state, shares):
    for rank, share in enumerate(shares):
        part = Moments()
        for name, values in state.items():
            part.tensors[f"{name}:exp_avg"] = values[share.start : share.stop].clone()
            part.starts[f"{name}:exp_avg"] = share.start
            if share.start == 0:
                part.tensors[f"{name}:step"] = torch.tensor(3.0)
                part.numbers[f"{name}:count"] = 7
        write_moments(part, folder / f"optimizer-{rank:04d}.safetensors")


@given(
    written=st.lists(st.integers(1, 39), max_size=3, unique=True),
    read=st.lists(st.integers(1, 39), max_size=3, unique=True),
)
def test_any_deal_is_read_under_any_other(tmp_path_factory, written, read):
    folder = tmp_path_factory.mktemp("state")
    state = {"a": torch.rand(40), "b.weight": torch.rand(40)}
    write(folder, state, dealt(40, written))
    for share in dealt(40, read):
        found = read_moments(folder, dict.fromkeys(state, share))
        for name, values in state.items():
            assert found[name]["exp_avg"].equal(values[share.start : share.stop])
            assert found[name]["step"] == 3
            assert found[name]["count"] == 7


def test_a_missing_part_is_an_error(tmp_path):
    write(tmp_path, {"a": torch.rand(40)}, dealt(40, [10, 20]))
    (tmp_path / "optimizer-0001.safetensors").unlink()
    assert read_moments(tmp_path, {"a": range(20, 40)})
    with pytest.raises(ValueError, match=r'of "a:exp_avg" 30 of 40 numbers are there'):
        read_moments(tmp_path, {"a": range(40)})


def test_state_of_other_parameters_is_an_error(tmp_path):
    write(tmp_path, {"a": torch.rand(4)}, dealt(4, []))
    with pytest.raises(ValueError, match='there is no parameter "a"'):
        read_moments(tmp_path, {"b": range(4)})
    with pytest.raises(ValueError, match='the state of "b" is missing'):
        read_moments(tmp_path, {"a": range(4), "b": range(4)})
