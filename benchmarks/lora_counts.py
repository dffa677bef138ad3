"""LoRA added in place, beside peft's own forward pass: operators, bytes moved and peak memory, counted without a clock.

    python -m benchmarks.lora_counts

Forward and backward pass of two layers of the 8B shape (hidden 4,096, feed-forward 14,336, 32 heads, 8 key-value heads), LoRA
of rank 16 on all seven linear layers, 4,096 tokens. Tensors have no values (FakeTensorMode). "bf16": all weights in bf16, as
under ZeRO. "autocast": a bf16 base with float32 adapters, and a float32 base.
"""

from __future__ import annotations

from typing import Any
from unittest import mock

import torch
import transformers
from peft import LoraConfig, get_peft_model
from torch._subclasses.fake_tensor import FakeTensorMode

from benchmarks.counting import GIB, Count, fake_model
from finetune.models.low_rank import add_in_place

LAYERS = 2
EIGHT_BILLION = {
    "vocab_size": 1024, "hidden_size": 4096, "intermediate_size": 14336, "num_hidden_layers": LAYERS,
    "num_attention_heads": 32, "num_key_value_heads": 8, "max_position_embeddings": 8192,
}  # fmt: skip
KINDS = {
    "bf16": (torch.bfloat16, torch.bfloat16, False),
    "bf16 base, autocast": (torch.bfloat16, torch.float32, True),
    "float32 base, autocast": (torch.float32, torch.float32, True),
}


def count(
    in_place: bool, base: torch.dtype, adapter: torch.dtype, autocast: bool, tokens: int = 4096
) -> tuple[Count, int]:
    """(what a forward and a backward pass of the body count, bytes of weights and input that exist before)."""
    mode, found = FakeTensorMode(), Count()

    def build() -> Any:
        model = transformers.LlamaModel(transformers.LlamaConfig(**EIGHT_BILLION))
        return get_peft_model(model, LoraConfig(r=16, target_modules="all-linear"))

    model: Any = fake_model(mode, build, base).train()
    with mode:
        for weight in model.parameters():
            if weight.requires_grad:
                weight.data = weight.data.to(adapter)
    if in_place:
        add_in_place(model)
    with mode, mock.patch("transformers.masking_utils.find_packed_sequence_indices", lambda _: None):
        inputs = torch.empty(1, tokens, 4096, dtype=base, requires_grad=True)
        found.hold(inputs, *model.parameters())
        held = found.live
        with found, torch.autocast("cpu", torch.bfloat16, enabled=autocast):
            out = model(inputs_embeds=inputs, use_cache=False).last_hidden_state
            out.sum().backward()
    return found, held


def main() -> None:
    print(
        "| weights | operators per layer | GiB moved per layer | peak GiB per layer, without weights |\n|---|---|---|---|"
    )
    for name, kind in KINDS.items():
        (theirs, held), (ours, _) = count(False, *kind), count(True, *kind)
        cells = [
            f"{theirs.operators.total() / LAYERS:.0f} -> {ours.operators.total() / LAYERS:.0f}",
            *(
                f"{before / GIB / LAYERS:.2f} -> {after / GIB / LAYERS:.2f} ({after / before - 1:+.0%})"
                for before, after in ((theirs.moved, ours.moved), (theirs.peak - held, ours.peak - held))
            ),
        ]
        print(f"| {name} | {' | '.join(cells)} |", flush=True)


if __name__ == "__main__":
    main()
