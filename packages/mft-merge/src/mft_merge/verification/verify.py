"""The merged model against the live one: logits of base and adapter in PEFT, and of what was written."""

import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import click

from mft_merge.errors import MergeError
from mft_merge.files.tensor_file import FLOAT_TYPES, ITEM_BYTES
from mft_merge.output.staging import SCRATCH_NAME
from mft_merge.planning.plan import MergePlan
from mft_merge.verification.live_model import Live, logits
from mft_merge.verification.memory import free_bytes

# The largest norm of the logits' difference over the norm of the logits: weights kept in float32, and rounded ones.
EXACT_BOUND, ROUNDED_BOUND = 1e-4, 0.05
# What a forward takes beside the weights, as a share of them.
FORWARD_SHARE = 1.3


@dataclass(frozen=True, slots=True)
class Verification:
    """How far the logits of the merged model are from the live one's, over random tokens, in float32.

    `relative_difference` is the norm of the difference over the norm of the live logits.
    """

    relative_difference: float
    largest_difference: float
    largest_logit: float
    bound: float
    is_from_disk: bool


def verify(live: Live, merged_dir: Path, plan: MergePlan) -> dict[str, Any]:
    """Compare the model in `merged_dir` with the live one; raises where they differ by more than the bound.

    Models that do not fit into the memory that is free are run from the disk, which holds a copy in float32 meanwhile.
    """
    import torch

    tensors = [tensor for tensor in plan.tensors() if tensor.dtype in FLOAT_TYPES]
    weight_bytes = sum(tensor.num_bytes // ITEM_BYTES[tensor.dtype] * 4 for tensor in tensors)
    is_from_disk = weight_bytes * FORWARD_SHARE > free_bytes()
    scratch_dir = merged_dir.parent / SCRATCH_NAME
    try:
        with _scratch_file(scratch_dir, is_wanted=is_from_disk) as path:
            expected = logits(live, path)
        with _scratch_file(scratch_dir, is_wanted=is_from_disk) as path:
            merged = logits(Live(merged_dir), path)
    except (MergeError, OSError):
        raise
    except Exception as error:  # model code, transformers and PEFT each raise their own kinds
        reason = (str(error).strip().splitlines() or [type(error).__name__])[0]
        raise MergeError(
            f"--verify cannot run the models: {reason}", where=str(live.base_dir), fix="leave it out"
        ) from error
    is_rounded = any(ITEM_BYTES[tensor.dtype] < ITEM_BYTES["F32"] for tensor in tensors)
    difference = merged - expected
    found = Verification(
        float(torch.linalg.norm(difference) / torch.linalg.norm(expected)),
        float(difference.abs().max()),
        float(expected.abs().max()),
        ROUNDED_BOUND if is_rounded else EXACT_BOUND,
        is_from_disk,
    )
    figures = f"{found.relative_difference:.2g} of their norm, at most {found.largest_difference:.2g}"
    if not found.relative_difference <= found.bound:
        raise MergeError(
            f"the merged model's logits differ from the live ones by {figures}; the bound is {found.bound:g}",
            where=str(merged_dir),
        )
    click.echo(f"note: verified: the logits differ from the live ones by {figures}", err=True)
    return asdict(found)


@contextmanager
def _scratch_file(scratch_dir: Path, *, is_wanted: bool) -> Iterator[Path | None]:
    """A path for weights that stay on the disk, if they do."""
    if not is_wanted:
        yield None
        return
    shutil.rmtree(scratch_dir, ignore_errors=True)
    scratch_dir.mkdir()
    try:
        yield scratch_dir / "weights"
    finally:
        shutil.rmtree(scratch_dir)
