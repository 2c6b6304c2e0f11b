"""A model that comes with its own code, written as those of the hub were for transformers 4.

One matrix for queries, keys and values, linear biases for positions, a mask of its own, and a forward that knows
neither `logits_to_keep` nor any keyword beyond its list.
"""

import torch
from torch import nn
from transformers import GenerationMixin, PreTrainedModel
from transformers.modeling_outputs import CausalLMOutputWithPast

from .configuration_own import OwnConfig  # noqa: TID252 - as transformers loads it


class OwnLayer(nn.Module):
    """Attention and a gate."""

    def __init__(self, config):
        super().__init__()
        self.num_heads = config.num_attention_heads
        self.W_pack = nn.Linear(config.hidden_size, 3 * config.hidden_size, bias=False)
        self.o_proj = nn.Linear(config.hidden_size, config.hidden_size, bias=False)
        self.up_proj = nn.Linear(config.hidden_size, 48)
        self.down_proj = nn.Linear(48, config.hidden_size)
        self.norm = nn.LayerNorm(config.hidden_size)

    def forward(self, hidden_states, bias):
        batch, length, width = hidden_states.shape
        packed = self.W_pack(self.norm(hidden_states)).view(batch, length, 3, self.num_heads, -1)
        query, key, value = packed.permute(2, 0, 3, 1, 4)
        scores = query @ key.transpose(-1, -2) / query.shape[-1] ** 0.5 + bias
        mixed = (scores.softmax(-1) @ value).transpose(1, 2).reshape(batch, length, width)
        hidden_states = hidden_states + self.o_proj(mixed)
        return hidden_states + self.down_proj(torch.nn.functional.silu(self.up_proj(hidden_states)))


class OwnForCausalLM(PreTrainedModel, GenerationMixin):
    """A causal language model."""

    config_class = OwnConfig

    def __init__(self, config):
        super().__init__(config)
        self.embed_tokens = nn.Embedding(config.vocab_size, config.hidden_size)
        self.layers = nn.ModuleList([OwnLayer(config) for _ in range(config.num_hidden_layers)])
        self.lm_head = nn.Linear(config.hidden_size, config.vocab_size, bias=False)
        self.post_init()

    def get_input_embeddings(self):
        return self.embed_tokens

    def get_output_embeddings(self):
        return self.lm_head

    def forward(
        self,
        input_ids=None,
        attention_mask=None,
        past_key_values=None,
        inputs_embeds=None,
        labels=None,
        use_cache=None,
        output_attentions=None,
        output_hidden_states=None,
        return_dict=None,
    ):
        places = torch.arange(input_ids.shape[1], device=input_ids.device)
        distance = places[:, None] - places[None, :]
        slopes = 2.0 ** -torch.arange(1, self.config.num_attention_heads + 1, device=input_ids.device)
        bias = (-slopes[:, None, None] * distance).masked_fill(distance < 0, float("-inf"))
        hidden_states = self.embed_tokens(input_ids)
        for layer in self.layers:
            hidden_states = layer(hidden_states, bias)
        return CausalLMOutputWithPast(logits=self.lm_head(hidden_states))
