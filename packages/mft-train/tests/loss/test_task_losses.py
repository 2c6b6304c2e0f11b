"""Losses without a gradient: the same for every size of the forward passes, over the rows that were chosen."""

import itertools

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from mft_train.loss.loss_head import LossHead
from mft_train.loss.task_losses import task_losses
from mft_train.rows.dataset_dir import chosen_rows, open_dataset, validation_rows


@pytest.fixture(scope="module")
def model(tiny_model):
    import torch
    from transformers import AutoModelForCausalLM

    from mft_train.model import segment_attention

    segment_attention.register()
    return AutoModelForCausalLM.from_pretrained(tiny_model, attn_implementation="segments", dtype=torch.float64)


@pytest.mark.parametrize("world_size", [1, 2, 3])
def test_losses_do_not_depend_on_the_rows_of_a_forward_and_all_ranks_make_as_many(model, tiny_dataset, world_size):
    import torch
    from accelerate import Accelerator

    accelerator, dataset, head = Accelerator(cpu=True), open_dataset(str(tiny_dataset)), LossHead(model)
    every = list(validation_rows(dataset, 0, 1))
    expected, sizes = None, []
    for size in (1, 2, 7, 50):
        calls = []
        found = task_losses(
            accelerator, model, head, every, 2, size, lambda calls=calls: bool(calls.append(None)) and False
        )
        expected = expected or found
        assert found == pytest.approx(expected, rel=1e-12)
        sizes.append(len(calls))
    assert sizes == [7, 4, 1, 1]
    passes = set()
    for rank in range(world_size):
        calls = []
        rows = validation_rows(dataset, rank, world_size)
        task_losses(accelerator, model, head, rows, 2, 2, lambda calls=calls: bool(calls.append(None)) and False)
        passes.add(len(calls))
    assert len(passes) == 1
    with torch.no_grad():  # by hand: every row by itself, through the model's own logits
        sums = np.zeros((2, 2))
        for row in every:
            start = 0
            for length in row.segment_lengths:
                ids = torch.tensor(row.input_ids[start : start + length].astype(np.int64))[None]
                losses = torch.nn.functional.cross_entropy(model(ids).logits[0, :-1], ids[0, 1:], reduction="none")
                mask = torch.tensor(row.loss_mask[start + 1 : start + length].astype(bool))
                sums[row.task_id] += float(losses[mask].sum()), int(mask.sum())
                start += length
    assert expected == pytest.approx((sums[:, 0] / sums[:, 1]).tolist(), rel=1e-9)


@given(st.integers(0, 2**256 - 1), st.integers(0, 9), st.integers(0, 50), st.integers(1, 60))
def test_a_subset_is_of_different_rows_in_order_and_depends_on_the_dataset_alone(digest, task_id, available, most):
    chosen = chosen_rows(f"{digest:064x}", task_id, available, most)
    assert chosen == sorted(set(chosen))
    assert len(chosen) == min(available, most)
    assert all(0 <= row < available for row in chosen)
    assert chosen == chosen_rows(f"{digest:064x}", task_id, available, most)
    assert chosen_rows(f"{digest:064x}", task_id, available, None) == list(range(available))


@pytest.mark.parametrize("world_size", [1, 2, 3])
def test_ranks_share_one_subset_and_have_as_many_rows(tiny_dataset, world_size):
    dataset = open_dataset(str(tiny_dataset))
    whole = [row.input_ids.tobytes() for row in validation_rows(dataset, 0, 1, 3)]
    assert [row.task_id for row in validation_rows(dataset, 0, 1, 3)] == [0, 0, 0, 1, 1]
    ranks = [list(validation_rows(dataset, rank, world_size, 3)) for rank in range(world_size)]
    assert len({len(rows) for rows in ranks}) == 1
    counted = [row.input_ids.tobytes() for row in itertools.chain(*ranks) if row.loss_mask.any()]
    assert sorted(counted) == sorted(whole)
    every = {row.input_ids.tobytes() for row in validation_rows(dataset, 0, 1)}
    assert set(whole) < every
