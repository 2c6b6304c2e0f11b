"""Files of tensors are those that the safetensors library writes, byte for byte."""

import torch
from hypothesis import given
from hypothesis import strategies as st
from safetensors.torch import save_file

from mft_train.checkpoint.tensor_file import format_names, write_tensors

NAMES = st.text('abc.:_"é', min_size=1, max_size=6)
SHAPES = st.lists(st.integers(0, 3), max_size=3)


@given(
    tensors=st.dictionaries(NAMES, st.tuples(st.sampled_from(sorted(format_names(), key=str)), SHAPES), max_size=6),
    metadata=st.sampled_from([{}, {"format": "pt"}]),
)
def test_the_bytes_are_those_of_the_library(tmp_path_factory, tensors, metadata):
    folder = tmp_path_factory.mktemp("files")
    made = {name: torch.rand(shape).mul(9).to(dtype) for name, (dtype, shape) in tensors.items()}
    save_file(made, folder / "theirs", metadata or None)
    write_tensors(folder / "ours", made, metadata)
    assert (folder / "ours").read_bytes() == (folder / "theirs").read_bytes()


def test_a_tensor_that_is_a_view_is_written_as_it_looks(tmp_path):
    from safetensors.torch import load_file

    whole = torch.arange(12.0).view(3, 4)
    write_tensors(tmp_path / "file", {"turned": whole.t(), "part": whole[1:]}, {})
    read = load_file(tmp_path / "file")
    assert read["turned"].equal(whole.t())
    assert read["part"].equal(whole[1:])
