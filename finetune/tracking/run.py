"""The run folder: the paths of one run, its status, and the run that the same recipe would resume."""

from __future__ import annotations

import difflib
import functools
import os
import platform
import secrets
import sys
import threading
import time
from collections.abc import Mapping
from datetime import UTC, datetime
from importlib import metadata
from pathlib import Path
from typing import Any, Literal

import psutil

from finetune import __version__
from finetune.errors import UserError
from finetune.models.source import describe_contents
from finetune.recipe.containment import check_contained
from finetune.recipe.identity import stored_values, training_differences
from finetune.recipe.json_file import read_json
from finetune.recipe.quotas import available_cores
from finetune.recipe.recipe import Recipe
from finetune.recipe.secrets import mask
from finetune.recipe.yaml_dialect import dump
from finetune.tracking.atomic_files import disk_errors, plain, publish_json, publish_text
from finetune.tracking.run_shape import check_run

Status = Literal["running", "done", "stopped", "failed"]

_FOLDERS = ("checkpoints", "predictions", "logs", "tables")
_PACKAGES = ("torch", "transformers", "accelerate", "deepspeed", "datasets", "evaluate", "peft", "wandb", "numpy")


def newest_run_in(folder: Path) -> Path | None:
    """The newest run in a folder of runs, such as runs/ or runs/<recipe name>; None if it holds none."""
    below = sorted([*folder.glob("*/run.json"), *folder.glob("*/*/run.json")], key=lambda file: file.parent.name)
    return below[-1].parent if below else None


def nearest_folder(path: Path) -> Path | None:
    """The folder beside a path that does not exist whose name is like its own; None if there is none."""
    if path.exists() or not path.parent.is_dir():
        return None
    names = difflib.get_close_matches(path.name, [entry.name for entry in path.parent.iterdir() if entry.is_dir()], 1)
    return path.parent / names[0] if names else None


class Run:
    """One run folder. Rank 0 creates it and writes run.json; other ranks may open it to read it and to get its paths.

    run.json: id, name, task, created (UTC), status, process (that trains it now), sessions (one per start or
    resume: started, ended, start_step, step, status), machine, versions, facts (as the loop reported them),
    summary, artifacts (digest of the folder, without model/), plan, model_config (digests of
    plan.json's `training` and of artifacts/model/), wandb (id, folder, url), data (split: rows, digest of their
    content, and files), data_changes (what was not as before when it resumed with --data-changed, and at which step),
    removed_checkpoints (name, bytes) where the recipe keeps none or the best only.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self._lock = threading.RLock()  # the W&B mirror writes from its own thread

    recipe_file = property(lambda self: self.path / "recipe.yaml")
    plan_file = property(lambda self: self.path / "plan.json")
    metrics_file = property(lambda self: self.path / "metrics.jsonl")
    checkpoints = property(lambda self: self.path / "checkpoints")
    model = property(lambda self: self.path / "model")
    artifacts = property(lambda self: self.path / "artifacts")
    evaluations = property(lambda self: self.path / "evaluations")
    predictions = property(lambda self: self.path / "predictions")
    report_file = property(lambda self: self.path / "report.html")
    logs = property(lambda self: self.path / "logs")
    tables = property(lambda self: self.path / "tables")
    tensorboard = property(lambda self: self.path / "tensorboard")
    file = property(lambda self: self.path / "run.json")

    @classmethod
    def create(cls, recipe: Recipe, root: Path, *, path: Path | None = None) -> Run:
        """Make <root>/<recipe name>/<run id>/, or `path` itself, with recipe.yaml and run.json. Rank 0 only.

        Raises: FinetuneError if the folder cannot be written.
        """
        now = datetime.now(UTC)
        identity = f"{now:%Y%m%d-%H%M%S}-{secrets.token_hex(3)}"
        run = cls(path or root / recipe.name / identity)
        with disk_errors(run.path):
            run.path.mkdir(parents=True, exist_ok=path is not None)
            for folder in _FOLDERS:
                (run.path / folder).mkdir(exist_ok=True)
        run.write_recipe(recipe)
        publish_json(
            run.file,
            {
                "id": identity,
                "name": recipe.name,
                "task": recipe.task,
                "created": now.isoformat(timespec="seconds"),
                "status": "running",
                "process": _this_process(),
                "sessions": [],
                "machine": describe_machine(),
                "versions": describe_versions(),
                "facts": {},
                "summary": {},
                "wandb": {},
            },
        )
        return run

    @classmethod
    def open(cls, path: Path, *, own: bool = False) -> Run:
        """An existing run folder. own: it is trained here, so that its links are this user's.

        Raises: UserError if `path` is not one; if it is not `own`, for links that lead out of it (containment.py).
        """
        run = cls(path)
        if not run.file.is_file():
            meant = newest_run_in(path) or nearest_folder(path)
            holds = f"{describe_contents(path)} " if path.is_dir() else ""
            what = "not a run folder: it has no run.json" if holds else "a file, not a run folder"
            raise UserError(
                what if path.exists() else "no such run folder",
                where=str(path),
                remedy=f"Did you mean {meant}?"
                if meant
                else f"{holds}Give the folder of one run, such as runs/<recipe name>/<run id>.",
            )
        if not own:
            check_contained(path)
        run.read()
        return run

    @classmethod
    def newest_unfinished(cls, recipe: Recipe, root: Path) -> Run | None:
        """The newest run of the same recipe that is neither done nor being trained by a living process of this host.

        Same: all that names a training (recipe/identity.py), so `tracking`, `parallel` and `checkpoint` may differ. A run
        that is newer and done ends the search: starting the same recipe again then means a new run.
        """
        for path in sorted((root / recipe.name).glob("*/run.json"), reverse=True):
            run = cls(path.parent)
            try:
                found = run.read()
                if run.differences(recipe):
                    continue
            except UserError:
                continue  # incomplete or damaged: never resumed
            if found.get("status") == "done":
                return None
            if run.trainer in (None, os.getpid()):
                return run
        return None

    def differences(self, recipe: Recipe) -> list[str]:
        """Keys in which this run trains something else than `recipe`. Raises: UserError if recipe.yaml is damaged."""
        return training_differences(stored_values(self.recipe_file), recipe)

    def write_recipe(self, recipe: Recipe) -> None:
        """Rewrite recipe.yaml: a run may be resumed on other ranks or with another ZeRO stage. Rank 0 only."""
        publish_text(self.recipe_file, recipe_text(recipe))

    def read(self) -> dict[str, Any]:
        """run.json. Raises: UserError if it is missing or damaged."""
        try:
            return check_run(read_json(self.file))
        except (OSError, ValueError) as error:
            model = self.path / "model"
            rest = f" Its model can be used without it: {model}." if model.is_dir() else ""
            remedy = f"Bring the file back from a copy.{rest}"
            raise UserError(f"cannot read the run: {error}", where=str(self.file), remedy=remedy) from error

    def update(self, **fields: Any) -> None:
        """Set fields of run.json, atomically. Rank 0 only."""
        with self._lock:
            publish_json(self.file, {**self.read(), **plain(mask(fields))})

    @property
    def id(self) -> str:
        """Unique, whatever the folder is called; also the id of the W&B run."""
        return str(self.read().get("id") or self.path.name)

    @property
    def name(self) -> str:
        """The recipe's name."""
        return str(self.read().get("name") or self.path.parent.name)

    @property
    def status(self) -> Status:
        return self.read().get("status", "failed")

    @property
    def trainer(self) -> int | None:
        """Process id of the process that trains this run on this host; None if there is none, or on another host."""
        value = self.read()
        process = value.get("process") or {}
        if value.get("status") != "running" or process.get("host") != platform.node():
            return None
        try:
            alive = abs(psutil.Process(process["pid"]).create_time() - process["started"]) < 2
        except (psutil.Error, KeyError, TypeError):
            return None
        return process["pid"] if alive else None

    def begin_session(self, *, start_step: int, facts: Mapping[str, Any]) -> None:
        """Record that training starts (or resumes from `start_step`) in this process."""
        session = {"started": time.time(), "start_step": start_step, "status": "running"}
        with self._lock:
            sessions = [*self.read().get("sessions", []), session]
            self.update(
                status="running",
                process=_this_process(),
                sessions=sessions,
                facts=dict(facts),
                machine=describe_machine(),
                versions={**describe_versions(), **facts.get("versions", {})},
            )

    def end_session(self, *, status: str, summary: Mapping[str, Any], step: int | None = None) -> None:
        """Record how it ended: done, stopped or failed. step: the last optimizer step done, None if there was none."""
        with self._lock:
            sessions = self.read().get("sessions", [])
            if sessions:
                last = {} if step is None else {"step": step}
                sessions[-1].update(ended=time.time(), status=status, **last)
            self.update(status=status, sessions=sessions, summary=dict(summary), process=None)


def shown(recipe: Recipe) -> dict[str, Any]:
    """The recipe with every value explicit, in types of JSON, as it is shown: what looks like a secret is masked."""
    return mask(plain(recipe.model_dump(mode="json")))


def recipe_text(recipe: Recipe) -> str:
    """The text of a run's recipe.yaml: every value explicit and exact, so that the same recipe is loaded again."""
    return dump(plain(recipe.model_dump(mode="json")))


def describe_machine() -> dict[str, Any]:
    """Host, processor, memory, and GPUs if torch is already imported and sees any."""
    machine: dict[str, Any] = {
        "host": platform.node(),
        "system": f"{platform.system()} {platform.release()}",
        "processor": _processor(),
        "cores": available_cores(),
        "memory_bytes": psutil.virtual_memory().total,
        "gpus": [],
    }
    torch = sys.modules.get("torch")
    if torch is not None and torch.cuda.is_available():
        machine["gpus"] = [torch.cuda.get_device_name(index) for index in range(torch.cuda.device_count())]
    return machine


def describe_versions() -> dict[str, str]:
    """Versions of the packages in use, without importing them."""
    versions = {"finetune": __version__, "python": platform.python_version()}
    versions.update({name: version for name in _PACKAGES if (version := _version_of(name)) is not None})
    return versions


@functools.cache  # 2 ms a package
def _version_of(package: str) -> str | None:
    """None if it is not installed."""
    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:
        return None


def _processor() -> str:
    try:
        for line in Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines():
            if line.startswith("model name"):
                return line.split(":", 1)[1].strip()
    except OSError:
        return platform.processor() or platform.machine()
    return platform.processor() or platform.machine()


def _this_process() -> dict[str, Any]:
    return {"host": platform.node(), "pid": os.getpid(), "started": psutil.Process().create_time()}
