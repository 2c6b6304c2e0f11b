"""Products of rows of any length: right, and without a byte kept for each length."""

import subprocess
import sys
import textwrap

import pytest
import torch
from torch.nn import functional as F

from mft_train.model.matrix_product import linear


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16])
@pytest.mark.parametrize("length", [0, 1, 63, 64, 65, 200])
@pytest.mark.parametrize("is_transposed", [False, True])
def test_a_product_is_that_of_torch(dtype, length, is_transposed):
    torch.manual_seed(0)
    x, bias = torch.randn(length, 24, dtype=dtype), torch.randn(40, dtype=dtype)
    weight = torch.randn(24, 40, dtype=dtype).T if is_transposed else torch.randn(40, 24, dtype=dtype)
    tolerance = {torch.float32: 1e-5, torch.float64: 1e-12, torch.bfloat16: 1e-1}[dtype]
    for added in (None, bias):
        product = linear(x, weight, added)
        assert product.shape == (length, 40)
        assert torch.allclose(product, F.linear(x, weight, added), atol=tolerance)
    # Its own memory: callers add to it in place.
    linear(x, weight).add_(1)


# Prints the growth in MiB of this process over products of 1,500 different lengths, once 20 have been made.
GROWTH = """
    import torch
    from mft_train.model.matrix_product import linear

    torch.set_num_threads(1)
    weight = torch.randn(192, 96)

    def resident():
        with open("/proc/self/statm") as file:
            return int(file.read().split()[1]) * 4096 / 2**20

    for length in range(1, 1521):
        linear(torch.ones(length, 96), weight)
        if length == 20:
            before = resident()
    print(resident() - before)
"""


@pytest.mark.skipif(not torch.backends.mkldnn.is_available(), reason="no oneDNN in this torch")
def test_memory_does_not_grow_with_the_number_of_lengths():
    done = subprocess.run([sys.executable, "-c", textwrap.dedent(GROWTH)], capture_output=True, text=True, check=True)
    # 48 lengths, in steps of 32 rows, instead of 1,500, which took 914 MiB.
    assert float(done.stdout) < 100
