"""The random number generators of a process, as a checkpoint keeps them."""

from __future__ import annotations

import random
from typing import Any

import numpy as np


def random_state() -> dict[str, Any]:
    """The state of every random number generator of this process."""
    import torch

    numpy_state: Any = np.random.get_state()
    version, python_words, gauss = random.getstate()
    return {
        "python": [version, list(python_words), gauss],
        "numpy": [numpy_state[0], torch.from_numpy(numpy_state[1].astype(np.int64)), *numpy_state[2:]],
        "torch": torch.get_rng_state(),
        "cuda": torch.cuda.get_rng_state_all() if torch.cuda.is_available() else [],
    }


def restore_random_state(state: dict[str, Any]) -> None:
    """Puts every random number generator of this process where `random_state` found it."""
    import torch

    version, python_words, gauss = state["python"]
    random.setstate((version, tuple(python_words), gauss))
    name, words, *rest = state["numpy"]
    np.random.set_state((name, words.numpy().astype(np.uint32), *rest))
    torch.set_rng_state(state["torch"])
    if torch.cuda.is_available():
        torch.cuda.set_rng_state_all(state["cuda"])
