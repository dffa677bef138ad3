"""LoRA added in place under every engine: its weights are used outside the modules that hold them, so ZeRO-3 must gather
them for the layer as a whole, and gradients must reach the hooks that reduce them.
"""

import pytest
import torch

from finetune.models.low_rank import add_in_place
from tests.distributed import toy


def adapted():
    """Adapters that do something from the first step, on five kinds of layers."""
    from peft import LoraConfig, get_peft_model

    torch.manual_seed(0)
    names = ["q_proj", "v_proj", "o_proj", "up_proj", "down_proj"]
    config = LoraConfig(r=2, lora_alpha=4, target_modules=names, task_type="CAUSAL_LM", init_lora_weights=False)
    return get_peft_model(toy.tiny_llama(), config)


def in_place(checkpointed=False):
    model = adapted()
    assert add_in_place(model) == 10
    if checkpointed:
        model.enable_input_require_grads()
        model.gradient_checkpointing_enable({"use_reentrant": False})
    return model


def run(config, checkpointed, precision="fp32", build=None):
    build = build or (lambda: in_place(checkpointed))
    engine, batch = toy.open_toy(config, micro_batch=2, build=build, precision=precision)
    losses, norms = toy.train_toy(engine, batch, range(4))
    children = [layer for layer in engine.module.modules() if type(layer).__name__ == "InPlaceLinear"]
    return losses, norms, [layer._plain_adapter() for layer in children]


@pytest.fixture(scope="module")
def reference():
    """peft's own forward pass in float64."""
    return toy.train_reference(adapted(), 4)


@pytest.mark.parametrize(
    ("config", "checkpointed"), [("none", True), ("zero2", False), ("zero3", False), ("zero3", True)]
)
def test_losses_and_norms_are_those_of_the_reference(ranks, reference, config, checkpointed):
    results = ranks.options(open_group=False, timeout=120).run(2, run, config, checkpointed)
    assert len(results) == 2
    for losses, norms, adapters in results:
        assert losses == pytest.approx(reference[0], rel=1e-5)
        assert norms == pytest.approx(reference[1], rel=1e-4)
        assert adapters == ["default"] * 10  # none was left to peft because of an engine's hooks


@pytest.mark.parametrize("config", ["none", "zero1"])
def test_in_bf16_losses_are_those_of_the_reference_but_for_rounding(ranks, reference, config):
    (losses, _, adapters), *_ = ranks.options(open_group=False, timeout=120).run(2, run, config, False, "bf16")
    assert losses == pytest.approx(reference[0], rel=1e-2) and adapters == ["default"] * 10
