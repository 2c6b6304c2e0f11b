"""The law across processes: two gloo ranks have the gradient of one under every engine, in float64."""

import itertools
import json
import textwrap

import numpy as np
import pytest

from mft_train.rows.packed_batch import Row

REDUCTIONS = ["token_mean", "sample_mean", "task_mean", "task_sample_mean"]
SPLITS = [(1, 1), (1, 3), (2, 1), (2, 2), (2, 4)]  # (ranks, rows in a forward pass)
ENGINES = {1: ["ddp"], 2: ["ddp", "fsdp"]}
# Every rank takes each second row; rank 0 saves loss, norm and gradient by engine, reduction and micro batch size.
RANK = """
    import json, sys
    import numpy as np
    import torch
    from transformers import AutoModelForCausalLM
    from mft_train.config.config import RunConfig
    from mft_train.engine.start import start_engine
    from mft_train.engine.world import announce, read_world
    from mft_train.loss.loss_head import LossHead
    from mft_train.model import segment_attention
    from mft_train.model.compute import Compute
    from mft_train.rows.packed_batch import Row
    from mft_train.running.train_step import accumulate_gradients
    import os

    path, rows, cases, out = sys.argv[1], json.loads(sys.argv[2]), json.loads(sys.argv[3]), sys.argv[4]
    world = read_world(os.environ)
    announce(world, os.environ)
    segment_attention.register()
    compute = Compute(torch.device("cpu"), "float32", "segments", False)

    def start(name):
        settings = {"model": "m", "dataset": "d", "output": "o", "max_steps": 1, "distributed": {"engine": name}}
        engine = start_engine(RunConfig(**settings), world, compute)
        bare = AutoModelForCausalLM.from_pretrained(path, attn_implementation="segments", dtype=torch.float64)
        head = LossHead(bare)
        model, optimizer = engine.prepare(bare, lambda model: torch.optim.SGD(model.parameters()))
        return engine, bare, head, model, optimizer

    started = {}
    rows = [Row(np.array(ids), np.array(mask), np.array(lengths), task) for ids, mask, lengths, task in rows]
    answers = []
    for name, reduction, micro_batch_size in cases:
        engine, bare, head, model, optimizer = started[name] = started.get(name) or start(name)
        model.zero_grad()
        result = accumulate_gradients(
            engine, model, optimizer, head, rows[world.rank::world.world_size], micro_batch_size=micro_batch_size,
            reduction=reduction, task_weights=torch.tensor([1.0, 2.5], dtype=torch.float64), max_grad_norm=1e9)
        gradient = torch.cat([engine.whole(parameter.grad).flatten() for parameter in bare.parameters()])
        assert gradient.dtype == torch.float64
        answers.append([result.loss, result.grad_norm, *gradient.tolist()])
    if world.is_main:
        np.save(out, np.array(answers))
"""


@pytest.fixture(scope="module")
def rows(make_row):
    generator = np.random.default_rng(3)
    samples = [make_row(generator, 40) for _ in range(8)]
    made = [Row(**sample, task_id=task) for sample, task in zip(samples, (0, 0, 1, 0, 1, 0, 0, 0), strict=True)]
    # One rank has a row with nothing to learn from.
    made[5] = Row(made[5].input_ids, np.zeros_like(made[5].loss_mask), made[5].segment_lengths, 0)
    return [[row.input_ids.tolist(), row.loss_mask.tolist(), row.segment_lengths.tolist(), row.task_id] for row in made]


@pytest.fixture
def gradients(rank_server, tiny_model, rows, tmp_path):
    """What so many ranks find, by case."""
    script = tmp_path / "rank.py"
    script.write_text(textwrap.dedent(RANK))

    def gradients(num_ranks, cases):
        printed, out = tmp_path / "printed.txt", tmp_path / f"{num_ranks}.npy"
        arguments = [tiny_model, json.dumps(rows), json.dumps(cases), out]
        codes = rank_server.run(num_ranks, printed, arguments, script=str(script))
        assert codes == [0] * num_ranks, printed.read_text()
        return dict(zip(map(tuple, cases), np.load(out), strict=True))

    return gradients


@pytest.mark.slow
def test_two_ranks_have_the_gradient_of_one_in_float64(gradients):
    found = {}
    for num_ranks in (1, 2):
        sizes = [size for ranks, size in SPLITS if ranks == num_ranks]
        cases = list(itertools.product(ENGINES[num_ranks], REDUCTIONS, sizes))
        found |= {(num_ranks, *case): answer for case, answer in gradients(num_ranks, cases).items()}
    for reduction in REDUCTIONS:
        expected = found[1, "ddp", reduction, 1]
        assert np.abs(expected).max() > 1e-3
        for (num_ranks, engine, name, size), answer in found.items():
            if name == reduction:
                assert np.abs(answer - expected).max() <= 1e-10, (num_ranks, engine, reduction, size)
