"""`model.gradient_checkpointing: true` holds for every layer, by whichever name the installed transformers has for it, and
without a warning.
"""

import warnings
from types import SimpleNamespace

from transformers import LlamaConfig, LlamaForCausalLM

from finetune.models.training_layers import prepare_layers
from finetune.recipe.model import ModelSection

WHOLE = ModelSection(source="llama", gradient_checkpointing=True)


class Older:
    """A model of transformers 5.17, which has the older name alone."""

    supports_gradient_checkpointing = True

    def __init__(self):
        self.config = SimpleNamespace(use_cache=True)
        self.asked = []

    def gradient_checkpointing_enable(self, gradient_checkpointing_kwargs=None):
        self.asked.append(gradient_checkpointing_kwargs)


def test_every_layer_keeps_its_input_alone():
    config = LlamaConfig(
        vocab_size=16, hidden_size=8, intermediate_size=16, num_hidden_layers=3, num_attention_heads=2,
        num_key_value_heads=2,
    )  # fmt: skip
    model = LlamaForCausalLM(config)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        prepare_layers(model, WHOLE, kernels="none")
    assert [layer.gradient_checkpointing for layer in model.model.layers] == [True] * 3
    assert model.config.use_cache is False


def test_the_older_name_is_used_where_there_is_no_other():
    model = Older()
    prepare_layers(model, WHOLE, kernels="none")
    assert model.asked == [{"use_reentrant": False}]
    assert model.config.use_cache is False
