"""Float8 layers under the engines on two ranks, emulated: losses follow those of bf16, gradients reach the hooks that reduce
them, and names in checkpoints stay.
"""

import pytest

from finetune.models.float8 import use_float8
from tests import float8_stand_in
from tests.distributed import toy

STEPS = 6


def run(config, scaling):
    float8_stand_in.install()
    options = {"precision": "bf16", "build": lambda: toy.tiny_llama().bfloat16(), "masters": config == "none"}
    engine, batch = toy.open_toy(config, micro_batch=2, **options)
    names, lines = sorted({shard.key for shard in engine.local_shards()}), []
    if scaling:
        assert use_float8(engine.module, scaling, lines.append, emulate=True) == 14
    losses, norms = toy.train_toy(engine, batch, range(STEPS))
    assert {shard.key for shard in engine.local_shards()} >= set(names) and names
    float8_stand_in.remove()
    return losses, norms


@pytest.fixture(scope="module")
def exact(ranks):
    """Of two ranks in bf16."""
    return ranks.options(open_group=False, timeout=300).run(2, run, "none", "")[0]


@pytest.mark.parametrize(
    ("config", "scaling"), [("none", "tensorwise"), ("zero1", "rowwise_with_gw_hp"), ("zero2", "tensorwise")]
)
def test_losses_follow_those_of_bf16(ranks, exact, config, scaling):
    found = ranks.options(open_group=False, timeout=300).run(2, run, config, scaling)
    assert found[0] == found[1]
    (losses, norms), (expected, expected_norms) = found[0], exact
    assert len(losses) == STEPS and losses != expected
    assert losses == pytest.approx(expected, rel=1e-2)
    assert norms[:2] == pytest.approx(expected_norms[:2], rel=0.05)  # later ones amplify what was rounded
