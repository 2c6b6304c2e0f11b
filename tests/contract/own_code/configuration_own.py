"""The config of a model that comes with its own code."""

from transformers import PretrainedConfig


class OwnConfig(PretrainedConfig):
    """Sizes."""

    model_type = "own_code"

    def __init__(self, vocab_size=320, hidden_size=32, num_hidden_layers=2, num_attention_heads=4, **kwargs):
        self.vocab_size = vocab_size
        self.hidden_size = hidden_size
        self.num_hidden_layers = num_hidden_layers
        self.num_attention_heads = num_attention_heads
        super().__init__(**kwargs)
