"""The merged model against the live one: logits of base and adapter in PEFT, and of what was written."""

import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import click

from mft_merge.errors import MergeError
from mft_merge.files.tensor_file import FLOAT_TYPES, ITEM_BYTES
from mft_merge.output.staging import SCRATCH_NAME
from mft_merge.planning.plan import MergePlan
from mft_merge.verification.dequantized_base import write_dequantized
from mft_merge.verification.live_model import Live, can_run_from_disk, logits
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
    is_layer_by_layer: bool


def verify(live: Live, merged_dir: Path, plan: MergePlan) -> dict[str, Any]:
    """Compare the model in `merged_dir` with the live one; raises where they differ by more than the bound.

    Models that do not fit into the memory that is free are run from the disk, layer by layer.
    """
    import torch

    tensors = [tensor for tensor in plan.tensors() if tensor.dtype in FLOAT_TYPES]
    weight_bytes = sum(tensor.num_bytes // ITEM_BYTES[tensor.dtype] * 4 for tensor in tensors)
    is_layer_by_layer = weight_bytes * FORWARD_SHARE > free_bytes()
    if is_layer_by_layer and not all(can_run_from_disk(adapter_dir) for adapter_dir, _ in live.adapters):
        raise MergeError(
            "the live model must fit into memory where an adapter is more than plain LoRA, and less is free",
            fix="leave out --verify, or run it where more is free",
        )
    base_dir = live.base_dir
    live = replace(live, base_dir=live.base_dir.absolute(), adapters=tuple(_absolute(live.adapters)))
    merged_dir = merged_dir.absolute()
    scratch_dir = merged_dir.parent / SCRATCH_NAME
    try:
        with _placement(scratch_dir, from_disk=is_layer_by_layer) as placement:
            if is_layer_by_layer and live.quantization is not None:
                write_dequantized(live.base_dir, plan, scratch_dir / "base")
                live = replace(live, base_dir=scratch_dir / "base", quantization=None)
            expected = logits(live, placement)
        with _placement(scratch_dir, from_disk=is_layer_by_layer) as placement:
            merged = logits(Live(merged_dir), placement)
    except (MergeError, OSError):
        raise
    except Exception as error:  # model code, transformers and PEFT each raise their own kinds
        reason = (str(error).strip().splitlines() or [type(error).__name__])[0]
        raise MergeError(
            f"--verify cannot run the models: {reason}", where=str(base_dir), fix="leave it out"
        ) from error
    is_rounded = any(ITEM_BYTES[tensor.dtype] < ITEM_BYTES["F32"] for tensor in tensors)
    difference = merged - expected
    found = Verification(
        float(torch.linalg.norm(difference) / torch.linalg.norm(expected)),
        float(difference.abs().max()),
        float(expected.abs().max()),
        ROUNDED_BOUND if is_rounded else EXACT_BOUND,
        is_layer_by_layer,
    )
    figures = f"{found.relative_difference:.2g} of their norm, at most {found.largest_difference:.2g}"
    if not found.relative_difference <= found.bound:
        raise MergeError(
            f"the merged model's logits differ from the live ones by {figures}; the bound is {found.bound:g}",
            where=str(merged_dir),
        )
    click.echo(f"note: verified: the logits differ from the live ones by {figures}", err=True)
    return asdict(found)


def _absolute(adapters: tuple[tuple[Path, float], ...]) -> Iterator[tuple[Path, float]]:
    for adapter_dir, weight in adapters:
        yield adapter_dir.absolute(), weight


@contextmanager
def _placement(scratch_dir: Path, *, from_disk: bool) -> Iterator[dict[str, Any]]:
    """Where the weights go: into memory, or left on the disk but for the layer that is computed."""
    if not from_disk:
        yield {}
        return
    shutil.rmtree(scratch_dir, ignore_errors=True)
    scratch_dir.mkdir()
    try:
        yield {"device_map": "auto", "max_memory": {"cpu": 1}, "offload_folder": str(scratch_dir)}
    finally:
        shutil.rmtree(scratch_dir)
