"""On CUDA: a training in float8 has the losses of bf16 to what 8 bits round, for both of torchao's recipes, compiled or not,
with odd numbers of tokens; its layers really are float8's, its checkpoints hold plain weights, and evaluations compute in bf16.

Needs torchao and tensor cores that multiply float8 (compute capability 8.9: Ada, Hopper).
"""

import copy
import importlib.util
import json
import os
import subprocess
import sys

import pytest
import torch
from safetensors.torch import load_file
from torch.profiler import ProfilerActivity, profile

from finetune.models.compiled import compile_layers
from finetune.models.float8 import use_float8

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.timeout(170),
    pytest.mark.skipif(importlib.util.find_spec("torchao") is None, reason="pip install 'finetune[float8]'"),
    pytest.mark.skipif(
        torch.cuda.is_available() and torch.cuda.get_device_capability() < (8, 9),
        reason="needs a GPU of compute capability 8.9 or higher",
    ),
]
SCALINGS = ("tensorwise", "rowwise_with_gw_hp")
STEPS = 12
RECIPE = """
name: float8
task: causal_lm
model: {source: llama, init: config, tokenizer: "train:512", config: {hidden_size: 256, intermediate_size: 512,
  num_hidden_layers: 2, num_attention_heads: 4, num_key_value_heads: 2, max_position_embeddings: 256}}
data: {train: rows.jsonl, validation_fraction: 0.2}
options: {max_length: 128}
parallel: {deepspeed: none}
training: {steps: 12, global_batch: 8, learning_rate: 1.0e-3, precision: bf16}
evaluation: {samples: 1}
tracking: {wandb: "off", log_every: 1}
"""


@pytest.fixture
def recipe(tmp_path):
    rows = [
        {"prompt": f"What is {n} plus {n}?", "completion": f"It is {2 * n}, as anyone can count."} for n in range(80)
    ]
    (tmp_path / "rows.jsonl").write_text("\n".join(map(json.dumps, rows)))
    (tmp_path / "float8.yaml").write_text(RECIPE)
    return tmp_path / "float8.yaml"


def run(recipe, *arguments):
    command = [sys.executable, "-m", "finetune", *map(str, arguments)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=80, env=os.environ, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout + done.stderr


def train(recipe, name, **sets):
    """What was said, and the rows of metrics.jsonl."""
    options = [part for key, value in sets.items() for part in ("--set", f"{key.replace('__', '.')}={value}")]
    output = run(recipe, "train", recipe, "--run-dir", recipe.parent / name, *options)
    return output, [json.loads(line) for line in (recipe.parent / name / "metrics.jsonl").read_text().splitlines()]


def losses(rows, split="train"):
    return [row["loss"] for row in rows if row["split"] == split]


@pytest.mark.parametrize(
    ("scaling", "compiled", "engine"),
    [
        ("tensorwise", "layers", "none"),
        ("rowwise_with_gw_hp", "none", "none"),
        ("tensorwise", "layers", "zero2"),
    ],
)
def test_twelve_steps_have_the_losses_of_bf16(recipe, scaling, compiled, engine):
    changes = {"model__float8": scaling, "model__compile": compiled, "parallel__deepspeed": engine}
    output, ours = train(recipe, "float8", **changes)
    _, theirs = train(recipe, "bf16", parallel__deepspeed=engine)
    assert "model.float8: 14 linear layers" in output and "emulated" not in output
    assert ("model.compile: compiled" in output) == (compiled == "layers")
    assert "not compiled from here on" not in output
    assert len(losses(ours)) == STEPS and losses(ours)[-1] < losses(ours)[0]
    assert losses(ours) == pytest.approx(losses(theirs), rel=5e-2)
    assert losses(ours) != losses(theirs)
    assert losses(ours, "validation") == pytest.approx(losses(theirs, "validation"), rel=5e-2)
    exported = load_file(recipe.parent / "float8" / "model" / "model.safetensors")
    assert len(exported) > 20 and {weight.dtype for weight in exported.values()} <= {torch.bfloat16, torch.float32}


def test_a_run_is_resumed_and_answers(recipe):
    whole = losses(train(recipe, "whole", model__float8="tensorwise", checkpoint__every=6, checkpoint__keep=9)[1])
    output = run(recipe, "train", recipe, "--run-dir", recipe.parent / "again", "--set", "model.float8=tensorwise",
                 "--resume", recipe.parent / "whole" / "checkpoints" / "step-00000006")  # fmt: skip
    assert "model.float8: 14 linear layers" in output
    rows = (recipe.parent / "again" / "metrics.jsonl").read_text().splitlines()
    rest = losses(map(json.loads, rows))
    assert len(rest) == 6 and rest == pytest.approx(whole[6:], rel=1e-2)
    answers = recipe.parent / "answers.jsonl"
    run(recipe, "predict", recipe.parent / "whole", "--data", recipe.parent / "rows.jsonl", "--output", answers)
    assert len(answers.read_text().splitlines()) == 80


def tiny_llama():
    from transformers import LlamaConfig, LlamaForCausalLM

    torch.manual_seed(0)
    sizes = {"hidden_size": 256, "intermediate_size": 512, "num_attention_heads": 4, "num_key_value_heads": 2}
    return LlamaForCausalLM(LlamaConfig(vocab_size=512, num_hidden_layers=2, **sizes)).bfloat16().cuda().train()


def gradients(model, ids):
    model.zero_grad()
    loss = model(input_ids=ids, labels=ids).loss
    loss.backward()
    return loss.item(), torch.cat([weight.grad.float().flatten() for weight in model.parameters()])


@pytest.mark.parametrize("compiled", [False, True], ids=["plain", "compiled"])
@pytest.mark.parametrize("scaling", SCALINGS)
def test_any_number_of_tokens_gives_the_products_that_emulation_gives(scaling, compiled):
    plain = tiny_llama()
    ours, emulated = copy.deepcopy(plain), copy.deepcopy(plain)
    use_float8(emulated, scaling, print, emulate=True)
    assert use_float8(ours, scaling, print) == 14
    if compiled:
        state = compile_layers(ours, print)
    for rows, tokens in ((1, 7), (3, 5), (2, 64), (1, 333)):
        ids = torch.randint(
            0, 512, (rows, tokens), device="cuda", generator=torch.Generator("cuda").manual_seed(tokens)
        )
        (loss, gradient), (expected, expected_gradient) = gradients(ours, ids), gradients(emulated, ids)
        exact, exact_gradient = gradients(plain, ids)
        assert loss == pytest.approx(expected, rel=5e-3) and loss == pytest.approx(exact, rel=1e-2)
        norm = exact_gradient.norm()
        assert 0 < (gradient - exact_gradient).norm() < 0.2 * norm  # emulated: 0.07 to 0.11
        assert (gradient - expected_gradient).norm() < 0.2 * norm  # sums that are rounded otherwise: 0.07 on a CPU
    if compiled:
        assert not state.fallback


@pytest.mark.parametrize(("scaling", "products"), [("tensorwise", 3 * 14), ("rowwise_with_gw_hp", 2 * 14)])
def test_products_run_in_float8_and_evaluations_do_not(scaling, products):
    model, ids = tiny_llama(), torch.arange(48, device="cuda")[None]
    exact = model.eval()(input_ids=ids).logits
    use_float8(model, scaling, print)
    assert torch.equal(model(input_ids=ids).logits, exact)
    model.train()
    with profile(activities=[ProfilerActivity.CPU]) as profiled:
        gradients(model, ids)
    assert sum(event.count for event in profiled.key_averages() if event.key == "aten::_scaled_mm") == products
