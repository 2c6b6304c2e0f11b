"""The way back: the adapter that makes a tuned model of its base, as far as a rank goes, and what it leaves over."""

import importlib.metadata
from dataclasses import dataclass
from math import prod
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from mft_merge.errors import MergeError
from mft_merge.files.fingerprint import tensors_fingerprint
from mft_merge.files.json_file import write_json
from mft_merge.files.tensor_file import FLOAT_TYPES, StoredTensor, make_header, memory_of, num_rows, read_rows
from mft_merge.output.staging import recover, staged
from mft_merge.output.tokenizer_files import copy_tokenizer
from mft_merge.planning.changes import TIED_HEADS
from mft_merge.planning.plan import CONV1D_MODEL_TYPES
from mft_merge.sources.adapter import PREFIX
from mft_merge.sources.base_model import BaseModel, read_base_model

if TYPE_CHECKING:
    from torch import Tensor

RECORD_NAME = "extract.json"
# Matrices whose smaller side is this many ranks or more are decomposed by random projection: how many directions more
# than the rank it takes, and how often it multiplies by the matrix and its transpose.
LARGE, OVERSAMPLING, POWER_ITERATIONS = 8, 16, 4
EMBEDDINGS = {*TIED_HEADS, *TIED_HEADS.values()}


@dataclass(frozen=True, slots=True)
class Extraction:
    """Which tensors become updates of which rank, and which are taken whole, by their names in the adapter."""

    ranks: dict[str, int]
    whole: dict[str, StoredTensor]


def extract(base_dir: Path, tuned_dir: Path, out_dir: Path, rank: int) -> dict[str, Any]:
    """Write to `out_dir` the adapter of this rank that comes closest to making `tuned_dir` of `base_dir`.

    Matrices get the truncated singular value decomposition of their difference, which is the closest of its rank;
    embeddings and tensors that are no matrices are taken whole, as `modules_to_save`. Returns the record with the
    residual of every matrix: the norm of what is left over the norm of the difference.
    """
    recover(out_dir)
    if out_dir.is_symlink() or (out_dir.exists() and (not out_dir.is_dir() or any(out_dir.iterdir()))):
        raise MergeError(f"{out_dir} is not empty", fix="choose another OUT")
    base, tuned = read_base_model(base_dir), read_base_model(tuned_dir)
    found = _differences(base, tuned, rank)
    job = {
        "format_version": "1",
        "producer": f"mft-merge {importlib.metadata.version('mft-merge')}",
        "base": tensors_fingerprint(base.tensors.values()),
        "tuned": tensors_fingerprint(tuned.tensors.values()),
        "rank": rank,
    }
    with staged(out_dir, job, resume=False) as staging:
        is_transposed = base.config.get("model_type") in CONV1D_MODEL_TYPES
        residuals = _write_tensors(
            staging.model_dir / "adapter_model.safetensors", base, tuned, found, is_transposed=is_transposed
        )
        write_json(
            staging.model_dir / "adapter_config.json",
            _adapter_config(base_dir, found, rank, is_transposed=is_transposed),
        )
        record = job | {"residuals": residuals}
        write_json(staging.model_dir / RECORD_NAME, record)
        copy_tokenizer(tuned_dir, staging.model_dir)
        staging.publish()
    if residuals:
        worst = max(residuals, key=lambda name: residuals[name])
        click.echo(f"note: the largest residual is {residuals[worst]:.3g}, of {worst}", err=True)
    return record


def _differences(base: BaseModel, tuned: BaseModel, rank: int) -> Extraction:
    """The tensors that differ; models of other names or shapes are refused by name."""
    for name in sorted(base.tensors.keys() ^ tuned.tensors.keys()):
        raise MergeError(f'tensor "{name}" is in one of the models only', where=f"{base.base_dir} and {tuned.base_dir}")
    changed = []
    for name, tensor in base.tensors.items():
        other = tuned.tensors[name]
        if tensor.shape != other.shape:
            raise MergeError(
                f'"{name}" has shape {list(other.shape)}, the base has {list(tensor.shape)}', where=str(other.path)
            )
        if tensor.dtype not in FLOAT_TYPES or other.dtype not in FLOAT_TYPES:
            raise MergeError(f'"{name}" is of type {other.dtype}', where=str(other.path))
        if bool((_values(tensor) != _values(other)).any()):
            changed.append(name)
    matrices = [name for name in changed if name.endswith(".weight") and len(base.tensors[name].shape) == 2]
    matrices = [name for name in matrices if _kind(name) not in EMBEDDINGS]
    # PEFT wraps every module of a saved name, so each of them must be in the adapter.
    kinds = {_kind(name) for name in changed if name not in matrices}
    whole = {name: tensor for name, tensor in tuned.tensors.items() if _kind(name) in kinds}
    for name in [name for name in whole if _kind(name) in TIED_HEADS]:
        head = f"{TIED_HEADS[_kind(name)]}.weight"
        if head not in base.tensors:
            whole[head] = whole[name]  # both sides of a tie have changed, and an adapter of one would undo it
    ranks = {name: min(rank, *base.tensors[name].shape) for name in matrices if name not in whole}
    if not ranks:
        raise MergeError("no matrix differs between the two models, so there is no adapter", where=str(tuned.base_dir))
    return Extraction(ranks, whole)


def _kind(name: str) -> str:
    """The last name of the module that holds a tensor."""
    return name.rpartition(".")[0].rpartition(".")[2]


def _values(tensor: StoredTensor) -> "Tensor":
    return read_rows(tensor, 0, num_rows(tensor)).float()


def _write_tensors(
    path: Path, base: BaseModel, tuned: BaseModel, found: Extraction, *, is_transposed: bool
) -> dict[str, float]:
    """Write the adapter's tensors one after the other; returns the residual of every matrix."""
    layout: list[tuple[str, str, tuple[int, ...], int]] = []
    for name, rank in found.ranks.items():
        rows, columns = base.tensors[name].shape[::-1] if is_transposed else base.tensors[name].shape
        module = f"{PREFIX}{name.removesuffix('.weight')}"
        layout.append((f"{module}.lora_A.weight", "F32", (rank, columns), rank * columns * 4))
        layout.append((f"{module}.lora_B.weight", "F32", (rows, rank), rows * rank * 4))
    for name, tensor in found.whole.items():
        layout.append((f"{PREFIX}{name}", "F32", tensor.shape, prod(tensor.shape) * 4))
    header = make_header(layout, {"format": "pt"})
    residuals = {}
    with path.open("wb") as stream:
        stream.write(len(header).to_bytes(8, "little") + header)
        for name, rank in found.ranks.items():
            difference = _values(tuned.tensors[name]) - _values(base.tensors[name])
            a, b, residuals[name] = low_rank(difference.T if is_transposed else difference, rank)
            stream.write(memory_of(a))
            stream.write(memory_of(b))
        for tensor in found.whole.values():
            values = _values(tensor).contiguous()
            stream.write(memory_of(values))
    return residuals


def low_rank(difference: "Tensor", rank: int) -> tuple["Tensor", "Tensor", float]:
    """A (rank, in) and B (out, rank) whose product is closest to a matrix, and the norm of the rest over its norm.

    Where the matrix is much larger than the rank the singular vectors are those of a randomised subspace iteration
    (Halko, Martinsson and Tropp, arXiv:0909.4061) with a fixed seed. The norm of the rest is that of this A and B.
    """
    import torch

    if min(difference.shape) > LARGE * rank:
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(0)
            found = torch.svd_lowrank(difference, q=rank + OVERSAMPLING, niter=POWER_ITERATIONS)
        left, values, right = found[0], found[1], found[2].T
    else:
        left, values, right = torch.linalg.svd(difference.double(), full_matrices=False)
    root = values[:rank].sqrt()
    a, b = (root[:, None] * right[:rank]).float().contiguous(), (left[:, :rank] * root).float().contiguous()
    rest = torch.linalg.norm(difference - b @ a) / torch.linalg.norm(difference)
    return a, b, float(rest)


def _adapter_config(base_dir: Path, found: Extraction, rank: int, *, is_transposed: bool) -> dict[str, Any]:
    """The PEFT config in which every update has scale 1."""
    smaller = {name.removesuffix(".weight"): size for name, size in found.ranks.items() if size != rank}
    patterns = {f"^{module.replace('.', chr(92) + '.')}": size for module, size in smaller.items()}
    return {
        "peft_type": "LORA",
        "task_type": "CAUSAL_LM",
        "base_model_name_or_path": str(base_dir),
        "r": rank,
        "lora_alpha": rank,
        "rank_pattern": patterns,
        "alpha_pattern": patterns,
        "target_modules": sorted(name.removesuffix(".weight") for name in found.ranks),
        "modules_to_save": sorted({_kind(name) for name in found.whole}) or None,
        "fan_in_fan_out": is_transposed,
        "bias": "none",
        "init_lora_weights": True,
        "inference_mode": True,
        "lora_dropout": 0.0,
    }
