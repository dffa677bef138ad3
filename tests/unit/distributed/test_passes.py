"""Proves that an engine knows how much longer both passes take than the forward pass alone."""

from __future__ import annotations

from types import SimpleNamespace

import pytest
import torch
from torch import nn

from finetune.distributed.engine import Engine


def engine_of(module: nn.Module) -> Engine:
    session = SimpleNamespace(
        deepspeed_config=None, device=torch.device("cpu"), accelerator=SimpleNamespace(prepare=lambda *both: both)
    )
    return Engine(session, module, torch.optim.SGD(module.parameters()), 1.0)  # type: ignore[arg-type]


def test_three_forward_passes_where_all_is_trained_two_where_almost_nothing_is_and_one_more_with_checkpointing() -> (
    None
):
    module = nn.Sequential(nn.Linear(100, 100), nn.Linear(100, 1))
    assert engine_of(module).passes == 3.0
    module[0].requires_grad_(False)
    assert engine_of(module).passes == pytest.approx(2.0, abs=0.01)
    module.gradient_checkpointing = True
    assert engine_of(module).passes == pytest.approx(3.0, abs=0.01)
