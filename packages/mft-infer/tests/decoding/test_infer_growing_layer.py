"""A layer that grows in place holds what a layer of plain tensors would."""

import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from transformers.cache_utils import DynamicLayer

from mft_infer.decoding.growing_layer import GrowingLayer

HEADS, SIZE = 2, 3


def filled(rows: int, columns: int, seed: int) -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(seed)
    keys = torch.randn(rows, HEADS, columns, SIZE, generator=generator)
    return keys, -keys


@st.composite
def operations(draw):
    return draw(
        st.lists(
            st.one_of(
                st.tuples(st.just("update"), st.integers(1, 90)),
                st.tuples(st.just("crop"), st.integers(0, 5)),
                st.tuples(st.just("drop"), st.integers(0, 5)),
                st.tuples(st.just("widen"), st.integers(0, 70)),
                st.tuples(st.just("choose"), st.lists(st.integers(0, 9), min_size=1, max_size=6)),
                st.tuples(st.just("leave"), st.integers(0, 9)),
                st.tuples(st.just("add"), st.integers(1, 4)),
            ),
            max_size=12,
        )
    )


@given(operations(), st.integers(1, 4), st.integers(1, 9))
@settings(deadline=None)
def test_any_operations_give_what_copies_of_plain_tensors_give(steps, rows, columns):
    layer = GrowingLayer()
    with torch.inference_mode():
        layer.update(*filled(rows, columns, 0))
    expected = filled(rows, columns, 0)[0]
    for number, (name, value) in enumerate(steps, start=1):
        rows, width = expected.shape[0], expected.shape[2]
        if name == "update":
            new = filled(rows, value, number)
            with torch.inference_mode():
                shown = layer.update(*new)
            expected = torch.cat([expected, new[0]], dim=2)
            assert torch.equal(shown[0], expected)
        elif name == "crop" and value < width:
            layer.crop(-value)
            expected = expected[:, :, : width - value]
        elif name == "drop" and value < width:
            layer.drop_columns(value)
            expected = expected[:, :, value:]
        elif name == "widen":
            layer.widen(value)
            expected = torch.nn.functional.pad(expected, (0, 0, value, 0))
        elif name == "choose":
            chosen = [row % rows for row in value]
            layer.choose_rows(chosen)
            expected = expected[chosen]
        elif name == "leave" and rows > 1:
            leaving = value % rows
            kept = [rows - 1 if row == leaving else row for row in range(rows - 1)]
            layer.choose_rows(kept)
            expected = expected[kept]
        elif name == "add":
            other = GrowingLayer()
            new = filled(value, 1 + width // 2, number)
            with torch.inference_mode():
                other.update(*new)
            layer.add_rows(other)
            padded = torch.nn.functional.pad(new[0], (0, 0, width - new[0].shape[2], 0))
            expected = torch.cat([expected, padded])
        assert torch.equal(layer.keys, expected)
        assert torch.equal(layer.values, -expected)
        assert layer.get_seq_length() == expected.shape[2]


def test_a_step_writes_into_the_room_that_is_there():
    layer = GrowingLayer()
    layer.update(*filled(4, 10, 0))
    place = layer.keys.data_ptr()
    for number in range(1, 50):
        layer.update(*filled(4, 1, number))
    assert layer.keys.data_ptr() == place
    plain = DynamicLayer()
    for number, columns in enumerate([10, *[1] * 49]):
        plain.update(*filled(4, columns, number))
    assert torch.equal(layer.keys, plain.keys)


def test_rows_that_have_left_take_no_memory_when_the_others_grow():
    layer = GrowingLayer()
    layer.update(*filled(64, 10, 0))
    layer.choose_rows([3])
    for number in range(1, 400):
        layer.update(*filled(1, 1, number))
    columns = layer.keys.untyped_storage().nbytes() // (HEADS * SIZE * layer.keys.element_size())
    assert layer.get_seq_length() == 409 <= columns <= 409 * 5 // 4 + 64
