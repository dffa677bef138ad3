"""What is to be prepared, and the name that it has in the cache: known in milliseconds, without torch."""

from __future__ import annotations

import json
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from finetune.app.data_changes import Record, check_evaluated_rows, check_resumed_data
from finetune.app.preparation.identities import models_identity, option_files_identity, sources_identity
from finetune.data.prepare.cache import digest
from finetune.data.prepare.file_digest import folder_digest, package_versions, source_digest
from finetune.errors import UserError
from finetune.recipe.recipe import Recipe, recipe_type
from finetune.tasks import CARDS
from finetune.tracking.run import Run

KIND = "prepared"  # of the entries in the cache
ARTIFACTS = "artifacts"  # subfolder of an entry, as of a run
FORMAT = 2  # of an entry
# Sections of a recipe that shape the data; of `training`, these keys only. A test compares them with what tasks read.
SECTIONS = ("task", "seed", "model", "data", "options")
TRAINING_KEYS = ("label_smoothing",)
MACHINE_KEYS = {
    "data": ("workers",),
    "model": (
        "dtype",
        "quantization",
        "gradient_checkpointing",
        "freeze",
        "kernels",
        "compile",
        "float8",
        "init_device",
    ),
}
SHAPING_ROOMS = ("data", "tasks", "models", "recipe", "planning")  # whose source code shapes the result
KEPT = ("packing", "capacity")  # of plan.json: kept when a run is resumed


@dataclass(frozen=True)
class Names:
    """The names that a request's cache entry may have: that of a new run, and that of a run which keeps something else.

    kept: what the run has decided already; see Request.kept.
    """

    new: str
    resumed: str
    kept: Mapping[str, Any]

    @property
    def published(self) -> str:
        """The name under which it is published."""
        return self.resumed if self.kept else self.new


@dataclass(frozen=True)
class Request:
    """What is to be prepared: the splits of a recipe, or for an evaluation one split or other files.

    values: the recipe as JSON values. run: the folder of the run that is resumed or evaluated; its plan and artifacts are
    kept. split, data, read: as `finetune evaluate` takes them; "" and () for a training. data_changed: the data may be another
    than that of the run, which is then trained on with it.
    """

    values: Mapping[str, Any]
    run: Path | None = None
    split: str = ""
    data: tuple[str, ...] = ()
    read: tuple[str, ...] = ()
    data_changed: bool = False

    @classmethod
    def of(
        cls,
        recipe: Recipe,
        run: Path | None = None,
        split: str = "",
        data: tuple[str, ...] = (),
        read: tuple[str, ...] = (),
        *,
        data_changed: bool = False,
    ) -> Request:
        """The request for a recipe."""
        return cls(recipe.model_dump(mode="json"), run, split, data, read, data_changed)

    @property
    def recipe(self) -> Recipe:
        """The recipe again; as plain values it can be sent to another process."""
        return recipe_type(CARDS[self.values["task"]])(**self.values)

    def names(self) -> Names:
        """The names of its cache entry. Raises: UserError for sources that are missing."""
        try:
            about = self._about()
        except OSError as error:
            raise UserError(f"cannot be read: {error.strerror}", where=str(error.filename or "data")) from error
        kept = self.kept()
        return Names(digest(KIND, *about, {}), digest(KIND, *about, kept), kept)

    def _about(self) -> list[Any]:
        shaping = {name: self.values[name] for name in SECTIONS}
        for section, keys in MACHINE_KEYS.items():
            shaping[section] = {name: value for name, value in shaping[section].items() if name not in keys}
        shaping["training"] = {name: self.values["training"][name] for name in TRAINING_KEYS}
        code = [package_versions(), source_digest(*SHAPING_ROOMS)]
        own = self.run is not None and self.split and (self.run / ARTIFACTS / "artifacts.json").is_file()
        identities = [
            sources_identity(self.recipe, self.split, self.data, self.read),
            [] if own else models_identity(self.recipe.model),  # a run that is evaluated has them itself
            option_files_identity(self.values["options"]),
        ]
        return [FORMAT, code, shaping, self.split, self.data, self.read, *identities]

    def check_data(self, now: Mapping[str, Record]) -> None:
        """now: what there is of each split. Raises: UserError if it is not the data of the run that is resumed, or a split
        of the run that is evaluated has other rows.
        """
        if self.run is None or self.data:
            return
        if self.split:
            check_evaluated_rows(Run(self.run), self.recipe, self.split, now)
        else:
            check_resumed_data(Run(self.run), now, continued=self.data_changed)

    def kept(self) -> dict[str, Any]:
        """What the run has decided already: {"packing", "capacity", "artifacts": digest}; {} for a new run."""
        if self.run is None:
            return {}
        found: dict[str, Any] = {}
        with suppress(OSError, ValueError, KeyError, TypeError):
            training = json.loads((self.run / "plan.json").read_text("utf-8"))["training"]
            found.update({name: training[name] for name in KEPT if name in training})
        if (self.run / ARTIFACTS / "artifacts.json").is_file():
            found["artifacts"] = artifacts_digest(self.run / ARTIFACTS)
        return found


def artifacts_digest(folder: Path) -> str:
    """Digest of the files of task artifacts, without the model's configuration that a run keeps beside them."""
    return folder_digest(folder, without=("model",))
