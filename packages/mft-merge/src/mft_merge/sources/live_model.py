"""The model as transformers builds it from a checkpoint: which stored tensor is which part of which live parameter.

transformers renames, stacks and fuses what a checkpoint holds (the experts of a mixture, the language part of a
multimodal model, ...). Its own rules are run here on tensors without values, so that no table of them is kept.
"""

from dataclasses import dataclass
from math import prod
from typing import TYPE_CHECKING, Any

from mft_merge.errors import MergeError
from mft_merge.sources.base_model import BaseModel
from mft_merge.torch_import import import_torch

if TYPE_CHECKING:
    from torch import Tensor
    from transformers import PreTrainedModel


@dataclass(frozen=True, slots=True)
class Place:
    """Where the elements of a stored tensor lie in the live parameter `parameter`, counted in its row-major order.

    Element (i, j, ...) of the stored tensor of this `shape` is element `offset` + i * strides[0] + j * strides[1] + ...
    """

    parameter: str
    shape: tuple[int, ...]
    offset: int
    strides: tuple[int, ...]


@dataclass(frozen=True, slots=True)
class LiveModel:
    """`shapes` of all live parameters, those of a module in the order of their declaration; `places` of stored tensors.

    `transposed_modules` hold their experts as (experts, in, out).
    """

    shapes: dict[str, tuple[int, ...]]
    transposed_modules: frozenset[str]
    places: dict[str, Place]


def read_live_model(base: BaseModel) -> LiveModel:
    """The live model of a checkpoint, made by transformers 5 without any value of the weights."""
    import_torch()
    try:
        from transformers.core_model_loading import revert_weight_conversion
    except ImportError as error:
        raise MergeError(
            "the adapter's names are not those stored in the base, and mapping them needs transformers 5",
            where=str(base.base_dir),
            fix='install it with: pip install "mft-merge[transformers]"',
        ) from error
    import torch

    model = _meta_model(base)
    live = {name: torch.empty(tensor.shape, device="meta") for name, tensor in model.state_dict().items()}
    # Tied parameters are two names of one tensor and get an own stand-in each.
    owners = {tensor.untyped_storage()._cdata: name for name, tensor in live.items()}
    with _views_stay_views():
        stored = revert_weight_conversion(model, dict(live))
    prefix = f"{model.base_model_prefix}."
    places = {_stored_name(name, prefix, base): _place(tensor, owners) for name, tensor in stored.items()}
    modules = dict(model.named_modules())
    return LiveModel(
        {name: tuple(tensor.shape) for name, tensor in live.items()},
        frozenset(name for name, module in modules.items() if getattr(module, "is_transposed", False)),
        {name: place for name, place in places.items() if place is not None},
    )


def model_class(base: BaseModel) -> tuple[Any, Any]:
    """transformers' config of a checkpoint, and the class of models that it is loaded as."""
    import transformers
    from transformers.models.auto.modeling_auto import MODEL_FOR_CAUSAL_LM_MAPPING

    config = transformers.AutoConfig.from_pretrained(base.base_dir, trust_remote_code=False)
    if type(config) in MODEL_FOR_CAUSAL_LM_MAPPING:
        return config, MODEL_FOR_CAUSAL_LM_MAPPING[type(config)]
    return config, getattr(transformers, str((config.architectures or [None])[0]))


def _meta_model(base: BaseModel) -> "PreTrainedModel":
    import torch
    import transformers

    transformers.utils.logging.set_verbosity_error()
    transformers.utils.logging.disable_progress_bar()
    try:
        config, made = model_class(base)
        stored = {name: torch.empty(tensor.shape, device="meta") for name, tensor in base.tensors.items()}
        return made.from_pretrained(
            None, config=config, state_dict=stored, device_map={"": "meta"}, dtype=torch.float32
        )
    except (AttributeError, KeyError, OSError, RuntimeError, ValueError) as error:
        reason = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
        raise MergeError(f"transformers cannot build the base model: {reason}", where=str(base.base_dir)) from error


def _stored_name(name: str, prefix: str, base: BaseModel) -> str:
    """The name in the checkpoint, which may have been saved with or without the prefix of the model's body."""
    for candidate in (name, name.removeprefix(prefix), f"{prefix}{name}"):
        if candidate in base.tensors:
            return candidate
    return name


def _place(tensor: "Tensor", owners: dict[int, str]) -> Place | None:
    """The place of a stored tensor, or None where it is no view of one live parameter."""
    owner = owners.get(tensor.untyped_storage()._cdata)
    if owner is None:
        return None
    return Place(owner, tuple(tensor.shape), int(tensor.storage_offset()), tuple(tensor.stride()))


def _views_stay_views() -> Any:
    """A context in which `contiguous` copies nothing, so that a tensor cut from another still shows where it lies."""
    import torch
    from torch.overrides import TorchFunctionMode

    class ViewsStayViews(TorchFunctionMode):
        def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
            return args[0] if func is torch.Tensor.contiguous else func(*args, **(kwargs or {}))

    return ViewsStayViews()


def is_contiguous(place: Place) -> bool:
    """Whether the stored tensor is one stretch of the live parameter, in the same order."""
    strides = [prod(place.shape[index + 1 :]) for index in range(len(place.shape))]
    return all(
        size == 1 or found == wanted for size, found, wanted in zip(place.shape, place.strides, strides, strict=True)
    )
