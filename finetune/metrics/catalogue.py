"""Which metrics there are, which way each gets better, and what predictions must bring. Imports nothing heavy."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from difflib import get_close_matches
from typing import Literal

from finetune.errors import UserError

Direction = Literal["max", "min"]


@dataclass(frozen=True)
class Entry:
    """One metric: the file of this folder and the class in it, and the fields of a prediction that it takes.

    direction: None for a table. fields: keys of a prediction's values, in the order of the module's features.
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
    """Whether a larger ("max") or a smaller ("min") figure is better; `loss` counts as a metric here.

    Raises: UserError for an unknown name, and for one that is a table and so has no better or worse.
    """
    if name == "loss":
        return "min"
    found = find(name).direction
    if found is None:
        raise UserError(
            f"{name} is a table, so it cannot choose the best checkpoint", remedy=f"take one of {_scalars()}"
        )
    return found


def needs_text(names: Iterable[str]) -> bool:
    """Whether one of the metrics judges texts that the model must generate."""
    return any("text" in find(name).fields for name in names)


def find(name: str) -> Entry:
    """The entry of a metric. Raises: UserError with the nearest spelling."""
    if name in CATALOGUE:
        return CATALOGUE[name]
    near = get_close_matches(name, NAMES, n=1)
    hint = f"did you mean {near[0]}? " if near else ""
    raise UserError(f"unknown metric {name!r}", remedy=f"{hint}known metrics: {', '.join(NAMES)}")


def _scalars() -> str:
    return ", ".join(["loss", *(name for name, entry in CATALOGUE.items() if entry.direction)])
