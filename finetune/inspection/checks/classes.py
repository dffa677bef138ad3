"""one-class, missing-class, rare-class: splits in which the labels say less than they should."""

from __future__ import annotations

from collections import Counter

from finetune.inspection.findings import Finding
from finetune.inspection.inspection import Inspection
from finetune.inspection.split import InspectedSplit

RARE = 0.1  # of the share that each class had if all were equally frequent


def check(inspection: Inspection) -> list[Finding]:
    """A split with a single class; a class of train that validation or test does not have; one that train does not have."""
    findings = []
    counts = {name: class_counts(split) for name, split in inspection.splits.items() if split.labels}
    single_label = {len(names) for split in inspection.splits.values() for names in split.labels} <= {1}
    for name, found in counts.items():
        if len(found) == 1 and len(inspection.artifacts.labels) > 1 and single_label:
            what = f"all rows of {name} have the label {next(iter(found))}"
            findings.append(Finding("one-class", "error" if name == "train" else "warn", what, (), found.total()))
    train = counts.get("train", Counter())
    for name, found in counts.items():
        missing = [label for label in train if label not in found]
        if name != "train" and missing and len(found) > 1:
            what = f"classes of train do not occur in {name}: {_listed(missing)}"
            findings.append(Finding("missing-class", "warn", what, (), len(missing)))
    unseen = [label for label in _kinds(inspection.artifacts.labels) if train and label not in train and label != "O"]
    if unseen and len(train) > 1:
        what = f"classes never occur in train: {_listed(unseen)}"
        findings.append(Finding("missing-class", "warn", what, (), len(unseen)))
    return findings + _rare_classes(train, weighable=hasattr(inspection.artifacts.options, "class_weights"))


def _rare_classes(train: Counter[str], *, weighable: bool) -> list[Finding]:
    """Classes of train with at most a tenth of an even share. "O" of tags is no class."""
    classes = Counter({label: count for label, count in train.items() if label != "O"})
    limit = RARE * classes.total() / max(len(classes), 1)
    rare = sorted((count, label) for label, count in classes.items() if count <= limit)
    if not rare:
        return []
    shares = [f"{label} {count:,} ({count / classes.total():.1%})" for count, label in rare]
    what = f"classes are rare in train, with at most a tenth of an even share of {classes.total():,} labels: "
    remedy = "Look at the report's figures of each class: figures over all classes may hide them. Add examples of them"
    weights = ", or set options.class_weights: balanced" if weighable else ""
    return [Finding("rare-class", "info", what + _listed(shares), (), len(rare), f"{remedy}{weights}.")]


def class_counts(split: InspectedSplit) -> Counter[str]:
    """How often each class occurs in a split; of tags such as B-person and I-person, the kind of entity."""
    return Counter(_kind(label) for names in split.labels for label in names)


def _kinds(labels: list[str]) -> list[str]:
    return list(dict.fromkeys(map(_kind, labels)))


def _kind(label: str) -> str:
    return label[2:] if label[:2] in ("B-", "I-", "E-", "S-") and len(label) > 2 else label


def _listed(names: list[str]) -> str:
    shown = ", ".join(names[:8])
    return shown if len(names) <= 8 else f"{shown} and {len(names) - 8} more"
