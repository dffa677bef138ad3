"""One tiny example of every task: eight rows and a recipe that a laptop core trains in a second. See test_promises.py."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image


@dataclass(frozen=True)
class TinyExample:
    """write: puts eight rows into a folder and returns `data:`. trains: AdamW steps and learning rate that overfit them.

    adapter: `adapter:` for those that can have one. variants: further `options:` that keep the same promises.
    """

    task: str
    model: dict[str, Any]
    write: Callable[[Path], dict[str, Any]]
    options: dict[str, Any] = field(default_factory=dict)
    adapter: dict[str, Any] | None = None
    steps: int = 60
    learning_rate: float = 1e-2

    def recipe(self, folder: Path, **changes: Any) -> dict[str, Any]:
        """The recipe as plain values; `changes` replace whole sections."""
        return {
            "name": f"tiny-{self.task}",
            "task": self.task,
            "model": self.model,
            "data": self.write(folder),
            "options": self.options,
            "training": {"precision": "fp32"},
            "parallel": {"deepspeed": "none"},
            **changes,
        }


def _write_rows(folder: Path, rows: list[dict[str, Any]]) -> dict[str, Any]:
    path = folder / "train.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return {"train": [{"source": str(path)}]}


def _reviews(folder: Path) -> dict[str, Any]:
    good = ["a fine film", "lovely and warm", "the best of the year, by far", "I laughed and I cried"]
    bad = ["a dull film", "cold and long", "the worst of the year", "I slept"]
    rows = [{"text": text, "label": "good"} for text in good] + [{"text": text, "label": "bad"} for text in bad]
    return _write_rows(folder, rows)


def _instructions(folder: Path) -> dict[str, Any]:
    pairs = [("Name a fruit.", "Apple."), ("Name a tree.", "Oak."), ("Count to three.", "One, two, three.")]
    pairs += [("Say hello.", "Hello!"), ("Name a river.", "The Nile, in Africa."), ("What is up?", "The sky.")]
    rows: list[dict[str, Any]] = [{"instruction": ask, "input": "", "output": reply} for ask, reply in pairs]
    talk = [
        {"role": "user", "content": "Hi."},
        {"role": "assistant", "content": "Good day."},
        {"role": "user", "content": "Bye."},
        {"role": "assistant", "content": "Farewell."},
    ]
    return _write_rows(folder, [*rows, {"messages": talk}, {"text": "Plain text has no roles."}])


def _pictures(folder: Path) -> dict[str, Any]:
    rows, chance = [], np.random.default_rng(0)
    for index in range(8):
        pixels = chance.integers(0, 90, (14, 18, 3), dtype=np.uint8)
        pixels[(slice(0, 7) if index % 2 else slice(7, 14)), :, index % 3] += 120
        Image.fromarray(pixels).save(folder / f"{index}.png")
        rows.append({"image": str(folder / f"{index}.png"), "label": ["low", "high"][index % 2]})
    return _write_rows(folder, rows)


_TRANSFORMER = {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2, "num_attention_heads": 4}
_RESNET = {"embedding_size": 8, "hidden_sizes": [8, 16], "depths": [1, 1], "layer_type": "basic"}

EXAMPLES = (
    TinyExample(
        task="text_classification",
        model={
            "source": "bert",
            "init": "config",
            "tokenizer": "train:300",
            "config": {**_TRANSFORMER, "initializer_range": 0.1, "hidden_dropout_prob": 0.0},
        },
        write=_reviews,
        adapter={"rank": 4},
        learning_rate=3e-3,
    ),
    TinyExample(
        task="causal_lm",
        model={
            "source": "llama",
            "init": "config",
            "tokenizer": "train:320",
            "config": {**_TRANSFORMER, "num_key_value_heads": 2, "max_position_embeddings": 128},
        },
        write=_instructions,
        options={"reply_length": 24},
        adapter={"rank": 4},
        steps=80,
    ),
    TinyExample(
        task="image_classification",
        model={"source": "resnet", "init": "config", "config": _RESNET, "batch_norm": "local"},
        write=_pictures,
        options={"image_size": 16},
        adapter={"rank": 4, "targets": ["convolution"]},
    ),
)
