"""The language model that the GPU tests of engines and options train: two layers of a Llama on eighty questions."""

from __future__ import annotations

import copy
import json
from pathlib import Path
from typing import Any

import yaml

STEPS = 12
RECIPE = """
name: gpu
task: causal_lm
model: {source: llama, init: config, tokenizer: "train:512", config: {hidden_size: 128, intermediate_size: 256,
  num_hidden_layers: 2, num_attention_heads: 4, num_key_value_heads: 2, max_position_embeddings: 256}}
data: {train: rows.jsonl, validation_fraction: 0.2}
options: {max_length: 128}
training: {steps: 12, global_batch: 8, learning_rate: 1.0e-3}
evaluation: {samples: 1}
tracking: {wandb: "off", log_every: 1}
"""


def write_rows(folder: Path) -> None:
    """rows.jsonl, which RECIPE trains on."""
    rows = [
        {"prompt": f"What is {n} plus {n}?", "completion": f"It is {2 * n}, as anyone can count."} for n in range(80)
    ]
    (folder / "rows.jsonl").write_text("\n".join(map(json.dumps, rows)))


def recipe(**changes: Any) -> dict[str, Any]:
    """RECIPE as plain values; `changes` replace whole sections."""
    return {**copy.deepcopy(yaml.safe_load(RECIPE)), **changes}
