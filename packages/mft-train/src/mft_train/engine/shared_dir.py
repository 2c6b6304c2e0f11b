"""Proof that the run directory is the same on all machines."""

from __future__ import annotations

import secrets
from typing import TYPE_CHECKING

from mft_train.errors import TrainError

if TYPE_CHECKING:
    from pathlib import Path

    from mft_train.engine.world import World


def check_shared(run_dir: Path, world: World) -> None:
    """Raises TrainError, in every rank, if one of them does not see what rank 0 writes into `run_dir`."""
    from accelerate.utils import broadcast_object_list, gather_object

    if world.world_size == 1:
        return
    # A name that no other run and no earlier one has.
    (name,) = broadcast_object_list([f".{secrets.token_hex(8)}.partial"])
    witness = run_dir / name
    if world.is_main:
        witness.touch()
    broadcast_object_list([None])  # nobody looks before the file is there
    blind = [rank for rank, sees in enumerate(gather_object([witness.exists()])) if not sees]
    if world.is_main:
        witness.unlink()
    if blind:
        raise TrainError(
            f'output "{run_dir}" is not the same directory in rank 0 and in rank {blind[0]}',
            fix="let all machines share it, under one absolute path",
        )
