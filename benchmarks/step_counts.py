"""Operators, bytes moved and peak memory of one training step of a tiny Llama, counted without a clock.

    python -m benchmarks.step_counts           # beside the committed figures
    python -m benchmarks.step_counts --write   # new figures; say in the commit's message why

Forward and backward pass and AdamW on 384 packed tokens, a third of them supervised: float32, bf16 weights, and float32 weights
under bf16 autocast. What a GPU would do more of (a copy, a cast, an operator per layer) shows here too, and
tests/unit/test_step_counts.py fails by it.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import Any

import numpy as np
import torch
import transformers

from benchmarks.counting import Count
from finetune.distributed.gradient_norm import clip_gradients
from finetune.models.gated import recompute_gates
from finetune.models.loss_head import install_loss_head
from finetune.models.segmented import use_segmented_attention
from finetune.tasks.text.padding_free import concatenate_rows

FIGURES = Path(__file__).with_suffix(".json")
LLAMA = {
    "vocab_size": 2048, "hidden_size": 64, "intermediate_size": 128, "num_hidden_layers": 4, "num_attention_heads": 4,
    "num_key_value_heads": 2, "max_position_embeddings": 256, "tie_word_embeddings": True,
}  # fmt: skip
KINDS = {
    "float32": (torch.float32, False),
    "bf16 weights": (torch.bfloat16, False),
    "bf16 autocast": (torch.float32, True),
}


def count_step(weights: torch.dtype, autocast: bool) -> dict[str, int]:
    """{"operators", "moved_bytes", "peak_bytes"} of the second step; the first makes the optimizer's state."""
    torch.manual_seed(0)
    model: Any = transformers.LlamaForCausalLM(transformers.LlamaConfig(**LLAMA)).to(weights).train()
    use_segmented_attention(model)
    install_loss_head(model)
    recompute_gates(model)
    optimizer = torch.optim.AdamW(model.parameters(), fused=True)
    draw = np.random.default_rng(0)
    count = Count()
    for _ in range(2):
        inputs, _ = concatenate_rows([{"input_ids": draw.integers(0, 2048, size=size)} for size in (128, 96, 160)])
        positions = torch.arange(0, 384, 3)
        count = Count()
        count.hold(*model.parameters(), *(x for state in optimizer.state.values() for x in state.values()))
        with count:
            with torch.autocast("cpu", torch.bfloat16, enabled=autocast):
                loss = model(**inputs, use_cache=False, target_ids=positions, target_positions=positions)["loss_sum"]
            (loss / 128.0).backward()
            clip_gradients(model.parameters(), 1.0)
            optimizer.step()
            optimizer.zero_grad(set_to_none=True)
            del loss
    return {"operators": count.operators.total(), "moved_bytes": count.moved, "peak_bytes": count.peak}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--write", action="store_true")
    found = {name: count_step(*kind) for name, kind in KINDS.items()}
    versions = {"torch": torch.__version__.partition("+")[0], "transformers": transformers.__version__}
    if parser.parse_args().write:
        FIGURES.write_text(json.dumps({"versions": versions, "figures": found}, indent=1) + "\n")
    stored = json.loads(FIGURES.read_text())["figures"]
    print("| weights | operators | bytes moved | peak bytes |\n|---|---|---|---|")
    for name, figures in found.items():
        cells = [f"{value:,} ({value / stored[name][key] - 1:+.1%})" for key, value in figures.items()]
        print(f"| {name} | {' | '.join(cells)} |")


if __name__ == "__main__":
    main()
