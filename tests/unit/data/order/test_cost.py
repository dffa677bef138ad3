"""Tests the cost formula against operations counted by hand; `benchmarks/cost_model.py` compares it with times."""

import pytest

from finetune.data.order.cost import CostModel


def test_costs_of_lengths():
    assert CostModel(2.0, 0.5).of([0, 1, 10]).tolist() == [0.0, 2.5, 70.0]


def test_shape_of_a_small_model_counted_by_hand():
    """hidden 8, one layer, 2 heads of 4, 1 key-value head, feed-forward 16, vocabulary 10.

    Weights: query 64, key 32, value 32, output 64, feed-forward 3 * 128, logits 80 = 656, twice that a token.
    Attention at L tokens: scores and values, 2 * 2 * L^2 * 8 operations, half of them causal = 16 L^2.
    """
    model = CostModel.from_config_shape(hidden=8, layers=1, heads=2, intermediate=16, vocab=10, kv_heads=1)
    assert model.a == 1.0
    assert model.b == pytest.approx(16 / (2 * 656))
    full = CostModel.from_config_shape(hidden=8, layers=1, heads=2, intermediate=16, vocab=10, kv_heads=1, causal=False)
    assert full.b == pytest.approx(2 * model.b)


def test_shape_of_llama_3_1_8b():
    llama = CostModel.from_config_shape(hidden=4096, layers=32, heads=32, intermediate=14336, vocab=128256, kv_heads=8)
    assert llama.b == pytest.approx(1.75e-5, rel=0.01)


def test_costs_are_positive():
    with pytest.raises(ValueError, match="positive"):
        CostModel(0, 0)
