"""The live model of a verification: the base with its adapters in PEFT, in memory or with the base mapped from disk."""

import logging
import warnings
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from mft_merge.planning.weighted import Combination
from mft_merge.sources.quantization import Quantization
from mft_merge.values.combined import combined
from mft_merge.values.dequantized import dequantized
from mft_merge.verification.mapped_model import mapped_model

if TYPE_CHECKING:
    from torch import Tensor

NUM_TOKENS = 128


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


def logits(live: Live, mapped_path: Path | None) -> "Tensor":
    """The logits over the same random tokens, (tokens, vocabulary) in float32.

    With `mapped_path` the base's weights are in that file, which is new, and not in memory.
    """
    import torch
    import transformers

    # On some CPUs bitsandbytes, which PEFT imports, warns of a kernel that nothing here uses.
    logging.getLogger("bitsandbytes").setLevel(logging.ERROR)
    transformers.utils.logging.set_verbosity_error()
    transformers.utils.logging.disable_progress_bar()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        model: Any = (
            mapped_model(live.base_dir, mapped_path)
            if mapped_path
            else transformers.AutoModelForCausalLM.from_pretrained(
                live.base_dir, dtype=torch.float32, trust_remote_code=False
            )
        )
        if live.vocab_size is not None:
            model.resize_token_embeddings(live.vocab_size, mean_resizing=False)
        if live.quantization is not None:
            for name in live.quantization.modules:
                weight = model.get_parameter(f"{name}.weight").data
                is_transposed = type(model.get_submodule(name)).__name__ == "Conv1D"
                weight.copy_(dequantized(weight, live.quantization, is_transposed=is_transposed))
        if live.adapters:
            model = _adapted(model, live)
        config = model.config.get_text_config()
        num_tokens = min(NUM_TOKENS, getattr(config, "max_position_embeddings", NUM_TOKENS))
        ids = torch.randint(config.vocab_size, (1, num_tokens), generator=torch.Generator().manual_seed(0))
        with torch.no_grad():
            return model.eval()(ids).logits[0].float()


def _adapted(base: Any, live: Live) -> Any:
    """The base with all adapters at once, each times its weight, or with what a combination makes of them."""
    from peft.tuners.lora import LoraLayer

    model = _with_all(base, live.adapters)
    weights = {str(index): weight for index, (_, weight) in enumerate(live.adapters)}
    for name, module in model.named_modules():
        if isinstance(module, LoraLayer):
            if live.combination is not None:
                _combine(name, module, weights, live.combination)
            else:
                module.scaling.update({key: module.scaling[key] * weights[key] for key in module.scaling})
    return model


def _with_all(base: Any, adapters: tuple[tuple[Path, float], ...]) -> Any:
    from peft import PeftModel

    model: Any = PeftModel.from_pretrained(base, adapters[0][0], adapter_name="0")
    for index, (adapter_dir, _) in enumerate(adapters[1:], start=1):
        model.load_adapter(adapter_dir, adapter_name=str(index))
    tuner: Any = model.base_model
    tuner.set_adapter([str(index) for index in range(len(adapters))])
    return model


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
