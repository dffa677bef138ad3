"""Every YAML under recipes/ loads, and plans for one replica, for eight ranks and for sixteen; none is overlooked."""

from pathlib import Path

import pytest
from transformers import LlamaConfig, LlamaForCausalLM

from finetune.planning.resolve import Machine, resolve
from finetune.recipe.load import load_recipe
from finetune.tasks import CARDS

LLAMA = LlamaConfig(hidden_size=256, intermediate_size=512, num_attention_heads=8)
ROOT = Path(__file__).resolve().parents[2] / "recipes"
RECIPES = sorted(ROOT.rglob("*.yaml"))


def test_all_are_found():
    assert len(RECIPES) == 29
    tasks = {load_recipe(path, (), CARDS, here=False).recipe.task for path in RECIPES}
    assert tasks == set(CARDS), "a task without a recipe"


@pytest.mark.parametrize("path", RECIPES, ids=lambda path: str(path.relative_to(ROOT)))
def test_it_loads_and_plans_on_any_number_of_ranks(path):
    recipe = load_recipe(path, (), CARDS, here=False).recipe
    card, name = CARDS[recipe.task], recipe.parallel.deepspeed
    for ranks in (recipe.parallel.replica_size, 8, 16):
        plan = resolve(recipe, card, machine=Machine(ranks, "cuda", True), config=LLAMA, model_class=LlamaForCausalLM)
        batch = plan.batch
        assert batch.micro_batch * batch.accumulation * batch.replicas >= recipe.training.global_batch
        assert (plan.deepspeed is None) == (name == "none")
        assert plan.precision in ("fp32", "bf16", "fp16")
