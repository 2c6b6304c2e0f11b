"""The forward pass of any causal model: how its cache is called, which inputs it takes."""

import inspect
from typing import TYPE_CHECKING, Any

from mft_infer.decoding.cache_rows import has_columns

if TYPE_CHECKING:
    from torch import Tensor
    from transformers import Cache, PreTrainedModel

CACHE_NAMES = ("past_key_values", "cache", "cache_params")


class Forward:
    """Runs a model over new tokens of some rows; a cache has all that came before."""

    def __init__(self, model: "PreTrainedModel") -> None:
        self.model = model
        names = inspect.signature(model.forward).parameters
        self._cache_name = next((name for name in CACHE_NAMES if name in names), CACHE_NAMES[0])
        self._takes_positions = "position_ids" in names
        self._takes_logits_to_keep = "logits_to_keep" in names

    def new_cache(self) -> "Cache":
        """An empty cache, with the kinds of layers that the model has; those of full attention grow in place."""
        from transformers import DynamicCache
        from transformers.cache_utils import DynamicLayer

        from mft_infer.decoding.growing_layer import GrowingLayer

        cache = DynamicCache(config=self.model.config)
        cache.layers = [GrowingLayer() if type(layer) is DynamicLayer else layer for layer in cache.layers]
        return cache

    def logits(self, input_ids: "Tensor", attention_mask: "Tensor", cache: "Cache") -> "Tensor":
        """The logits (rows, vocabulary) after the last token, in float32; `cache` takes in `input_ids`.

        `attention_mask` (rows, columns) has the columns of the cache, too; rows are padded on the left. Positions count
        from each row's first token, so that a row is the same alone and in company.
        """
        import torch

        options: dict[str, Any] = {self._cache_name: cache, "attention_mask": attention_mask}
        if input_ids.shape[1] < attention_mask.shape[1] and not has_columns(cache):
            # The padding is long behind, and such layers take the mask for one of the new tokens.
            options["attention_mask"] = None
        if self._takes_positions:
            positions = (attention_mask.cumsum(dim=-1) - 1).clamp(min=0)
            options["position_ids"] = positions[:, -input_ids.shape[1] :]
        if self._takes_logits_to_keep:
            options["logits_to_keep"] = 1
        with torch.inference_mode():
            output = self.model(input_ids=input_ids, use_cache=True, **options)
        return output.logits[:, -1].float()
