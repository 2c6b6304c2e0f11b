"""The live model of a verification: the base with its adapters in PEFT, in memory or with its weights on the disk."""

import logging
import re
import warnings
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from mft_merge.files.json_file import read_json
from mft_merge.files.tensor_file import num_rows, read_rows, read_tensor_file
from mft_merge.planning.weighted import Combination
from mft_merge.sources.quantization import Quantization
from mft_merge.values.combined import combined
from mft_merge.values.dequantized import dequantized

if TYPE_CHECKING:
    from torch import Tensor

NUM_TOKENS = 128
FACTOR = re.compile(r"\.(lora_(?:embedding_)?[AB])(?=\.|$)")


@dataclass(frozen=True, slots=True)
class Live:
    """What the live model is made of: adapters are directories with their weights.

    `vocab_size` is that of an adapter that has resized it; with `quantization` the base's weights are those given back
    from it; a `combination` makes one update of those of all adapters.
    """

    base_dir: Path
    adapters: tuple[tuple[Path, float], ...] = ()
    vocab_size: int | None = None
    quantization: Quantization | None = None
    combination: Combination | None = None


def can_run_from_disk(adapter_dir: Path) -> bool:
    """Whether the adapter has factors and nothing else: PEFT asks for values of the base otherwise, which are away."""
    config = read_json(adapter_dir / "adapter_config.json")
    tensors = read_tensor_file(adapter_dir / "adapter_model.safetensors").tensors
    return not config.get("target_parameters") and all(FACTOR.search(key) for key in tensors)


def logits(live: Live, placement: dict[str, Any]) -> "Tensor":
    """The logits over the same random tokens, (tokens, vocabulary) in float32; `placement` is for `from_pretrained`."""
    import torch
    import transformers

    # On some CPUs bitsandbytes, which PEFT imports, warns of a kernel that nothing here uses.
    logging.getLogger("bitsandbytes").setLevel(logging.ERROR)
    transformers.utils.logging.set_verbosity_error()
    transformers.utils.logging.disable_progress_bar()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        model: Any = transformers.AutoModelForCausalLM.from_pretrained(
            live.base_dir, dtype=torch.float32, trust_remote_code=False, **placement
        )
        if live.vocab_size is not None:
            model.resize_token_embeddings(live.vocab_size, mean_resizing=False)
        if live.quantization is not None:
            for name in live.quantization.modules:
                weight = model.get_parameter(f"{name}.weight").data
                weight.copy_(dequantized(weight, live.quantization))
        if live.adapters:
            model = _adapted(model, live, placement)
        config = model.config.get_text_config()
        num_tokens = min(NUM_TOKENS, getattr(config, "max_position_embeddings", NUM_TOKENS))
        ids = torch.randint(config.vocab_size, (1, num_tokens), generator=torch.Generator().manual_seed(0))
        with torch.no_grad():
            return model.eval()(ids).logits[0].float()


def _adapted(base: Any, live: Live, placement: dict[str, Any]) -> Any:
    """The base with all adapters at once, each times its weight, or with what a combination makes of them."""
    from peft.tuners.lora import LoraLayer

    model = _with_all(base, live.adapters, from_disk=bool(placement))
    weights = {str(index): weight for index, (_, weight) in enumerate(live.adapters)}
    for name, module in model.named_modules():
        if isinstance(module, LoraLayer):
            if live.combination is not None:
                _combine(name, module, weights, live.combination)
            else:
                module.scaling.update({key: module.scaling[key] * weights[key] for key in module.scaling})
    return model


def _with_all(base: Any, adapters: tuple[tuple[Path, float], ...], *, from_disk: bool) -> Any:
    from peft import PeftModel

    if from_disk:
        del (
            base.hf_device_map
        )  # else PEFT puts the base on the disk anew, over its own files, and further adapters nowhere
    model: Any = PeftModel.from_pretrained(base, adapters[0][0], adapter_name="0", low_cpu_mem_usage=from_disk)
    for index, (adapter_dir, _) in enumerate(adapters[1:], start=1):
        model.load_adapter(adapter_dir, adapter_name=str(index), low_cpu_mem_usage=from_disk)
    if from_disk:
        _fill(model, adapters)
    tuner: Any = model.base_model
    tuner.set_adapter([str(index) for index in range(len(adapters))])
    return model


def _fill(model: Any, adapters: tuple[tuple[Path, float], ...]) -> None:
    """Give the adapters their values: PEFT leaves those over a base on the disk without any."""
    from torch.nn import Parameter

    for index, (adapter_dir, _) in enumerate(adapters):
        for key, tensor in read_tensor_file(adapter_dir / "adapter_model.safetensors").tensors.items():
            name = FACTOR.sub(rf".\1.{index}", key)
            module, _, parameter = name.rpartition(".")
            values = read_rows(tensor, 0, num_rows(tensor)).float()
            model.get_submodule(module).register_parameter(parameter, Parameter(values, requires_grad=False))


def _combine(name: str, module: Any, weights: dict[str, float], combination: Combination) -> None:
    """Put what the rule makes of a layer's updates in their place, matrix by matrix, as the layer is run."""
    module.enable_adapters(enabled=False)
    keys = [key for key in weights if key in module.scaling]

    def update(_: Any, inputs: tuple["Tensor", ...], output: "Tensor") -> "Tensor":
        deltas = [module.get_delta_weight(key) for key in keys]
        delta = combined(name, deltas, [weights[key] for key in keys], combination)
        return output + _product(type(module.base_layer).__name__)(inputs[0], delta)

    module.base_layer.register_forward_hook(update)


def _product(kind: str) -> Any:
    """How a layer of this kind applies its weight."""
    import torch

    functions = {"Embedding": torch.nn.functional.embedding, "Conv1D": torch.matmul}
    return functions.get(kind, torch.nn.functional.linear)
