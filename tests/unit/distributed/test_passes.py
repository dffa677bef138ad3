"""Proves that an engine knows how much longer both passes take than the forward pass alone."""

from __future__ import annotations

import pytest
from torch import nn

from finetune.distributed.engines.engine import passes_of


def test_three_forward_passes_where_all_is_trained_two_where_almost_nothing_is_and_one_more_with_checkpointing() -> (
    None
):
    module = nn.Sequential(nn.Linear(100, 100), nn.Linear(100, 1))
    assert passes_of(module) == 3.0
    module[0].requires_grad_(False)
    assert passes_of(module) == pytest.approx(2.0, abs=0.01)
    module.gradient_checkpointing = True
    assert passes_of(module) == pytest.approx(3.0, abs=0.01)
