"""Proves what is taken out of a model before layouts are compared: random numbers, nested ones too."""

from __future__ import annotations

from finetune.models.shrink import shrunken, without_dropout

CONFIG = {
    "model_type": "d_fine",
    "activation_function": "silu",
    "decoder_activation_function": "relu",
    "factor": "relu",
    "attention_dropout": 0.1,
    "activation_dropout": 0.0,
    "num_denoising": 20,
    "drop_first": True,
    "backbone_config": {"model_type": "hgnet_v2", "hidden_act": "relu", "drop_path_rate": 0.2, "depths": [1]},
    "text_config": {"hidden_act": "gelu", "dropout": 0},
}


def test_random_numbers_are_turned_off_in_nested_configurations_too() -> None:
    assert without_dropout(CONFIG) == {
        "attention_dropout": 0.0,
        "num_denoising": 0,
        "backbone_config": {**CONFIG["backbone_config"], "drop_path_rate": 0.0},
    }


def test_the_smallest_model_is_tried_first_and_the_unchanged_one_last() -> None:
    config = {"num_hidden_layers": 32, "hidden_size": 4096, "num_attention_heads": 32, "num_key_value_heads": 8}
    small, shallow, unchanged = shrunken(config)
    assert small == {
        "num_hidden_layers": 2,
        "hidden_size": 64,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
    }
    assert (shallow, unchanged) == ({"num_hidden_layers": 2}, {})
