"""The most memory that a training process has held."""

from __future__ import annotations

import resource
import sys


def peak_memory_bytes() -> int:
    """The peak of this process so far: of torch's CUDA allocator where there is a GPU, else of resident memory."""
    import torch

    if torch.cuda.is_available():
        return torch.cuda.max_memory_allocated()
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024)
