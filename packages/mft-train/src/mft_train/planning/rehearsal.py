"""A forward and backward pass without values: what its tensors would take at most, from the shapes alone."""

from __future__ import annotations

import contextlib
import functools
import weakref
from dataclasses import astuple, dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import torch  # noqa: TID253 - an autograd function is a class of torch's; only a plan or a run imports this module
from torch.utils._python_dispatch import TorchDispatchMode  # noqa: TID253
from torch.utils._pytree import tree_map_only  # noqa: TID253

from mft_train.loss.loss_head import LossHead
from mft_train.model import segment_attention
from mft_train.model.decoder_layers import decoder_layers
from mft_train.model.forward_pass import bare
from mft_train.model.lora_linear import fuse_adapters, separate_adapters
from mft_train.rows.packed_batch import Row, pack_rows

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator

    from torch import Tensor, nn
    from transformers import PreTrainedModel

    from mft_train.model.compute import Compute
    from mft_train.rows.packed_batch import PackedBatch

NAME = "rehearsed"
# Of a model with more than MANY layers this many are tried, and FEW.
FEW, MANY = 4, 8


@dataclass(frozen=True, slots=True)
class Pass:
    """Most bytes of a pass beside the weights, before its backward pass and in it, with the gradients that there are.

    `first` and `next` are of passes whose gradients stay: the first has none to begin with. `forward` and `backward`
    are of a pass that lets go of each gradient as soon as it is whole.
    """

    first: int
    next: int
    forward: int
    backward: int


class Counting(TorchDispatchMode):
    """Counts the bytes of all tensors that come into being beside the `weights`, until they are gone."""

    def __init__(self, weights: Iterable[Tensor]) -> None:
        super().__init__()
        self.now = self.peak = 0
        self.seen = {weight.untyped_storage()._cdata for weight in weights}

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        made = func(*args, **(kwargs or {}))
        tree_map_only(torch.Tensor, self.count, made)
        return made

    def count(self, tensor: Tensor) -> None:
        """Adds a tensor whose memory is new."""
        storage = tensor.untyped_storage()
        key = storage._cdata
        if key in self.seen:
            return
        self.seen.add(key)
        self.now += storage.nbytes()
        self.peak = max(self.peak, self.now)
        weakref.finalize(storage, self.forget, key, storage.nbytes())

    def forget(self, key: int, size: int) -> None:
        """Takes away a tensor that is gone."""
        self.seen.discard(key)
        self.now -= size


@functools.lru_cache(maxsize=8)  # a plan asks for every engine and number of processes
def rehearse(
    model: PreTrainedModel, compute: Compute, method: str, tokens: int, supervised: int, *, is_fused: bool
) -> Pass | None:
    """What a pass over so many tokens takes, `supervised` of them, by a model without values; None if that fails.

    Of many layers some are tried, and the rest counted on from those. Models that look at values fail, and weights in
    float32 that are computed with in another type.
    """
    if compute.dtype != "float32" and method == "full":
        return None
    batch = trial_batch(tokens, supervised)
    with training(model, compute, method, is_fused=is_fused), attention_of(model, compute):
        try:
            return of_all_layers(model, lambda: measure(model, batch))
        except Exception:  # whatever code of any model raises where it finds no values
            return None


def trial_batch(tokens: int, supervised: int) -> PackedBatch:
    """One conversation of so many tokens, the last ones supervised, without values."""
    mask = np.arange(tokens) >= tokens - min(supervised, tokens - 1)
    row = Row(np.zeros(tokens, np.int64), mask, np.array([tokens]), 0)
    return pack_rows([row]).to(torch.device("meta"))


def measure(model: PreTrainedModel, batch: PackedBatch) -> Pass:
    """The passes of `Pass`, of the model as it is."""
    head = LossHead(model)
    coefficients = torch.ones(len(batch.labels), device="meta")

    def peaks(counting: Counting) -> tuple[int, int]:
        counting.peak = counting.now
        objective, _, output = head(model, batch, coefficients)
        forward, counting.peak = counting.peak, counting.now
        objective.backward()
        del objective, output
        return forward, counting.peak

    try:
        with Counting([*model.parameters(), *model.buffers()]) as counting:
            first, following = max(peaks(counting)), max(peaks(counting))
        model.zero_grad(set_to_none=True)
        with letting_go(model), Counting([*model.parameters(), *model.buffers()]) as counting:
            forward, backward = peaks(counting)
    finally:
        model.zero_grad(set_to_none=True)
    return Pass(first, following, forward, backward)


def of_all_layers(model: PreTrainedModel, measure: Callable[[], Pass]) -> Pass:
    """What `measure` gives; of a model with many layers what it would, as that grows evenly."""
    layers = decoder_layers(model)
    lists = [module for module in model.modules() if isinstance(module, torch.nn.ModuleList) and layers[0] in [*module]]
    if len(layers) <= MANY or len(lists) != 1 or len(lists[0]) != len(layers):
        return measure()
    everything = dict(lists[0]._modules)
    found = []
    try:
        for number in (FEW, MANY):
            lists[0]._modules = {str(index): layer for index, layer in enumerate(layers[:number])}
            found.append(measure())
    finally:
        lists[0]._modules = everything
    few, many = (astuple(taken) for taken in found)
    steps = (len(layers) - FEW) / (MANY - FEW)
    return Pass(*(round(low + (high - low) * steps) for low, high in zip(few, many, strict=True)))


@contextlib.contextmanager
def training(model: PreTrainedModel, compute: Compute, method: str, *, is_fused: bool) -> Iterator[None]:
    """Within the context a model without values runs as in training: adapters fused or not, layers quantised."""
    layers: list[Any] = []
    if method == "qlora":
        output = model.get_output_embeddings()
        linear = [module for module in model.modules() if isinstance(module, torch.nn.Linear)]
        layers = [layer for layer in linear if layer is not output and not layer.weight.requires_grad]
    for layer in layers:
        layer.forward = functools.partial(quantized_forward, layer)
    if is_fused and method == "lora":
        fuse_adapters(model)
    types = {parameter: parameter.dtype for parameter in model.parameters()}
    for parameter in types:
        if not parameter.requires_grad:
            parameter.data = parameter.data.to(getattr(torch, compute.dtype))
    was_training = model.training
    if compute.gradient_checkpointing:
        model.gradient_checkpointing_enable(gradient_checkpointing_kwargs={"use_reentrant": False})
    model.train()
    try:
        yield
    finally:
        model.train(was_training)
        if compute.gradient_checkpointing:
            model.gradient_checkpointing_disable()
        for parameter, dtype in types.items():
            parameter.data = parameter.data.to(dtype)
        for layer in layers:
            del layer.forward
        if method == "lora":
            separate_adapters(model)


@contextlib.contextmanager
def letting_go(model: nn.Module) -> Iterator[None]:
    """Within the context no gradient is kept."""

    def drop(parameter: Tensor) -> None:
        parameter.grad = None

    trained = [parameter for parameter in model.parameters() if parameter.requires_grad]
    handles = [parameter.register_post_accumulate_grad_hook(drop) for parameter in trained]
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()


@contextlib.contextmanager
def attention_of(model: PreTrainedModel, compute: Compute) -> Iterator[None]:
    """Within the context attention keeps what the kernel of the run keeps; `eager` is the model's own."""
    from transformers import AttentionInterface, AttentionMaskInterface

    config: Any = bare(model).config
    configs = list({id(part): part for part in (config, config.get_text_config())}.values())
    before = [part._attn_implementation for part in configs]
    name = compute.attention
    if name != "eager":
        # One kernel over all segments gives the output as it is used; ours lays the segments' side by side first.
        copies = compute.device.type == "cpu" or name == "sdpa"
        AttentionInterface.register(NAME, functools.partial(rehearsed_attention, copies))
        AttentionMaskInterface.register(NAME, segment_attention.no_mask)
        name = NAME
    try:
        for part in configs:
            part._attn_implementation = name
        yield
    finally:
        for part, own in zip(configs, before, strict=True):
            part._attn_implementation = own


def rehearsed_attention(
    copies: bool, _module: nn.Module, query: Tensor, key: Tensor, value: Tensor, *_: Any, **__: Any
) -> tuple[Tensor, None]:
    """What attention without a matrix of scores keeps for its backward pass, of the output's shape."""
    out = _Attention.apply(query, key, value)
    return (out.clone() if copies else out), None


class _Attention(torch.autograd.Function):
    """Keeps query, key, value, output and a number for each query and head; gives (1, length, heads, value_dim)."""

    @staticmethod
    def forward(ctx: Any, query: Tensor, key: Tensor, value: Tensor) -> Tensor:
        batch, heads, length, _ = query.shape
        out = query.new_empty(batch, length, heads, value.shape[-1])
        sums = torch.empty(batch, heads, length, device=query.device)
        ctx.save_for_backward(query, key, value, out, sums)
        return out

    @staticmethod
    def backward(ctx: Any, *upstreams: Tensor) -> tuple[Tensor, ...]:  # noqa: ARG004
        query, key, value = ctx.saved_tensors[:3]
        return torch.empty_like(query), torch.empty_like(key), torch.empty_like(value)


def quantized_forward(layer: Any, x: Tensor) -> Tensor:
    """A layer whose weight is made anew in each pass, and whose output peft copies."""
    return _Quantized.apply(x, layer.weight).clone()


class _Quantized(torch.autograd.Function):
    """x W^T with a W that exists during the product alone, in both directions."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor) -> Tensor:
        ctx.shape = weight.shape
        return x @ x.new_empty(weight.shape).T

    @staticmethod
    def backward(ctx: Any, *upstreams: Tensor) -> tuple[Tensor, None]:
        return upstreams[0] @ upstreams[0].new_empty(ctx.shape), None
