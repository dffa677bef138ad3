"""Preparation of data: a stage of its own, done once per machine, before any process group exists.

What a training or an evaluation needs of its data (task artifacts, encoded splits, facts for people) is made once and
published in the cache as `prepared/<key>`; ranks only map it. The key is made of what the recipe says, the identity of files
(size and times, not contents), versions of libraries, and our own source code, so that it is known in milliseconds and
without torch. Who prepares:

- `finetune train`, `evaluate` and `prepare`: a child of this process (apart.py), if there is no such entry yet. Its memory
  is returned when it ends, and Ctrl-C ends it within a second. If there is an entry, nothing is started or imported.
- under another launcher (torchrun, accelerate, deepspeed, srun): local rank 0 of each machine, in its own process; the
  other ranks look for the entry every tenth of a second (workers/preparing.py). No collective is involved, so preparation
  may take longer than any collective may.

Machines with disks of their own prepare for themselves; machines that share a cache prepare once (data/prepare/locks.py).
After the ranks have met, they compare what they found.

The parts (rows of files, tables, splits, encoded examples) are cache entries of their own, whose keys are made of contents:
files that were only moved or touched lead to a new `prepared` entry, but are not encoded again.
"""

from __future__ import annotations

import json
import time
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from finetune.app.apart import run_apart
from finetune.app.data_changes import Record, check_evaluated_rows, check_resumed_data
from finetune.app.identities import models_identity, option_files_identity, sources_identity
from finetune.data.prepare.cache import cache_folder, digest, find_entry, is_intact, touch
from finetune.data.prepare.cache_removal import put_aside
from finetune.data.prepare.file_digest import folder_digest, package_versions, source_digest
from finetune.data.prepare.locks import use
from finetune.data.prepare.named_files import named_files_changed
from finetune.errors import FinetuneError, UserError
from finetune.recipe.recipe import Recipe, recipe_type
from finetune.tasks import CARDS
from finetune.terminal import phase, print_line
from finetune.tracking.run import Run

KIND = "prepared"
MANIFEST = "prepared.json"
ARTIFACTS = "artifacts"
FORMAT = 2
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
POLL_SECONDS = 0.1
QUIET_SECONDS = 60.0  # without anybody who prepares, after which a waiting rank does it itself


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


def find_prepared(names: Names) -> Path | None:
    """The folder of the published entry, marked as in use by this process; None if there is none."""
    for name in dict.fromkeys((names.new, names.resumed)):
        folder = find_entry(KIND, name, print_line)
        manifest = read_manifest(folder) if folder is not None else None
        if folder is None or manifest is None:
            continue
        if any(manifest["kept"].get(key) != value for key, value in names.kept.items()):
            continue
        if named_files_changed(folder):
            _discard(folder, manifest)
            continue
        if not mark_used(folder):
            _discard(folder, manifest)
            continue
        return folder
    return None


def mark_used(folder: Path) -> bool:
    """Mark an entry, and the entries that belong to it, as in use by this process, now. False if one of them is gone, or
    damaged.
    """
    manifest = read_manifest(folder)
    parts = [Path(part) for part in manifest["entries"]] if manifest is not None else []
    damaged = [part for part in parts if not is_intact(part, print_line)]  # all of them are reported
    if manifest is None or damaged:
        return False
    if not all(use(part) for part in (*parts, folder)):
        return False
    for part in parts:
        touch(part)
    return True


def _discard(folder: Path, manifest: Mapping[str, Any]) -> None:
    """Remove an entry whose images or parts have changed or gone, unless another process has replaced it meanwhile."""
    if read_manifest(folder) == manifest:
        put_aside(folder)


def read_manifest(folder: Path) -> dict[str, Any] | None:
    """What was prepared; None if it cannot be read."""
    try:
        manifest: dict[str, Any] = json.loads((folder / MANIFEST).read_text("utf-8"))
        return manifest if manifest["format"] == FORMAT else None
    except (OSError, ValueError, KeyError):
        return None


def ensure_prepared(request: Request, workers: int | None = None) -> Path:
    """The folder of the entry; prepared by a child of this process if there is none. No torch in this process.

    workers: processes that encode; None: one for each core.
    Raises: UserError for data that cannot be used; KeyboardInterrupt, Stopped or TrainingFailed if it does not end.
    """
    names = request.names()
    found = find_prepared(names)
    if found is not None:
        request.check_data((read_manifest(found) or {})["data"])
        return found
    target = "finetune.app.workers.preparing:prepare_apart"
    with phase("preparing the data"):
        return Path(run_apart(target, request, names, workers, doing="prepares the data"))


def wait_for_prepared(names: Names) -> Path | None:
    """Look for the entry until another process of this machine has published it; None if nobody prepares it.

    Raises: PreparationFailed if that process reports that it failed.
    """
    began = quiet_since = time.time()
    lock, failed = _beside(names, "lock"), _beside(names, "failed")
    while True:
        found = find_prepared(names)
        if found is not None:
            return found
        if lock.exists():
            quiet_since = time.time()
        if _time_in(failed) > began:
            raise PreparationFailed("another process failed while preparing the data")
        if time.time() - quiet_since > QUIET_SECONDS:
            return None
        time.sleep(POLL_SECONDS)


def report_failure(names: Names) -> None:
    """Let those who wait for this entry know that it will not come."""
    with suppress(OSError):
        _beside(names, "failed").write_text(repr(time.time()), "utf-8")


def clear_failure(names: Names) -> None:
    """What an earlier process reported does not count any more."""
    with suppress(OSError):
        _beside(names, "failed").unlink(missing_ok=True)


class PreparationFailed(FinetuneError):
    """The process that this one waited for failed, and reports why itself."""


def _beside(names: Names, extension: str) -> Path:
    return cache_folder() / KIND / f"{names.published}.{extension}"


def _time_in(path: Path) -> float:
    try:
        return float(path.read_text("utf-8"))
    except (OSError, ValueError):
        return 0.0
