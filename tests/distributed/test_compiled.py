"""Compiled layers under the engines on two ranks: gradients reach the hooks that reduce them, so losses and gradient norms are
those of plain layers. A stand-in for inductor runs the graphs that torch.compile found.
"""

import pytest

from finetune.models.compiled import compile_layers
from tests.distributed import toy


def run(config, is_compiled):
    engine, batch = toy.open_toy(config, micro_batch=2)
    names, state = list(engine.module.state_dict()), None
    if is_compiled:
        state = compile_layers(engine.module, print, backend=lambda graph, examples: graph.forward)
    losses, norms = toy.train_toy(engine, batch, range(3))
    assert list(engine.module.state_dict()) == names
    return losses, norms, (state.graphs, state.fallback) if state else None


@pytest.mark.parametrize("config", ["none", "zero1", "zero2"])
def test_losses_and_norms_are_those_of_plain_layers(ranks, config):
    pool = ranks.options(open_group=False, timeout=300)
    ours, theirs = pool.run(2, run, config, True), pool.run(2, run, config, False)
    assert len(ours) == 2
    for (losses, norms, (graphs, fallback)), (expected, expected_norms, _) in zip(ours, theirs, strict=True):
        assert 1 <= graphs <= 4 and not fallback
        assert losses == pytest.approx(expected, rel=1e-6) and norms == pytest.approx(expected_norms, rel=1e-5)
