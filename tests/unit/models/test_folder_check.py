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
        ({"num_local_experts": 8, "num_experts_per_tok": 9}, "num_experts_per_tok is 9, and num_local_experts is 8"),
        ({"num_local_experts": 0, "num_experts_per_tok": 2}, "num_local_experts is 0"),
        ({"num_local_experts": 8, "num_experts_per_tok": 0}, "num_experts_per_tok is 0"),
        (
            {"text_config": {"num_experts": 4, "num_experts_per_tok": 8}},
            "num_experts_per_tok is 8, and num_experts is 4",
        ),
        ({"n_routed_experts": 4, "num_experts_per_tok": -1}, "num_experts_per_tok is -1"),
        ({"ffn_config": {"moe_num_experts": 2, "moe_top_k": 3}}, "moe_top_k is 3, and moe_num_experts is 2"),
        ({"relative_attention_num_buckets": 0}, "relative_attention_num_buckets is 0"),
        ({"relative_attention_num_buckets": 3}, "relative_attention_num_buckets is 3"),
        ({"relative_attention_num_buckets": 32, "relative_attention_max_distance": 16}, "max_distance is 16, not more"),
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
            "num_local_experts": 8,
            "num_experts_per_tok": 8,
            "text_config": {"num_experts": 0, "num_experts_per_tok": 8},
            "vision_config": {"n_routed_experts": None, "num_experts_per_tok": 6},
            "relative_attention_num_buckets": 32,
            "relative_attention_max_distance": 128,
            "return_dict": True,
        },
        "config.json",
    )
