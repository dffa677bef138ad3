"""What is lost by adding up gradients in bf16, as DeepSpeed does under ZeRO in bf16, and DistributedDataParallel with float32
masters: beside fp32 sums, and a float64 loop.

    python -m pytest -s tests/distributed/test_accumulation.py      # prints the figures of docs/launching.md
"""

import pytest

from tests.distributed import toy

STEPS = 8


def run(config, fp32_sums):
    """Losses of a training in bf16, four micro-batches of one example per rank and step. Without DeepSpeed, fp32 sums are those
    of float32 weights under autocast.
    """
    masters = config == "none" and not fp32_sums
    resolve = toy.resolve_deepspeed_config

    def with_sums(*arguments, **options):
        return resolve(*arguments, **options) | {"data_types": {"grad_accum_dtype": "fp32" if fp32_sums else None}}

    toy.resolve_deepspeed_config = with_sums
    try:
        build = (lambda: toy.tiny_llama().bfloat16()) if masters else toy.tiny_llama
        engine, batch = toy.open_toy(config, precision="bf16", micro_batch=1, masters=masters, build=build)
        return toy.train_toy(engine, batch, range(STEPS))[0]
    finally:
        toy.resolve_deepspeed_config = resolve


@pytest.mark.parametrize("config", ["none", "zero1", "zero2"])
def test_losses_are_as_close_to_float64_as_bf16_allows(ranks, config):
    exact, _ = toy.train_reference(toy.tiny_llama(), STEPS)
    two = ranks.options(open_group=False, timeout=120)
    errors = {}
    for fp32_sums in (False, True):
        losses = two.run(2, run, config, fp32_sums)[0]
        errors[fp32_sums] = max(abs(one / other - 1) for one, other in zip(losses, exact, strict=True))
    print(f"{config}: off by {errors[False]:.1e} with bf16 sums, {errors[True]:.1e} with fp32 sums")
    assert errors[False] < 2e-3 and errors[True] < 2e-3
    assert errors[False] < 4 * errors[True]
