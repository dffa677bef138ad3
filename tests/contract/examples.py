"""One tiny example of every task: eight rows and a recipe that a laptop core trains in a second. See test_promises.py."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image


@dataclass(frozen=True)
class TinyExample:
    """write: puts eight rows into a folder and returns `data:`. trains: AdamW steps and learning rate that overfit them;
    learnt: the loss from which they count as learnt.

    adapter: `adapter:` for those that can have one.
    unusable: rows that cannot be asked, each with its reason. long_row: options with a limit, and a row that is longer; None:
    rows have no length. record: fields of an answer in a user's file.
    """

    task: str
    model: dict[str, Any]
    write: Callable[[Path], dict[str, Any]]
    unusable: tuple[tuple[dict[str, Any], str], ...]
    record: frozenset[str]
    long_row: tuple[dict[str, int], dict[str, Any]] | None = None
    options: dict[str, Any] = field(default_factory=dict)
    adapter: dict[str, Any] | None = None
    steps: int = 60
    learning_rate: float = 1e-2
    learnt: float = 0.1

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


def _entities(folder: Path) -> dict[str, Any]:
    people, places = ["Ann", "Bob Ray", "Cid", "Dee"], ["Rome", "New York", "Oslo", "Lima"]
    rows = []
    for person, place in zip(people, places, strict=True):
        for verb in ("left", "sees"):
            words = [(word, kind) for kind, name in (("per", person), ("loc", place)) for word in name.split()]
            tags = [f"{'B' if word in (person.split()[0], place.split()[0]) else 'I'}-{kind}" for word, kind in words]
            cut = len(person.split())
            tokens = [word for word, _ in words]
            rows.append(
                {"tokens": [*tokens[:cut], verb, *tokens[cut:], "."], "tags": [*tags[:cut], "O", *tags[cut:], "O"]}
            )
    return _write_rows(folder, rows)


def _ratings(folder: Path) -> dict[str, Any]:
    texts = [
        "a fine film",
        "lovely and warm",
        "the best",
        "I laughed",
        "a dull film",
        "cold and long",
        "bad",
        "I slept",
    ]
    return _write_rows(folder, [{"text": text, "label": 2.0 - index / 2} for index, text in enumerate(texts)])


def _pairs(folder: Path) -> dict[str, Any]:
    replies = [("Apple.", "Stone."), ("An oak.", "A car."), ("Hello!", "Go away."), ("The Nile.", "A chair, I think.")]
    asked = ["Name a fruit.", "Name a tree.", "Say hello.", "Name a river."]
    rows: list[dict[str, Any]] = [
        {"prompt": ask, "chosen": good, "rejected": bad} for ask, (good, bad) in zip(asked, replies, strict=True)
    ]
    for ask, (good, bad) in zip(asked, replies, strict=True):
        turns = {"messages": [{"from": "human", "value": f"Please: {ask}"}]}
        rows.append({**turns, "chosen": {"from": "gpt", "value": good}, "rejected": {"from": "gpt", "value": bad}})
    return _write_rows(folder, rows)


def _verdicts(folder: Path) -> dict[str, Any]:
    good = [
        ("Name a fruit.", "Apple."),
        ("Name a tree.", "An oak."),
        ("Say hello.", "Hello!"),
        ("A river?", "The Nile."),
    ]
    bad = ["Stone.", "A car.", "Go away.", "A chair, I think."]
    rows = [{"prompt": ask, "completion": reply, "label": True} for ask, reply in good]
    rows += [{"prompt": ask, "completion": no, "label": False} for (ask, _), no in zip(good, bad, strict=True)]
    return _write_rows(folder, rows)


def _translations(folder: Path) -> dict[str, Any]:
    pairs = [
        ("ein Hund", "a dog"),
        ("zwei Katzen", "two cats"),
        ("der Mann lacht", "the man laughs"),
        ("Regen", "rain"),
    ]
    pairs += [("ein Haus", "a house"), ("die Frau", "the woman"), ("rot und blau", "red and blue"), ("Schnee", "snow")]
    for position, ending in enumerate(("de", "en")):
        lines = "".join(pair[position] + "\n" for pair in pairs)
        (folder / f"train.{ending}").write_text(lines, encoding="utf-8")
    return {"train": str(folder / "train.{de,en}"), "columns": {"source": "de", "target": "en"}}


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
    rows, rng = [], np.random.default_rng(0)
    for index in range(8):
        pixels = rng.integers(0, 90, (14, 18, 3), dtype=np.uint8)
        pixels[(slice(0, 7) if index % 2 else slice(7, 14)), :, index % 3] += 120
        Image.fromarray(pixels).save(folder / f"{index}.png")
        rows.append({"image": str(folder / f"{index}.png"), "label": ["low", "high"][index % 2]})
    return _write_rows(folder, rows)


def _scenes(folder: Path) -> dict[str, Any]:
    rows, rng = [], np.random.default_rng(0)
    for index in range(8):
        pixels = rng.integers(0, 60, (48, 64, 3), dtype=np.uint8)
        boxes = [[4 + 3 * index, 6, 20, 24], [30 - 3 * index, 28, 24, 18]][: 0 if index == 3 else 1 + index % 2]
        for place, (x, y, wide, high) in enumerate(boxes):
            pixels[y : y + high, x : x + wide, (index + place) % 2] += 180
        Image.fromarray(pixels).save(folder / f"{index}.png")
        names = [["red", "green"][(index + place) % 2] for place in range(len(boxes))]
        rows.append({"image": str(folder / f"{index}.png"), "objects": {"bbox": boxes, "category": names}})
    return _write_rows(folder, rows)


_TRANSFORMER = {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2, "num_attention_heads": 4}
_STAGES = {"stage_num_blocks": [1, 1, 1, 1], "stage_numb_of_layers": [1, 1, 1, 1], "depths": [1, 1, 1, 1]}
_HGNET = {
    "model_type": "hgnet_v2",
    "stem_channels": [3, 8, 8],
    "stage_in_channels": [8, 16, 16, 24],
    "stage_mid_channels": [8, 8, 8, 16],
    "stage_out_channels": [16, 16, 24, 32],
    "hidden_sizes": [16, 16, 24, 32],
    "out_indices": [2, 3, 4],
    **_STAGES,
}
DFINE = {
    "backbone_config": _HGNET,
    "encoder_in_channels": [16, 24, 32],
    "decoder_in_channels": [32, 32, 32],
    **dict.fromkeys(("d_model", "encoder_hidden_dim"), 32),
    **dict.fromkeys(("encoder_ffn_dim", "decoder_ffn_dim"), 64),
    **dict.fromkeys(("encoder_attention_heads", "decoder_attention_heads"), 4),
    "decoder_layers": 2,
    "num_queries": 6,
    "num_denoising": 0,
    "weight_loss_ddf": 0.0,
    "depth_mult": 0.34,
    "hidden_expansion": 0.5,
}
_RESNET = {"embedding_size": 8, "hidden_sizes": [8, 16], "depths": [1, 1], "layer_type": "basic"}

_TEXT: Any = (({"text": " "}, "text is empty"), ({}, "no text"), ({"text": ["a"]}, "text is list, not text"))
_IMAGE: Any = (({"image": "/none.png"}, "/none.png"), ({"image": b"no image"}, "image"), ({}, "image"))
_LONG_TEXT: Any = ({"max_length": 32}, {"text": "word " * 90})
_CLASS, _WRITTEN = frozenset({"label", "score", "labels"}), frozenset({"text", "finish_reason"})

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
        unusable=_TEXT,
        record=_CLASS,
        long_row=_LONG_TEXT,
        adapter={"rank": 4},
        learning_rate=3e-3,
    ),
    TinyExample(
        task="token_classification",
        model={
            "source": "bert",
            "init": "config",
            "tokenizer": "train:300",
            "config": {**_TRANSFORMER, "initializer_range": 0.1, "hidden_dropout_prob": 0.0},
        },
        write=_entities,
        unusable=(({"tokens": []}, "tokens is empty"), ({}, "no tokens"), ({"tokens": "a b"}, "a list")),
        record=frozenset({"words", "tags", "scores", "entities"}),
        long_row=({"max_length": 32}, {"tokens": ["word"] * 90}),
        adapter={"rank": 4},
        learning_rate=3e-3,
    ),
    TinyExample(
        task="sequence_regression",
        model={
            "source": "bert",
            "init": "config",
            "tokenizer": "train:300",
            "config": {**_TRANSFORMER, "initializer_range": 0.1, "hidden_dropout_prob": 0.0},
        },
        write=_ratings,
        unusable=_TEXT,
        record=frozenset({"value"}),
        long_row=_LONG_TEXT,
        adapter={"rank": 4},
        steps=250,
        learning_rate=3e-3,
    ),
    TinyExample(
        task="reward_model",
        model={
            "source": "llama",
            "init": "config",
            "tokenizer": "train:320",
            "config": {**_TRANSFORMER, "num_key_value_heads": 2, "max_position_embeddings": 128},
        },
        write=_pairs,
        unusable=(({"prompt": "Hi"}, "no chosen"), ({"prompt": "Hi", "chosen": " "}, "chosen is empty")),
        record=frozenset({"reward"}),
        long_row=({"max_length": 64}, {"prompt": "word " * 90, "chosen": "a"}),
        adapter={"rank": 4},
    ),
    *(
        TinyExample(
            task="preference",
            model={
                "source": "llama",
                "init": "config",
                "tokenizer": "train:320",
                "config": {**_TRANSFORMER, "num_key_value_heads": 2, "max_position_embeddings": 128},
            },
            write=_verdicts if loss == "kto" else _pairs,
            unusable=(({"prompt": " "}, "the prompt is empty"), ({}, "no prompt")),
            record=_WRITTEN,
            long_row=({"max_length": 64}, {"prompt": "word " * 90}),
            options={"loss": loss, "beta": beta, "margin": 0.0},
            adapter={"rank": 4},
            steps=80,
        )
        for loss, beta in (("dpo", 0.5), ("ipo", 1.0), ("kto", 0.5), ("orpo", 0.1), ("simpo", 2.0))
    ),
    TinyExample(
        task="seq2seq",
        model={
            "source": "t5",
            "init": "config",
            "tokenizer": "train:300",
            "config": {"d_model": 32, "d_ff": 64, "d_kv": 8, "num_heads": 4, "num_layers": 2, "dropout_rate": 0.0},
        },
        write=_translations,
        unusable=(({"source": " "}, "source is empty"), ({}, "no source")),
        record=_WRITTEN,
        long_row=({"max_source_length": 32}, {"source": "word " * 90}),
        options={"max_target_length": 24},
        adapter={"rank": 4},
        steps=120,
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
        unusable=(
            ({"output": "Apple."}, "neither messages, nor instruction"),
            ({"instruction": " "}, "the prompt is empty"),
            ({"text": " "}, "the prompt is empty"),
            ({"prompt": " "}, "the prompt is empty"),
            ({"messages": [{"role": "assistant", "content": "Hello!"}]}, "the prompt is empty"),
        ),
        record=_WRITTEN,
        long_row=({"max_length": 64}, {"instruction": "word " * 90}),
        options={"reply_length": 24},
        adapter={"rank": 4},
        steps=80,
    ),
    TinyExample(
        task="image_classification",
        model={"source": "resnet", "init": "config", "config": _RESNET, "batch_norm": "local"},
        write=_pictures,
        unusable=_IMAGE,
        record=_CLASS,
        options={"image_size": 16},
        adapter={"rank": 4, "targets": ["convolution"]},
    ),
    TinyExample(
        task="object_detection",
        model={"source": "d_fine", "init": "config", "config": DFINE, "batch_norm": "local"},
        write=_scenes,
        unusable=_IMAGE,
        record=frozenset({"boxes"}),
        options={"image_size": 64},
        steps=240,
        learning_rate=4e-3,
        learnt=6.0,
    ),
)

FAST = ("text_classification", "causal_lm", "image_classification")  # the tasks of `make test-fast`
EXAMPLE_PARAMS = [
    pytest.param(example, id=example.task, marks=[] if example.task in FAST else pytest.mark.slow)
    for example in EXAMPLES
]
"""For `pytest.fixture(params=...)`: tests of all other tasks are marked slow."""
