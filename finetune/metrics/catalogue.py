"""All metrics: their modules, whether higher is better, and the prediction fields they need. Imports nothing heavy."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from difflib import get_close_matches
from typing import Literal

from finetune.errors import UserError

Direction = Literal["max", "min"]


@dataclass(frozen=True)
class Entry:
    """One metric.

    module, type: the file in this folder and the class in it.
    fields: keys of a prediction's values that the metric takes, in the order of the module's `inputs`.
    direction: "max" if higher is better, "min" if lower is; None for a table.
    """

    module: str
    type: str
    fields: tuple[str, ...]
    direction: Direction | None = "max"


_CLASSES = ("prediction", "reference")
_TAGS = ("tags", "reference_tags")
_TEXTS = ("text", "reference_text")
_VALUES = ("value", "target")
_REWARDS = ("chosen_reward", "rejected_reward")

CATALOGUE: dict[str, Entry] = {
    "accuracy": Entry("accuracy", "Accuracy", _CLASSES),
    "f1_macro": Entry("f1_macro", "F1Macro", _CLASSES),
    "f1_micro": Entry("f1_micro", "F1Micro", _CLASSES),
    "precision": Entry("precision", "Precision", _CLASSES),
    "recall": Entry("recall", "Recall", _CLASSES),
    "matthews": Entry("matthews", "Matthews", _CLASSES),
    "roc_auc": Entry("roc_auc", "RocAuc", ("scores", "reference")),
    "perplexity": Entry("perplexity", "Perplexity", ("loss", "weight"), "min"),
    "entity_f1": Entry("entity_f1", "EntityF1", _TAGS),
    "entity_precision": Entry("entity_precision", "EntityPrecision", _TAGS),
    "entity_recall": Entry("entity_recall", "EntityRecall", _TAGS),
    "word_accuracy": Entry("word_accuracy", "WordAccuracy", _TAGS),
    "per_entity": Entry("per_entity", "PerEntity", _TAGS, None),
    "map": Entry("map", "Map", ("detections", "objects")),
    "sacrebleu": Entry("sacrebleu", "Sacrebleu", _TEXTS),
    "chrf": Entry("chrf", "Chrf", _TEXTS),
    "rouge1": Entry("rouge1", "Rouge1", _TEXTS),
    "rouge2": Entry("rouge2", "Rouge2", _TEXTS),
    "rouge_l": Entry("rouge_l", "RougeL", _TEXTS),
    "exact_match": Entry("exact_match", "ExactMatch", _TEXTS),
    "pearson": Entry("pearson", "Pearson", _VALUES),
    "spearman": Entry("spearman", "Spearman", _VALUES),
    "mse": Entry("mse", "Mse", _VALUES, "min"),
    "mae": Entry("mae", "Mae", _VALUES, "min"),
    "preference_accuracy": Entry("preference_accuracy", "PreferenceAccuracy", _REWARDS),
    "reward_margin": Entry("reward_margin", "RewardMargin", _REWARDS),
    "chosen_reward": Entry("chosen_reward", "ChosenReward", _REWARDS[:1]),
    "rejected_reward": Entry("rejected_reward", "RejectedReward", _REWARDS[1:], "min"),
    "confusion_matrix": Entry("confusion_matrix", "ConfusionMatrix", _CLASSES, None),
    "per_class": Entry("per_class", "PerClass", _CLASSES, None),
}
NAMES = tuple(CATALOGUE)


def direction(name: str) -> Direction:
    """Whether a higher ("max") or a lower ("min") value of a metric is better; `loss` counts as a metric here.

    Raises: UserError for an unknown name, and for a metric that is a table.
    """
    if name == "loss":
        return "min"
    better = find(name).direction
    if better is None:
        raise UserError(
            f"{name} is a table, so it cannot select the best checkpoint", remedy=f"Use one of {_scalars()}."
        )
    return better


def needs_text(names: Iterable[str]) -> bool:
    """Whether one of the metrics needs text that the model generates."""
    return any("text" in find(name).fields for name in names)


def find(name: str) -> Entry:
    """The entry of a metric. Raises: UserError for an unknown name, with the most similar one."""
    if name in CATALOGUE:
        return CATALOGUE[name]
    near = get_close_matches(name, NAMES, n=1)
    hint = f"Did you mean {near[0]}? " if near else ""
    raise UserError(f"unknown metric {name!r}", remedy=f"{hint}The metrics are {', '.join(NAMES)}.")


def _scalars() -> str:
    return ", ".join(["loss", *(name for name, entry in CATALOGUE.items() if entry.direction)])
