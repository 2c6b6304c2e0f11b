"""DeepSpeed's ZeRO: stage 1 shares the moments between ranks, 2 the gradients too, 3 the weights too."""

from __future__ import annotations

import contextlib
import functools
import math
import os
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from mft_train.config.json_file import read_json
from mft_train.engine.plain import PlainEngine, autocast_forward, read_alike, ready_dtype, set_rate
from mft_train.errors import TrainError
from mft_train.model.decoder_layers import decoder_layers
from mft_train.model.stored_weights import source_of

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    import torch
    from torch import Tensor, nn

    from mft_train.config.config import RunConfig

# Most numbers that are summed or fetched ahead in one go: 200 MB in float32 keep any network busy.
LARGEST_BUCKET = 50_000_000
# Settings of a DeepSpeed file that the run's own config decides.
OURS = {
    "train_batch_size": "global_batch_size",
    "train_micro_batch_size_per_gpu": "micro_batch_size",
    "gradient_accumulation_steps": "global_batch_size",
    "gradient_clipping": "max_grad_norm",
    "optimizer": "optimizer",
    "scheduler": "schedule",
    "fp16": "dtype",
    "bf16": "dtype",
    "amp": "dtype",
    "torch_autocast": "dtype",
    "data_types": "dtype",
}


@dataclass(frozen=True, slots=True)
class DeepSpeedEngine(PlainEngine):
    """The verbs of a step under ZeRO. A share of a weight is a range of the flat tensor in every stage."""

    config: RunConfig

    @property
    def name(self) -> str:
        """What runs, in words."""
        return f"deepspeed, ZeRO stage {self.stage}"

    @property
    def is_filled(self) -> bool:
        """Whether `prepare` gives every rank rank 0's weights, on their device, the trained ones as float32."""
        return self.stage == 3 and self.config.method != "qlora"  # 4 bits come with scales, which stay with each rank

    def prepare(
        self, model: nn.Module, build_optimizer: Callable[[nn.Module], torch.optim.Optimizer]
    ) -> tuple[Any, Any]:
        """The model as the step uses it, and its optimizer."""
        import deepspeed

        from mft_train.model.lora_linear import separate_adapters

        if self.accelerator.device.type == "cpu":
            # It would compile a kernel for sums between processes, which training does not use.
            deepspeed.ops.__compatible_ops__["deepspeed_shm_comm"] = False
        if self.stage == 3:
            separate_adapters(model)  # weights are gathered for the module that is called
            let_go_of_weights(model)
        else:
            for name in read_alike(model):
                weight: Any = model.get_parameter(name)
                weight.ds_optim_param = True  # its mark of a weight that rank 0 does not send
        autocast_forward(model, self.accelerator)
        settings = deepspeed_settings(
            self.config, self.accelerator.num_processes, self.accelerator.device.type, buffer_sizes(self.config, model)
        )
        if self.is_filled:
            self.fill(model, settings)
        engine, optimizer, _, _ = deepspeed.initialize(model=model, optimizer=build_optimizer(model), config=settings)
        if engine.zero_optimization_stage() != self.stage:
            raise TrainError(f"ZeRO stage {self.stage} was asked for, {engine.zero_optimization_stage()} runs")
        return engine, optimizer

    def fill(self, model: nn.Module, settings: Mapping[str, Any]) -> None:
        """Gives each rank its share of each weight, from its file or from rank 0: only one at a time is whole.

        DeepSpeed would do so itself, but with weights that are float32 already and that rank 0 sends.
        """
        import deepspeed
        import torch

        zero: Any = deepspeed.zero.Init(config_dict_or_path=dict(settings))
        for parameter in model.parameters():
            dtype, source = ready_dtype(parameter), source_of(parameter)
            if source is None:
                parameter.data = parameter.data.to(dtype)
                zero._convert_to_zero_parameters([parameter])
                continue
            shared: Any = parameter
            shared.data = torch.empty_like(shared, device=zero.local_device, dtype=dtype)
            zero._convert_to_deepspeed_param(shared)
            shared.partition()
            numbers = self.held(shared)
            source.fill(shared.ds_tensor.data[: len(numbers)], numbers)
        for buffer in model.buffers():
            buffer.data = buffer.data.to(self.accelerator.device)

    @property
    def stage(self) -> int:
        """What is shared: 1, 2 or 3."""
        return self.config.distributed.stage

    def gradients(self, model: Any, *, is_last: bool) -> contextlib.AbstractContextManager[Any]:
        """The context of one forward and backward pass."""
        model.set_gradient_accumulation_boundary(is_last)
        return contextlib.nullcontext()

    def backward(self, model: Any, objective: Tensor) -> None:
        """Adds the gradient of a rank's share of the objective; shares add up: ZeRO's mean over ranks is undone."""
        model.backward(objective * self.accelerator.num_processes, scale_wrt_gas=False)

    def clip(self, model: Any, optimizer: Any, max_norm: float) -> float:  # noqa: ARG002
        """The gradient's global L2 norm, infinite if it is not finite; the next step clips to `max_norm` itself."""
        import torch

        if self.stage < 3:
            norm = float(optimizer.scaled_global_norm())
            return norm if norm >= 0 else math.inf  # DeepSpeed's sign of numbers that are not finite
        from deepspeed.utils import safe_get_local_grad

        squares = torch.zeros((), dtype=torch.float64, device=self.accelerator.device)
        for parameter in model.module.parameters():
            if parameter.requires_grad:
                squares += safe_get_local_grad(parameter).double().square().sum()
        return math.sqrt(float(self.accelerator.reduce(squares, reduction="sum")))

    def step(self, model: Any, optimizer: Any, learning_rate: float) -> None:
        """Updates the weights, and forgets the gradient."""
        set_rate(optimizer, learning_rate)
        model.step()

    def share_again(self, model: Any) -> None:
        """Makes shares of the weights that a pass without gradients has left whole; all ranks call this together.

        Such a pass also leaves weights on their way that were fetched ahead for a backward pass.
        """
        if self.stage == 3:
            model.empty_partition_cache()

    def whole(self, tensor: Tensor) -> Tensor:
        """A weight of the model, whole; all ranks call this together."""
        if not hasattr(tensor, "ds_id"):
            return tensor.detach()
        import deepspeed

        with deepspeed.zero.GatheredParameters([tensor]):
            return tensor.detach().clone()

    def held(self, parameter: Tensor) -> range:
        """Which numbers of a parameter, laid flat, this rank has the moments of."""
        shared: Any = parameter
        if self.stage < 3:
            fragment = shared._hp_mapping  # None where no number of it is this rank's
            address = fragment.lp_fragment_address if fragment else None
            return range(address.start, address.start + address.numel) if address else range(0)
        size, start = shared.ds_numel, self.accelerator.process_index * shared.ds_tensor.numel()
        return range(min(start, size), min(start + shared.ds_tensor.numel(), size))  # the last shares are padded

    def written(self, parameter: Tensor) -> range:
        """Which of them this rank writes into a checkpoint: all ranks together write each once."""
        return self.held(parameter)

    def moments(self, optimizer: Any, parameter: Tensor) -> dict[str, Any]:
        """The optimizer's state of a parameter; what there is for each of its numbers is flat, those `held` of them."""
        flat, start = self.place(optimizer, parameter)
        state = {} if flat is None else optimizer.optimizer.state[flat]
        size = len(self.held(parameter))
        return {name: value if value.dim() == 0 else value[start : start + size] for name, value in state.items()}

    def place(self, optimizer: Any, parameter: Tensor) -> tuple[Any, int]:
        """The flat tensor that DeepSpeed's optimizer works on in a parameter's place, and where its share begins."""
        shared: Any = parameter
        if self.stage < 3:
            fragment = shared._hp_mapping
            if fragment is None:
                return None, 0
            flat = optimizer.single_partition_of_fp32_groups[fragment.param_group_index]
            return flat, fragment.hp_fragment_address.start
        group, start, _ = optimizer.grad_position[optimizer.get_param_id(shared)]
        return optimizer.fp32_partitioned_groups_flat[group], start

    def restore(self, optimizer: Any, moments: Mapping[Tensor, Mapping[str, Any]]) -> None:
        """Gives an optimizer its state back, as `moments` tells it; rates and decays stay as they are."""
        import torch

        for parameter, state in moments.items():
            flat, start = self.place(optimizer, parameter)
            if flat is None:
                continue
            own = optimizer.optimizer.state[flat]
            for name, value in state.items():
                if value.dim() == 0:
                    own[name] = value.clone()
                else:
                    own.setdefault(name, torch.zeros_like(flat))[start : start + len(value)] = value.to(flat.device)


def let_go_of_weights(model: nn.Module) -> None:
    """Lets linear layers keep their weight as it is, not a view of what is gathered, for the backward pass.

    A view holds the gathered numbers of every layer until then; under autocast their copies in its type.
    """
    from deepspeed.runtime.zero.linear import zero3_linear_wrap
    from torch import nn

    def forward(layer: nn.Linear, x: Tensor) -> Tensor:
        return zero3_linear_wrap(x, layer.weight, layer.bias)

    for module in model.modules():
        if type(module) is nn.Linear:
            layer: Any = module
            layer.forward = functools.partial(forward, layer)


def buffer_sizes(config: RunConfig, model: nn.Module) -> dict[str, int]:
    """How many numbers DeepSpeed holds at a time where it gathers or sums: by this model, or as its file says.

    Its own defaults are for the largest models: a buffer of 500 million gradients, whatever is trained, and a billion
    weights that are gathered and not let go of.
    """
    distributed = config.distributed
    layers = decoder_layers(model)
    largest = max((count_numbers(layer) for layer in layers), default=0)
    rest = count_numbers(model) - sum(count_numbers(layer) for layer in layers)
    trained = sum(parameter.numel() for parameter in model.parameters() if parameter.requires_grad)
    sizes = {"reduce_bucket_size": max(1, min(trained, LARGEST_BUCKET))}
    if distributed.stage == 3:
        sizes |= {
            "stage3_prefetch_bucket_size": min(largest, LARGEST_BUCKET),
            # The layer in hand, the next one, and what is no layer's: embeddings, the output projection.
            "stage3_max_live_parameters": rest + 2 * largest,
            "stage3_max_reuse_distance": largest,
        }
    if distributed.deepspeed_config is None:
        return sizes
    given = read_deepspeed_config(distributed.deepspeed_config).get("zero_optimization", {})
    return {name: int(given.get(name, size)) for name, size in sizes.items()}


def count_numbers(module: nn.Module) -> int:
    """Numbers in a module's weights."""
    return sum(parameter.numel() for parameter in module.parameters())


def deepspeed_settings(config: RunConfig, world_size: int, device: str, sizes: Mapping[str, int]) -> dict[str, Any]:
    """What DeepSpeed is told: the run's own settings, over those of `distributed.deepspeed_config`.

    `sizes` are the model's, as `buffer_sizes` gives them.
    """
    distributed = config.distributed
    settings = read_deepspeed_config(distributed.deepspeed_config) if distributed.deepspeed_config else {}
    zero = settings.pop("zero_optimization", {}) | {"stage": distributed.stage, **sizes}
    host = {"device": "cpu", "pin_memory": device != "cpu"}
    if distributed.offload_optimizer:
        zero["offload_optimizer"] = host
    if distributed.offload_parameters:
        zero["offload_param"] = host
    return {
        "steps_per_print": 2**62,
        **settings,
        "train_micro_batch_size_per_gpu": config.micro_batch_size,
        "gradient_accumulation_steps": config.global_batch_size // (config.micro_batch_size * world_size),
        "gradient_clipping": config.max_grad_norm,
        "zero_optimization": zero,
        # torch's AdamW works on the flat shares as on any tensor.
        "zero_allow_untested_optimizer": True,
        "zero_force_ds_cpu_optimizer": False,
    }


def check_deepspeed_file(config: RunConfig) -> None:
    """Raises TrainError for a DeepSpeed file that cannot be read, or decides what the run does."""
    distributed = config.distributed
    if distributed.deepspeed_config is None:
        return
    path = distributed.deepspeed_config
    settings = read_deepspeed_config(path)
    for name, own in OURS.items():
        if name in settings:
            raise TrainError(f'"{name}" is decided by {own} of the run', where=path, fix=f'remove "{name}" there')
    stage = settings.get("zero_optimization", {}).get("stage", distributed.stage)
    if stage != distributed.stage:
        raise TrainError(
            f"zero_optimization.stage is {stage}, distributed.stage is {distributed.stage}",
            where=path,
            fix="set distributed.stage to the same, or remove it there",
        )


def read_deepspeed_config(path: str) -> dict[str, Any]:
    """The settings in a DeepSpeed file, but for those left to others by the word "auto"; raises TrainError."""
    return without_auto(read_json(Path(path), "the DeepSpeed file"))


def without_auto(settings: dict[str, Any]) -> dict[str, Any]:
    """The same settings without values "auto", and without sections that had nothing else."""
    kept = {}
    for name, value in settings.items():
        inner = without_auto(value) if isinstance(value, dict) else value
        if inner != "auto" and (inner or inner == value):
            kept[name] = inner
    return kept


def prefer_cpu() -> None:
    """Lets DeepSpeed, imported by peft too, compute on the CPU without looking for other devices."""
    os.environ.setdefault("DS_ACCELERATOR", "cpu")
