"""Proof that all machines begin with the same base, where each reads it: weights that stay as they are are not sent."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from mft_train.errors import TrainError
from mft_train.model.base_weights import base_identity, tensors_fingerprint
from mft_train.model.load import check_model_dir, loading

if TYPE_CHECKING:
    from mft_train.engine.world import World


def check_same_base(model: str, world: World) -> None:
    """Raises TrainError, in every rank, if machines have different files under the base's name.

    Compared are names, shapes and the first numbers of every tensor: a few KiB each, not whole files.
    """
    from accelerate.utils import gather_object

    if world.num_nodes == 1:
        return
    found = gather_object([quick_identity(model) if world.local_rank == 0 else None])
    machines = found[:: world.local_world_size]
    others = [machine for machine, identity in enumerate(machines) if identity != machines[0]]
    if others:
        raise TrainError(
            f'model "{model}" is not the same on machine 0 and on machine {others[0]}',
            fix="give all machines the same files",
        )


def quick_identity(model: str) -> str:
    """What tells a base from others without reading all of it, where its files allow for that."""
    check_model_dir(model)
    with loading(model):
        fingerprint = tensors_fingerprint(Path(model)) if Path(model).is_dir() else None
        return fingerprint or base_identity(model)
