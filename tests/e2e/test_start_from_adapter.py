"""Proves that preference tuning starts from an SFT adapter on 2 ranks under every engine, and what it is compared with.

The loss of DPO at step 1 is ln 2 exactly where the reference is what training starts from, that is with the adapter.
"""

import json
import math

import pytest
import torch
import yaml
from safetensors.torch import load_file

from finetune.app.export import export
from finetune.errors import UserError
from finetune.models.merging import merge, outputs_of, random_inputs
from tests.e2e import tiny
from tests.e2e.conftest import Workers

WORDS = ["red", "green", "blue", "cat", "dog", "sun", "moon", "tree"]
SHAPE = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 64}
STEPS = 3


def write(folder, name, **changes):
    recipe = {
        "name": name,
        "options": {"max_length": 64},
        "training": {"steps": STEPS, "global_batch": 8, "learning_rate": 2e-2},
        "parallel": {"deepspeed": "none", "processes": 1},
        "tracking": {"wandb": "off", "log_every": 1},
        "evaluation": {"samples": 0},
        **changes,
    }
    (folder / f"{name}.yaml").write_text(yaml.safe_dump(recipe))


@pytest.fixture(scope="module")
def home(pool, tmp_path_factory):
    """A folder with an SFT adapter (runs `base` and `sft`), trained with a new token, and recipes that start from it."""
    folder = tmp_path_factory.mktemp("adapters")
    pairs = [(a, b) for a in WORDS for b in WORDS if a != b][:32]
    rows = [{"prompt": f"say {a} {b}", "completion": f"{a} {b} done"} for a, b in pairs]
    (folder / "sft.jsonl").write_text("\n".join(map(json.dumps, rows)))
    rows = [{"prompt": f"say {a} {b}", "chosen": f"{a} {b} done", "rejected": f"{b} moon"} for a, b in pairs]
    (folder / "dpo.jsonl").write_text("\n".join(map(json.dumps, rows)))
    model = {"source": "llama", "init": "config", "tokenizer": "train:300"}
    config = {**SHAPE, "max_position_embeddings": 128, "tie_word_embeddings": True}
    write(folder, "base", task="causal_lm", model={**model, "config": config}, data={"train": "sft.jsonl"})
    adapter = {"rank": 4, "targets": ["q_proj", "v_proj"]}
    started = {"source": "base/model", "new_tokens": ["<tool>"]}
    write(folder, "sft", task="causal_lm", model=started, adapter=adapter, data={"train": "sft.jsonl"})
    data = {"train": "dpo.jsonl", "validation": "dpo.jsonl"}
    write(
        folder, "plain", task="causal_lm", model={"source": "base/model"}, adapter=adapter, data={"train": "sft.jsonl"}
    )
    write(folder, "further", task="preference", model={"source": "plain"}, adapter={}, data=data)
    write(folder, "continue", task="preference", model={"source": "sft"}, adapter={}, data=data)
    write(folder, "merge", task="preference", model={"source": "sft"}, adapter={"start": "merge", "rank": 2}, data=data)
    write(folder, "full", task="preference", model={"source": "sft/model"}, data=data)
    workers = Workers(pool, folder)
    for name in ("base", "sft", "plain"):
        workers.train(1, name, recipe=f"{name}.yaml")
    return folder


@pytest.mark.parametrize(
    ("name", "engine"),
    [
        ("continue", "none"),
        ("continue", "zero2"),
        ("further", "zero3"),
        ("merge", "zero2"),
        ("merge", "zero3"),
        ("full", "zero3"),
    ],
)
def test_the_reference_is_what_training_starts_from(home, pool, name, engine):
    alone = Workers(pool, home).train(1, f"{name}-{engine}-1", recipe=f"{name}.yaml")
    run = Workers(pool, home).train(2, f"{name}-{engine}-2", f"parallel.deepspeed={engine}", recipe=f"{name}.yaml")
    losses = tiny.losses(run)
    assert losses[1] == pytest.approx(math.log(2), abs=1e-6) and losses[STEPS] < losses[1] - 1e-3
    assert list(losses.values()) == pytest.approx(list(tiny.losses(alone).values()), rel=1e-4)


def test_training_starts_with_the_weights_of_the_adapter(home, pool):
    """So that the reference, which training starts from, is the SFT adapter and not the bare base."""
    still = ("training.learning_rate=1e-12", "training.steps=1", "parallel.deepspeed=zero2")
    run = Workers(pool, home).train(2, "still", *still, recipe="continue.yaml")
    ours, theirs = (load_file(home / name / "model" / "adapter_model.safetensors") for name in (run.name, "sft"))
    assert ours.keys() == theirs.keys() and all(torch.allclose(ours[key], theirs[key], atol=1e-9) for key in ours)
    learned = [key for key in theirs if "lora_B" in key and theirs[key].any()]
    assert len(learned) == 4 and any("trainable_tokens" in key for key in theirs)


@pytest.mark.parametrize("name", ["continue", "merge"])
def test_it_resumes_and_exports(home, pool, name, tmp_path):
    from peft import AutoPeftModelForCausalLM
    from transformers import AutoModelForCausalLM

    workers = Workers(pool, home)
    whole = workers.train(2, f"{name}-whole", recipe=f"{name}.yaml")
    stopping = {"checkpoint.every=1", "checkpoint.keep=5"}
    part = workers.train(2, f"{name}-part", *stopping, recipe=f"{name}.yaml")
    again = workers.train(2, f"{name}-again", resume=str(part / "checkpoints" / "step-00000001"), recipe=f"{name}.yaml")
    assert tiny.losses(again)[STEPS] == pytest.approx(tiny.losses(whole)[STEPS], rel=1e-6)
    export(again, output=tmp_path / "adapter", checkpoint="latest", merge=False)
    export(again, output=tmp_path / "merged", checkpoint="latest", merge=True)
    adapter = AutoPeftModelForCausalLM.from_pretrained(tmp_path / "adapter")
    merged = AutoModelForCausalLM.from_pretrained(tmp_path / "merged")
    inputs = random_inputs(merged)
    assert torch.allclose(outputs_of(adapter, inputs)[0], outputs_of(merged, inputs)[0], atol=1e-4)
    assert ((tmp_path / "adapter" / "base").is_dir()) == (name == "merge")


def test_a_merge_that_differs_leaves_nothing_behind(home, monkeypatch, tmp_path):
    def wrong(model):
        merged = merge(model)
        with torch.no_grad():
            merged.get_input_embeddings().weight.mul_(1.5)
        return merged

    monkeypatch.setattr("finetune.app.export.merge_adapter", wrong)
    with pytest.raises(UserError, match=r"does not give the outputs of the adapter: .* rows"):
        export(home / "sft", output=tmp_path / "merged", checkpoint="latest", merge=True)
    assert not list(tmp_path.iterdir())
