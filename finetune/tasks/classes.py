"""What classification of any kind shares: which classes there are, how they meet a trained head, what a prediction is.

Shapes: B examples, C classes.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from finetune.data.columns import nearest_name
from finetune.data.labels import Labels, class_names
from finetune.data.table import Table
from finetune.errors import UserError
from finetune.tasks.task import Batch, Prediction

if TYPE_CHECKING:
    import torch

METRICS = (
    "accuracy", "f1_macro", "f1_micro", "precision", "recall", "matthews", "roc_auc", "confusion_matrix", "per_class",
)  # fmt: skip
DEFAULT_METRICS = ("accuracy", "f1_macro", "confusion_matrix", "per_class")


@dataclass(frozen=True)
class Classes:
    """names: of the classes by index, as people and the saved model see them. lookup: from the data's labels to indices.

    The two differ where the data writes 0, 1 and the recipe or the checkpoint names them: "negative", "positive".
    """

    names: list[str]
    lookup: Labels


def named(names: Sequence[str]) -> dict[str, Any]:
    """What a model's configuration takes: ["no", "yes"] -> {"id2label": {0: "no", 1: "yes"}, "label2id": {...}}."""
    return {"id2label": dict(enumerate(names)), "label2id": {name: index for index, name in enumerate(names)}}


def decide_classes(
    tables: Mapping[str, Table], stated: Sequence[str], trained: Sequence[str] | None, *, several: bool, where: str
) -> Classes:
    """The classes of a run. stated: options.labels. trained: labels of the checkpoint's own head, None if it has none or
    the recipe wants a new one. where: the model's name, for the error.

    A trained head keeps its classes and their order, if those of the data are among them; names that transformers made up
    (LABEL_0, ...) fit any data with as many classes.
    Raises: UserError if the classes of the data do not fit the trained head.
    """
    return choose_classes(class_names(tables, several=several), stated, trained, where=where)


def choose_classes(
    found: Sequence[str], stated: Sequence[str], trained: Sequence[str] | None, *, where: str
) -> Classes:
    """As decide_classes, for classes that were found already."""
    names = list(stated or found)
    if trained is not None:
        made_up = list(trained) == [f"LABEL_{index}" for index in range(len(trained))]
        if made_up and len(trained) == len(names):
            return Classes(names, _lookup(names, found))
        if not _fits(names, trained) or (stated and set(stated) != set(trained)):
            raise UserError(
                f"the labels do not fit the head that {where} was trained with\n"
                f"  data   {_listed(names)}\n  model  {_listed(trained)}",
                remedy="Train a new head: options.new_head: true. Or write the labels as the model does.",
            )
        names = list(trained)
    return Classes(names, _lookup(names, found))


def _fits(found: Sequence[str], names: Sequence[str]) -> bool:
    return set(found) <= set(names) or _are_numbers(found, len(names))


def _lookup(names: Sequence[str], found: Sequence[str]) -> Labels:
    """By name; by index where the data writes numbers below C, none of which is a name."""
    if not set(found) & set(names) and _are_numbers(found, len(names)):
        return Labels([str(index) for index in range(len(names))])
    return Labels(names)


def _are_numbers(found: Iterable[str], count: int) -> bool:
    return all(name.isdecimal() and int(name) < count for name in found)


def _listed(names: Sequence[str]) -> str:
    shown = ", ".join(map(str, names[:12]))
    return f"{len(names)}: {shown}" + (", ..." if len(names) > 12 else "")


def trained_labels(config: Any, suffix: str) -> list[str] | None:
    """Labels of a checkpoint whose architecture ends with `suffix` ("ForSequenceClassification"); None for a body."""
    if not any(str(name).endswith(suffix) for name in config.architectures or ()):
        return None
    return [str(config.id2label[index]) for index in sorted(config.id2label)]


def class_counts(labels: Iterable[Any], names: Sequence[str]) -> dict[str, int]:
    """How many examples each class has: {"negative": 3310, "positive": 3610}."""
    counts = dict.fromkeys(names, 0)
    for label in labels:
        for index in label if hasattr(label, "__len__") else [label]:
            counts[names[int(index)]] += 1
    return counts


def label_tensor(labels: Sequence[Any], num_labels: int, *, several: bool) -> torch.Tensor:
    """[2, 0] -> int64 [B]; several: [[0, 2], []] -> float32 [B, C] of 0 and 1."""
    import torch

    if not several:
        return torch.tensor([int(label) for label in labels], dtype=torch.long)
    hot = torch.zeros(len(labels), num_labels)
    for row, indices in enumerate(labels):
        hot[row, [int(index) for index in indices]] = 1.0
    return hot


def classification_loss_sum(logits: torch.Tensor, labels: torch.Tensor, *, label_smoothing: float) -> torch.Tensor:
    """Loss summed over the B examples, float32: cross-entropy for labels [B], mean binary one for labels [B, C]."""
    from finetune.models.losses import binary_cross_entropy_each, cross_entropy_sum

    if labels.dim() == 2:
        loss = binary_cross_entropy_each(logits, labels, label_smoothing=label_smoothing).sum()
    else:
        loss = cross_entropy_sum(logits, labels, label_smoothing=label_smoothing)
    return loss


def class_predictions(
    logits: torch.Tensor, batch: Batch, names: Sequence[str], shown: Sequence[Mapping[str, Any]]
) -> list[Prediction]:
    """One prediction an example: its class (or 0/1 for each class), reference, scores (softmax; sigmoid for several), and
    its plain loss, without label smoothing.
    """
    import torch

    from finetune.models.losses import binary_cross_entropy_each, cross_entropy_each

    logits, labels = logits.detach().float(), batch.targets["labels"]
    if labels.dim() == 2:
        scores, losses = torch.sigmoid(logits), binary_cross_entropy_each(logits, labels)
        chosen, references = (logits > 0).int(), labels.int()
    else:
        scores, losses = torch.softmax(logits, dim=-1), cross_entropy_each(logits, labels)
        chosen, references = logits.argmax(dim=-1), labels
    rows = zip(batch.ids, *(x.tolist() for x in (chosen, references, scores, losses)), shown, strict=True)
    return [
        Prediction(
            id=id,
            values={"prediction": prediction, "reference": reference, "scores": score},
            loss=loss,
            weight=1,
            shown={**extra, "label": name_of(reference, names), "predicted": name_of(prediction, names)},
        )
        for id, prediction, reference, score, loss, extra in rows
    ]


def name_of(value: Any, names: Sequence[str]) -> str:
    """1 -> "positive"; [1, 0, 1] -> "anger, joy"; [0, 0, 0] -> "(none)"."""
    if isinstance(value, list):
        return ", ".join(name for name, on in zip(names, value, strict=True) if on) or "(none)"
    return names[value]


def weigh_classes(asked: str | Mapping[str, float], counts: Mapping[str, int]) -> list[float] | None:
    """Weight of each class, None where all are 1. asked: "none", "balanced" or weights by name. counts: training images.

    balanced: images / (classes that occur x images of the class), so that the mean weight over the images is 1.
    Raises: UserError for a name that is no class, or a weight that is not positive.
    """
    if asked == "none":
        return None
    if isinstance(asked, str):
        total, occurring = sum(counts.values()), sum(1 for count in counts.values() if count)
        return [total / (occurring * count) if count else 1.0 for count in counts.values()]
    for name, weight in asked.items():
        if name not in counts or weight <= 0:
            what = (
                f"no class is called {name!r}"
                if name not in counts
                else f"the weight {weight} of {name} is not above 0"
            )
            near = nearest_name(name, counts)
            hint = f"Did you mean {near}?" if near and near != name else f"The classes are {_listed(list(counts))}."
            raise UserError(what, where="options.class_weights", remedy=hint)
    return [float(asked.get(name, 1.0)) for name in counts]


def weighted_loss_sum(
    logits: torch.Tensor,
    labels: torch.Tensor,
    *,
    partners: torch.Tensor | None,
    shares: torch.Tensor | None,
    class_weights: Sequence[float] | None,
    label_smoothing: float,
) -> torch.Tensor:
    """Cross-entropy summed over B examples, float32: each times the weight of its class; of a mixed one, its own label's
    and its partner's in their shares. labels, partners: [B]; shares: [B], of the example's own label.
    """
    import torch
    from torch.nn import functional

    logits = logits.float()
    weights = None if class_weights is None else torch.tensor(class_weights, device=logits.device)

    def each(classes: torch.Tensor) -> torch.Tensor:
        losses = functional.cross_entropy(logits, classes, reduction="none", label_smoothing=label_smoothing)
        return losses if weights is None else losses * weights[classes]

    if partners is None or shares is None:
        return each(labels).sum()
    return (shares * each(labels) + (1.0 - shares) * each(partners)).sum()
