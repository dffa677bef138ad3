"""Does liger-kernel compute what transformers does, for each family of models? Its own kernels, on a CPU.

    pip install triton liger-kernel
    TRITON_INTERPRET=1 python -m benchmarks.liger_families [FAMILY ...]

Tiny models with random weights, in float32, patched by `finetune.models.kernels` as `model.kernels: liger` does; triton's
interpreter runs the kernels. Prints the largest relative difference of the gradients of one weight, and what was patched.
What the interpreter cannot run (mixtures of experts ask for a GPU) is listed as not run.
"""

from __future__ import annotations

import argparse
import copy
import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import nn
from transformers import AutoConfig, AutoModelForCausalLM

from finetune.models import kernels

SHAPE = {
    "hidden_size": 64,
    "intermediate_size": 96,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 16,
    "vocab_size": 96,
    "max_position_embeddings": 128,
    "pad_token_id": 0,
    "bos_token_id": 1,
    "eos_token_id": 2,
}
LATENT = {
    "head_dim": 8,
    "qk_rope_head_dim": 8,
    "qk_nope_head_dim": 8,
    "v_head_dim": 16,
    "q_lora_rank": 16,
    "kv_lora_rank": 16,
    "first_k_dense_replace": 2,
    "num_key_value_heads": 4,
}
OTHERWISE: dict[str, dict[str, Any]] = {
    "deepseek_v3": LATENT,
    "gpt_oss": {"num_local_experts": 4, "num_experts_per_tok": 2, "sliding_window": 8},
    "qwen3_5_text": {"num_hidden_layers": 4},
}
FAMILIES = (
    *("llama", "mistral", "ministral", "qwen2", "qwen3", "qwen3_5_text", "gemma", "gemma2", "gemma3_text", "phi3"),
    *("granite", "olmo2", "olmo3", "glm4", "smollm3", "exaone4", "hunyuan_v1_dense", "deepseek_v3", "gpt_oss"),
    *("mixtral", "qwen3_moe", "qwen3_next"),
)
EAGER = ("gemma2", "gpt_oss")  # transformers offers them no scaled_dot_product_attention


def build(family: str) -> Any:
    """With norms whose weights are no ones, so that a wrong offset shows."""
    torch.manual_seed(1)
    config = AutoConfig.for_model(family, **{**SHAPE, **OTHERWISE.get(family, {})})
    config.use_cache = False
    attention = "eager" if family in EAGER else "sdpa"
    model = AutoModelForCausalLM.from_config(config, attn_implementation=attention, dtype=torch.float32)
    for weight in model.parameters():
        if weight.dim() == 1:
            nn.init.normal_(weight, std=0.3)
    return model


@contextmanager
def on_a_cpu_too(model: nn.Module) -> Iterator[list[str]]:
    """Within, functions of `model`'s modules that are liger's on a GPU alone are liger's. Yields their names."""
    modules = {sys.modules[type(layer).__module__] for layer in model.modules()}
    chosen = [
        (place, name, value) for place in modules for name, value in vars(place).items() if hasattr(value, "plain")
    ]
    for place, name, value in chosen:
        cells = dict(zip(value.__code__.co_freevars, value.__closure__, strict=True))
        setattr(place, name, cells["fast"].cell_contents)
    try:
        yield [name for _, name, _ in chosen]
    finally:
        for place, name, value in chosen:
            setattr(place, name, value.plain)


def gradients(model: Any, ids: torch.Tensor, labels: torch.Tensor) -> dict[str, torch.Tensor]:
    logits = model(input_ids=ids).logits
    nn.functional.cross_entropy(logits.flatten(0, 1), labels.flatten()).backward()
    return {name: weight.grad for name, weight in model.named_parameters() if weight.grad is not None}


def compare(family: str) -> str:
    """A row of the table."""
    plain = build(family)
    patched = copy.deepcopy(plain)
    ids, labels = torch.randint(3, SHAPE["vocab_size"], (2, 2, 24))
    kernels.use_liger(patched)
    layers = {type(layer).__name__ for layer in patched.modules() if "forward" in vars(layer)}
    with on_a_cpu_too(patched) as functions:
        found = gradients(patched, ids, labels)
    expected = gradients(plain, ids, labels)
    assert found.keys() == expected.keys()
    worst = max((float((found[name] - expected[name]).norm() / expected[name].norm()), name) for name in expected)
    return f"| {family} | {worst[0]:.0e} ({worst[1]}) | {', '.join(sorted(layers | set(functions)))} |"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("families", nargs="*", default=FAMILIES, metavar="FAMILY")
    asked = parser.parse_args()
    if os.environ.get("TRITON_INTERPRET") != "1":
        parser.error("set TRITON_INTERPRET=1")
    from benchmarks.gpu.interpreted import complete_interpreter

    complete_interpreter()
    kernels.uses_cuda = lambda: True
    print("| family | largest difference of a gradient | patched |\n|---|---|---|")
    for family in asked.families:
        try:
            print(compare(family), flush=True)
        except Exception as error:
            reason = (str(error) or repr(error)).splitlines()[0]
            print(f"| {family} | not run: {reason[:90]} | |", flush=True)


if __name__ == "__main__":
    main()
