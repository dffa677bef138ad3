"""Proves that adapters which are cast once a step, and whose gradients are added up in the pass that casts them, give the same
numbers to the last bit, and that no cast outlives the step.
"""

from __future__ import annotations

import copy
from collections import Counter
from contextlib import ExitStack, nullcontext
from typing import Any

import pytest
import torch
from torch.utils.checkpoint import checkpoint

from benchmarks.counting import Count
from benchmarks.gpu.roofline import _session
from finetune.distributed.engines import ddp
from finetune.distributed.engines.engine import EngineOptions
from finetune.models import kept_casts
from finetune.models.accumulated_products import accumulating
from finetune.models.kept_casts import cast, keeping_casts
from finetune.models.low_rank import add_in_place
from tests.unit.models.test_low_rank import adapted

STEPS, MICRO_BATCHES = 3, 4
FEWER = {"": (12 * 4, 8), "plain": (15 * 4, 8), "reentrant": (16 * 4, 4 + 16)}
"""How often two layers cast in a step of four micro-batches, each time and once. Of a layer: down and up in the forward pass,
both in the backward pass, two gradients; computed again, down and up, but the last layer's up where it ends there. Once: down
and up, and gradients of the first micro-batch; of all where a layer is computed in full again, which looks like another use.
"""


def train(
    *contexts: Any, base: torch.dtype, again: str, dtype: torch.dtype = torch.bfloat16
) -> tuple[list[Any], Counter[str]]:
    """Losses, gradients of the last micro-batch's input, weights after some steps; operators of the last step."""
    torch.manual_seed(0)
    model = adapted(base, torch.float32, bias=False)
    add_in_place(model)
    optimizer = torch.optim.AdamW([weight for weight in model.parameters() if weight.requires_grad], lr=0.05)
    draw, found = torch.Generator().manual_seed(1), []
    for _ in range(STEPS):
        with Count() as count, ExitStack() as step:
            for context in contexts:
                step.enter_context(context())
            for _ in range(MICRO_BATCHES):
                x = torch.randn(3, 8, 12, generator=draw).to(dtype).requires_grad_()
                with torch.autocast("cpu", dtype), accumulating() if contexts else ExitStack():
                    out = checkpoint(model, x, use_reentrant=again == "reentrant") if again else model(x)
                    loss = out.float().square().sum()
                    loss.backward()
                found += [loss.detach(), x.grad]
        optimizer.step()
        optimizer.zero_grad()
    return [*found, *(weight.detach() for weight in model.parameters())], count.operators


@pytest.mark.parametrize("again", ["", "plain", "reentrant"])
@pytest.mark.parametrize("base", [torch.bfloat16, torch.float16])
def test_losses_gradients_and_weights_are_equal_to_the_last_bit(base: torch.dtype, again: str) -> None:
    expected, before = train(base=base, again=again, dtype=base)
    found, after = train(keeping_casts, base=base, again=again, dtype=base)
    assert len(found) == STEPS * MICRO_BATCHES * 2 + 6
    for mine, other in zip(found, expected, strict=True):
        assert torch.equal(mine, other)
    each_time, once = FEWER[again]
    assert before["_to_copy"] - after["_to_copy"] == each_time - once


def test_a_weight_that_is_used_twice_is_left_to_autograd() -> None:
    model = adapted(torch.bfloat16, torch.float32)
    add_in_place(model)
    layer, twice = model.base_model.model.one, copy.deepcopy(model).base_model.model.one
    x = torch.randn(2, 4, 12).bfloat16()
    with torch.autocast("cpu", torch.bfloat16):
        for one, contexts in ((layer, ()), (twice, (keeping_casts(), accumulating()))):
            with ExitStack() as stack:
                for context in contexts:
                    stack.enter_context(context)
                for _ in range(2):
                    (one(x[0]) + 2 * one(x[1])).float().sum().backward()
    for mine, other in zip(twice.parameters(), layer.parameters(), strict=True):
        assert (mine.grad is None) == (other.grad is None)
        assert mine.grad is None or (torch.equal(mine.grad, other.grad) and mine.grad.any())


def test_no_cast_outlives_its_step_even_if_the_weight_is_changed_behind_torch_s_back() -> None:
    weight = torch.nn.Parameter(torch.ones(3))
    for value in (1.0, 2.0):
        weight.data.fill_(value)  # as an engine does that writes into flat buffers: no version counts it
        with keeping_casts():
            first = cast(weight, torch.bfloat16)
            assert cast(weight, torch.bfloat16) is first and first[0] == value and not first.requires_grad
            assert cast(weight, torch.float16).dtype == torch.float16
    with pytest.raises(RuntimeError), keeping_casts():
        kept = cast(weight, torch.bfloat16)
        raise RuntimeError
    assert cast(weight, torch.bfloat16) is not kept
    assert cast(weight, torch.bfloat16) is not cast(weight, torch.bfloat16)
    assert cast(weight, torch.float32) is weight


def test_the_engine_casts_once_a_step_with_the_same_losses(monkeypatch: pytest.MonkeyPatch) -> None:
    def steps() -> tuple[list[float], int]:
        model = adapted(torch.bfloat16, torch.float32, bias=False)
        add_in_place(model)
        trained = [weight for weight in model.parameters() if weight.requires_grad]
        engine = ddp.DdpEngine(
            _session(), model, lambda module: torch.optim.AdamW(trained, lr=0.05), EngineOptions(max_grad_norm=1.0)
        )
        draw, losses = torch.Generator().manual_seed(1), []
        for _ in range(STEPS):
            batches = [torch.randn(3, 8, 12, generator=draw).bfloat16() for _ in range(MICRO_BATCHES)]
            with Count() as count:
                done = engine.accumulate(batches, engine.model, lambda out, *_: out.float().square().sum(), lambda: 0.1)
            assert not kept_casts._open
            losses += [*(loss.item() for loss in done.losses), engine.step().item()]
        return losses, count.operators["_to_copy"]

    found, fewer = steps()
    monkeypatch.setattr(ddp, "keeping_casts", nullcontext)
    monkeypatch.setattr(ddp, "accumulating", nullcontext)
    expected, more = steps()
    assert found == expected and len(found) == STEPS * (MICRO_BATCHES + 1)
    each_time, once = FEWER[""]
    of_inputs = MICRO_BATCHES  # down of the first layer, in the backward pass: its input has no gradient
    assert more - fewer == each_time - once - of_inputs
