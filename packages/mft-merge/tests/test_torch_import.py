"""Torch is imported without a look for garbage, and the look is on again afterwards."""

import subprocess
import sys

COUNT = """
import gc
from mft_merge.torch_import import import_torch
collections = []
gc.callbacks.append(lambda phase, info: collections.append(phase))
import_torch()
num_collections, is_on = len(collections), gc.isenabled()
import torch
import_torch()
gc.collect()
print(num_collections, is_on, len(collections), gc.get_freeze_count() > 100_000)
"""


def test_no_garbage_is_looked_for_while_torch_is_imported():
    done = subprocess.run([sys.executable, "-c", COUNT], check=True, capture_output=True, text=True)
    assert done.stdout.split() == ["0", "True", "2", "True"]
