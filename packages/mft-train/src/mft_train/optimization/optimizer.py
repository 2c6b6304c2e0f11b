"""AdamW over the trained parameters, with weight decay on matrices only: torch's, or bitsandbytes' with small state."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from mft_train.errors import TrainError

if TYPE_CHECKING:
    import torch
    from torch import nn

    from mft_train.config.config import RunConfig

TORCH = "adamw"
# Optimizers of bitsandbytes: bits of the state, and whether it may be paged out to host memory.
BITSANDBYTES = {"adamw_8bit": (8, False), "paged_adamw_32bit": (32, True), "paged_adamw_8bit": (8, True)}
# bitsandbytes quantises in blocks of this many numbers, and leaves smaller tensors in 32 bits.
BLOCK_SIZE = 256
MIN_8BIT_SIZE = 4096


def check_optimizer(config: RunConfig, device: torch.device) -> None:
    """Raises TrainError for paged state on a device without pages: bitsandbytes would quietly not page there."""
    if config.optimizer != TORCH and BITSANDBYTES[config.optimizer][1] and device.type != "cuda":
        fix = "adamw_8bit" if BITSANDBYTES[config.optimizer][0] == 8 else "adamw"
        raise TrainError(f"optimizer {config.optimizer} needs a CUDA device", fix=f"set optimizer: {fix}")


def build_optimizer(model: nn.Module, config: RunConfig) -> torch.optim.Optimizer:
    """The optimizer of `config`; norms, biases and other vectors are not decayed, embeddings keep 32-bit state."""
    import torch

    settings: dict[str, Any] = {"lr": config.learning_rate, "betas": (config.beta1, config.beta2)}
    groups = parameter_groups(model, config)
    if config.optimizer == TORCH:
        return torch.optim.AdamW(groups, fused=True, **settings)
    bits, is_paged = BITSANDBYTES[config.optimizer]
    return grouped_adamw()(groups, optim_bits=bits, min_8bit_size=MIN_8BIT_SIZE, is_paged=is_paged, **settings)


def parameter_groups(model: nn.Module, config: RunConfig) -> list[dict[str, Any]]:
    """Trained parameters by weight decay and bits of their state, in the model's order."""
    groups: dict[tuple[float, int], list[nn.Parameter]] = {}
    embeddings = embedding_ids(model)
    for parameter in model.parameters():
        if parameter.requires_grad:
            decay = config.weight_decay if parameter.dim() >= 2 else 0.0
            groups.setdefault((decay, state_bits(config, parameter, embeddings)), []).append(parameter)
    return [{"params": params, "weight_decay": decay, "optim_bits": bits} for (decay, bits), params in groups.items()]


def embedding_ids(model: nn.Module) -> set[int]:
    """Identities of embedding weights; 8-bit state makes their rare, large updates unstable."""
    from torch import nn

    return {id(module.weight) for module in model.modules() if isinstance(module, nn.Embedding)}


def state_bits(config: RunConfig, parameter: nn.Parameter, embeddings: set[int]) -> int:
    """Bits of each moment of a parameter."""
    is_small = id(parameter) in embeddings or parameter.numel() < MIN_8BIT_SIZE
    return 32 if config.optimizer == TORCH or is_small else BITSANDBYTES[config.optimizer][0]


def state_bytes(model: nn.Module, config: RunConfig) -> int:
    """Bytes of both moments of every trained parameter, paged or not."""
    embeddings = embedding_ids(model)
    total = 0
    for parameter in model.parameters():
        if parameter.requires_grad:
            bits, size = state_bits(config, parameter, embeddings), parameter.numel()
            # A block of 8-bit numbers has one float32 scale.
            total += 2 * (size + 4 * -(-size // BLOCK_SIZE)) if bits == 8 else 2 * 4 * size
    return total


def grouped_adamw() -> Any:
    """bitsandbytes' AdamW with the bits of its state set by parameter group, and paged state that survives a load."""
    from bitsandbytes.optim import AdamW

    class GroupedAdamW(AdamW):
        def get_config(self, gindex: int, pindex: int, group: dict[str, Any]) -> dict[str, Any]:
            return super().get_config(gindex, pindex, group) | {"optim_bits": group["optim_bits"]}

        def load_state_dict(self, state_dict: dict[str, Any], move_to_device: bool = True) -> None:
            super().load_state_dict(state_dict, move_to_device and not self.is_paged)
            if self.is_paged:
                # The base class would leave loaded moments in plain device memory, which they may not fit in.
                for parameter, state in self.state.items():
                    for name in ("state1", "state2"):
                        loaded = state[name]
                        state[name] = self.get_state_buffer(parameter, dtype=loaded.dtype)
                        state[name].copy_(loaded)

    return GroupedAdamW
