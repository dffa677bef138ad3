"""sweep.json: what a sweep is, and what became of its trials. Written by the sweeping process alone, atomically."""

from __future__ import annotations

import secrets
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from finetune.app.runs import LOCK
from finetune.app.sweeping.space import Values
from finetune.app.sweeping.trials import Trial
from finetune.errors import UserError
from finetune.recipe.identity import list_differences, training_differences, training_values
from finetune.recipe.json_file import read_json
from finetune.recipe.recipe import Recipe
from finetune.tracking.atomic_files import publish_json

FILE = "sweep.json"


@dataclass(frozen=True)
class Definition:
    """What names a sweep: another definition is another sweep. recipe: of its first trial. space: key -> what --grid says.

    draws, seed: of --random; None and 0 for a grid.
    """

    recipe: Recipe
    space: Values
    draws: int | None
    seed: int

    def to_dict(self) -> dict[str, Any]:
        kept = {"space": dict(self.space), "random": self.draws, "random_seed": self.seed}
        return {**kept, "first_trial": training_values(self.recipe)}

    def differences(self, stored: Mapping[str, Any]) -> list[str]:
        """["training.learning_rate: 1e-5,3e-5 in the sweep, 1e-5 now", ...]; [] for the same sweep."""
        now, then = self.to_dict(), stored
        found = []
        spaces = [dict(one.get("space") or {}) for one in (then, now)]
        for key in dict.fromkeys([*spaces[0], *spaces[1]]):
            one, other = (space.get(key, "(not varied)") for space in spaces)
            if one != other:
                found.append(f"{key}: {one} in the sweep, {other} now")
        for key, option in (("random", "--random"), ("random_seed", "--random-seed")):
            if then.get(key) != now[key]:
                found.append(f"{option}: {then.get(key)} in the sweep, {now[key]} now")
        recipe = [] if found else training_differences(then.get("first_trial") or {}, self.recipe)
        return found or [line.replace(" in the run, ", " in the sweep, ") for line in recipe]


@dataclass
class State:
    """folder: of the sweep, with the trials' run folders. failures: name of a trial -> why it failed."""

    folder: Path
    recipe: str
    definition: Mapping[str, Any]
    trials: list[Trial]
    created: str
    failures: dict[str, str] = field(default_factory=dict)

    def path(self, trial: Trial) -> Path:
        """Its run folder."""
        return self.folder / trial.name

    def log(self, trial: Trial) -> Path:
        """What its processes print."""
        return self.folder / "logs" / f"{trial.name}.log"

    def publish(self, **figures: Any) -> None:
        """Write sweep.json. figures: what the file also says, such as the status, for other programs."""
        trials = [{"name": trial.name, "values": dict(trial.values)} for trial in self.trials]
        publish_json(
            self.folder / FILE,
            {
                "recipe": self.recipe,
                "created": self.created,
                "definition": self.definition,
                "trials": trials,
                "failures": self.failures,
                **figures,
            },
        )


def read_state(folder: Path) -> State:
    """Raises: UserError if the folder has no readable sweep.json."""
    try:
        value = read_json(folder / FILE)
        trials = [Trial(str(one["name"]), dict(one["values"])) for one in value["trials"]]
        failures = {str(name): str(reason) for name, reason in value["failures"].items()}
        return State(folder, value["recipe"], value["definition"], trials, value["created"], failures)
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        remedy = f"Bring the file back from a copy. Its trials are runs of their own: finetune runs {folder}"
        raise UserError(f"cannot read the sweep: {error}", where=str(folder / FILE), remedy=remedy) from None


def open_state(
    definition: Definition, trials: Sequence[Trial], recipe: str, root: Path, folder: Path | None
) -> tuple[State, bool]:
    """(the sweep to go on with, or a new one; whether it is new). Writes nothing.

    root: holds the sweeps of a recipe; the newest of the same definition goes on. folder: this one instead.
    Raises: UserError, with what differs, if `folder` holds another sweep or something else.
    """
    if folder is not None and (folder / FILE).exists():
        state = read_state(folder)
        if differences := definition.differences(state.definition):
            raise UserError(
                f"the folder holds another sweep:{list_differences(differences)}",
                where=str(folder),
                remedy="Give another --sweep-dir to start this one.",
            )
        return state, False
    if folder is not None and folder.is_dir() and any(item.name != LOCK for item in folder.iterdir()):
        raise UserError("the folder is not empty, and holds no sweep", where=str(folder), remedy="Give a new folder.")
    if folder is None:
        for state in _sweeps(root):
            if not definition.differences(state.definition):
                return state, False
    now = datetime.now(UTC)
    folder = folder or root / f"{now:%Y%m%d-%H%M%S}-{secrets.token_hex(2)}"
    return State(folder, recipe, definition.to_dict(), list(trials), now.isoformat(timespec="seconds")), True


def _sweeps(root: Path) -> Iterator[State]:
    """The newest first, without damaged ones."""
    for file in sorted(root.glob(f"*/{FILE}"), reverse=True):
        try:
            yield read_state(file.parent)
        except UserError:
            continue
