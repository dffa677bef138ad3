"""The trackers that `tracking.also` may name: one entry each. Nothing of a tracker is imported here.

To add one: a `Listener` (events.py) in `tracking/`, an entry in `TRACKERS`, and an extra of the same name in pyproject.toml.
One that Accelerate knows extends `AccelerateTracker`.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from importlib.util import find_spec
from typing import TYPE_CHECKING, Any, Literal

from finetune.recipe.targets import load_target


@dataclass(frozen=True)
class TrackerSpec:
    """listener: "module:class", called with (run, recipe, say). packages: any one of them is sufficient. description: where its
    rows go, for `tracking.also`. The extra of finetune has the same name as the tracker.
    """

    listener: str
    packages: tuple[str, ...]
    description: str

    @property
    def is_installed(self) -> bool:
        return any(find_spec(package) is not None for package in self.packages)

    @property
    def listener_class(self) -> Any:
        return load_target(self.listener)


TRACKERS: Mapping[str, TrackerSpec] = {
    "tensorboard": TrackerSpec(
        "finetune.tracking.tensorboard:TensorBoard", ("tensorboard", "tensorboardX"), "RUN/tensorboard"
    ),
    "mlflow": TrackerSpec("finetune.tracking.mlflow:MLflow", ("mlflow",), "where MLFLOW_TRACKING_URI says"),
}

if TYPE_CHECKING:
    TrackerName = str
else:
    TrackerName = Literal[tuple(TRACKERS)]


def describe_trackers() -> str:
    """The sentences under `tracking.also`."""
    entries = ", ".join(f"{name} ({spec.description})" for name, spec in TRACKERS.items())
    return f"Other trackers that get the rows of metrics.jsonl: {entries}. Each needs the extra of its name."
