"""The merged model against the live one: logits of base and adapter in PEFT, and of what was written."""

import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from mft_merge.errors import MergeError
from mft_merge.files.tensor_file import FLOAT_TYPES, ITEM_BYTES
from mft_merge.output.staging import SCRATCH_NAME
from mft_merge.planning.plan import MergePlan
from mft_merge.sources.quantization import Quantization
from mft_merge.values.dequantized import dequantized

if TYPE_CHECKING:
    from torch import Tensor

NUM_TOKENS = 128
# The largest norm of the logits' difference over the norm of the logits: weights kept in float32, and rounded ones.
EXACT_BOUND, ROUNDED_BOUND = 1e-4, 0.05
# What a forward takes beside the weights, as a share of them.
FORWARD_SHARE = 1.3
# Where a container sees the control group that it runs in.
CGROUP_DIR = Path("/sys/fs/cgroup")


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


def check_can_verify() -> None:
    """Raise where the libraries of a verification are not installed."""
    try:
        import peft  # noqa: F401
        import transformers  # noqa: F401
    except ImportError as error:
        raise MergeError(
            "--verify needs PEFT and transformers", fix='install them with: pip install "mft-merge[verify]"'
        ) from error


def verify(
    base_dir: Path,
    adapters: list[tuple[Path, float]],
    merged_dir: Path,
    plan: MergePlan,
    quantization: Quantization | None = None,
) -> dict[str, Any]:
    """Compare the model in `merged_dir` with base and adapters; raises where they differ by more than the bound.

    `adapters` are their directories and weights; with `quantization` the base is what is given back from it. Models
    that do not fit into the memory that is free are run from the disk, layer by layer.
    """
    import torch

    tensors = [tensor for tensor in plan.tensors() if tensor.dtype in FLOAT_TYPES]
    weight_bytes = sum(tensor.num_bytes // ITEM_BYTES[tensor.dtype] * 4 for tensor in tensors)
    is_layer_by_layer = weight_bytes * FORWARD_SHARE > _free_bytes()
    if is_layer_by_layer and (quantization is not None or len(adapters) > 1):
        # From the disk PEFT loads further adapters wrongly, and weights given back from quantisation are in no file.
        raise MergeError(
            "the live model of several adapters or over a quantised base must fit into memory, and less is free",
            fix="leave out --verify, or run it where more is free",
        )
    vocab_size = plan.config_changes.get("vocab_size")
    base_dir, merged_dir = base_dir.absolute(), merged_dir.absolute()
    adapters = [(adapter_dir.absolute(), weight) for adapter_dir, weight in adapters]
    scratch_dir = merged_dir.parent / SCRATCH_NAME
    with _placement(scratch_dir, from_disk=is_layer_by_layer) as placement:
        live = _logits(base_dir, adapters, placement, vocab_size, quantization)
    with _placement(scratch_dir, from_disk=is_layer_by_layer) as placement:
        merged = _logits(merged_dir, [], placement)
    is_rounded = any(ITEM_BYTES[tensor.dtype] < ITEM_BYTES["F32"] for tensor in tensors)
    difference = merged - live
    found = Verification(
        float(torch.linalg.norm(difference) / torch.linalg.norm(live)),
        float(difference.abs().max()),
        float(live.abs().max()),
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


def _logits(
    model_dir: Path,
    adapters: list[tuple[Path, float]],
    placement: dict[str, Any],
    vocab_size: int | None = None,
    quantization: Quantization | None = None,
) -> "Tensor":
    """The logits over the same random tokens, (tokens, vocabulary) in float32."""
    import torch
    from transformers import AutoModelForCausalLM

    model = AutoModelForCausalLM.from_pretrained(model_dir, dtype=torch.float32, trust_remote_code=False, **placement)
    if vocab_size is not None:
        model.resize_token_embeddings(vocab_size, mean_resizing=False)
    if quantization is not None:
        for name in quantization.modules:
            weight = model.get_parameter(f"{name}.weight").data
            weight.copy_(dequantized(weight, quantization))
    if adapters:
        model = _adapted(model, adapters, {key: value for key, value in placement.items() if key != "device_map"})
    size = model.config.get_text_config().vocab_size
    ids = torch.randint(size, (1, NUM_TOKENS), generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        return model.eval()(ids).logits[0].float()


def _adapted(base: Any, adapters: list[tuple[Path, float]], places: dict[str, Any]) -> Any:
    """The base with all adapters at once, each times its weight."""
    from peft import PeftModel
    from peft.tuners.lora import LoraLayer

    names = [str(index) for index in range(len(adapters))]
    model: Any = PeftModel.from_pretrained(base, adapters[0][0], adapter_name=names[0], **places)
    for name, (adapter_dir, _) in zip(names[1:], adapters[1:], strict=True):
        model.load_adapter(adapter_dir, adapter_name=name, **places)
    if len(names) > 1:
        model.base_model.set_adapter(names)
    for module in model.modules():
        for name, (_, weight) in zip(names, adapters, strict=True):
            if isinstance(module, LoraLayer) and name in module.scaling:
                module.scaling[name] *= weight
    return model


@contextmanager
def _placement(scratch_dir: Path, *, from_disk: bool) -> Iterator[dict[str, Any]]:
    """Where the weights go: into memory, or left on the disk but for the layer that is computed.

    From the disk, the working directory is `scratch_dir` meanwhile: PEFT copies the files of the base to where their
    path, taken as a relative one, leads, and would write over the base itself if it were given by a relative path.
    """
    if not from_disk:
        yield {}
        return
    shutil.rmtree(scratch_dir, ignore_errors=True)
    scratch_dir.mkdir()
    before = Path.cwd()
    os.chdir(scratch_dir)
    try:
        yield {"device_map": "auto", "max_memory": {"cpu": 1}, "offload_folder": str(scratch_dir)}
    finally:
        os.chdir(before)
        shutil.rmtree(scratch_dir)


def _free_bytes() -> int:
    """The memory that can be had without swapping, by the machine and by the limit of the control group."""
    lines = Path("/proc/meminfo").read_text().splitlines()
    free = next(int(line.split()[1]) * 1024 for line in lines if line.startswith("MemAvailable:"))
    return min([free, *(limit - used for limit, used in _group_limits(CGROUP_DIR))])


def _group_limits(directory: Path) -> list[tuple[int, int]]:
    """The limit and the use in bytes of a control group, of version 2 or 1, that has a limit."""
    found = []
    for limit_name, used_name in (
        ("memory.max", "memory.current"),
        ("memory/memory.limit_in_bytes", "memory/memory.usage_in_bytes"),
    ):
        paths = directory / limit_name, directory / used_name
        if all(path.is_file() for path in paths):
            limit, used = (path.read_text().strip() for path in paths)
            if limit != "max":
                found.append((int(limit), int(used)))
    return found
