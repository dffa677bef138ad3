"""Settings of a model that no model has are refused before anything is built from them."""

import pytest

from finetune.errors import UserError
from finetune.models.folder_check import check_layers


@pytest.mark.parametrize(
    ("settings", "says"),
    [
        ({"attention_dropout": 2}, "attention_dropout is out of range: 2"),
        ({"hidden_dropout_prob": -0.1}, "hidden_dropout_prob is out of range"),
        ({"text_config": {"attn_pdrop": 1.5}}, "attn_pdrop is out of range"),
        ({"rms_norm_eps": -1e300}, "rms_norm_eps is out of range"),
        ({"layer_norm_epsilon": float("inf")}, "layer_norm_epsilon is out of range"),
        ({"num_attention_heads": 2, "num_key_value_heads": 7}, "is not a multiple of num_key_value_heads"),
        ({"num_channels": 10**9}, "num_channels is out of range"),
        ({"return_dict": False}, "return_dict is false"),
        ({"num_hidden_layers": 10**8}, "more than 10,000 layers"),
    ],
)
def test_values_that_no_model_has(settings, says):
    with pytest.raises(UserError, match=says):
        check_layers(settings, "config.json")


def test_values_that_models_have():
    check_layers(
        {
            "attention_dropout": 0.0,
            "hidden_dropout_prob": 0.1,
            "classifier_dropout": None,
            "drop_path_rate": 1,
            "layer_norm_eps": 1e-12,
            "num_attention_heads": 32,
            "num_key_value_heads": 8,
            "tie_word_embeddings": True,
            "return_dict": True,
        },
        "config.json",
    )
