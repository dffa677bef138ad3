"""The trackers that `tracking.also` may name, and the packages that each needs. None of them is imported here."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from importlib.util import find_spec


@dataclass(frozen=True)
class TrackerSpec:
    """class_name: in accelerate.tracking. packages: any one of them is sufficient. The extra of finetune has the same name as
    the tracker.
    """

    class_name: str
    packages: tuple[str, ...]

    @property
    def is_installed(self) -> bool:
        return any(find_spec(package) is not None for package in self.packages)


TRACKERS: Mapping[str, TrackerSpec] = {
    "tensorboard": TrackerSpec("TensorBoardTracker", ("tensorboard", "tensorboardX")),
    "mlflow": TrackerSpec("MLflowTracker", ("mlflow",)),
}
