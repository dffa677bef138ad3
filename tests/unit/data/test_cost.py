"""Proves the cost formula against operations counted by hand, and that measured costs are found again."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from finetune.data.cost import CostModel


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


@given(st.floats(1e-6, 1e-3), st.floats(0, 1e-7), st.floats(0, 0.1))
def test_fit_finds_the_terms_again(a, b, start):
    packs = [[100, 900], [4000], [2000, 2000], [500] * 6, [50], [8000, 30]]
    seconds = [a * sum(p) + b * sum(n * n for n in p) + start for p in packs]
    model = CostModel.fit(packs, seconds)
    assert model.of([4096])[0] == pytest.approx(a * 4096 + b * 4096**2, rel=1e-3)


def test_fit_is_never_negative_and_tells_nonsense():
    noise = np.random.default_rng(0).normal(1, 0.05, 40)
    lengths = np.random.default_rng(1).integers(10, 200, 40)
    model = CostModel.fit(lengths.tolist(), (lengths * 1e-3 * noise).tolist())
    assert model.a >= 0 and model.b >= 0
    assert model.of([100])[0] == pytest.approx(0.1, rel=0.1)
    with pytest.raises(ValueError, match="do not grow"):
        CostModel.fit([100, 200], [0.0, 0.0])
    with pytest.raises(ValueError, match="two of each"):
        CostModel.fit([100], [0.1])
    with pytest.raises(ValueError, match="positive"):
        CostModel(0, 0)
