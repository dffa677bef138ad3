"""What the checkpoints of a run take on disk, and which stay once it is done: the recipe's checkpoint.keep_after_training."""

from __future__ import annotations

import re
import shutil
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

from finetune.recipe.evaluation import KeepAfterTraining
from finetune.tracking.run import Run
from finetune.units import format_bytes, format_number

KEY = "checkpoint.keep_after_training"
LABELS = ("latest", "best")
_NAME = re.compile(
    r"step-[0-9]+(\.[a-z.]+)?"
)  # of a checkpoint; of one that is damaged, abandoned or not written in full


@dataclass(frozen=True)
class StoredCheckpoint:
    """A folder below checkpoints/, damaged and abandoned ones too. labels: "latest", "best", both or none."""

    path: Path
    num_bytes: int
    labels: tuple[str, ...] = ()

    @property
    def complete(self) -> bool:
        return self.path.suffix == "" and (self.path / "manifest.json").is_file()


def stored_checkpoints(run: Run) -> list[StoredCheckpoint]:
    """By name. Folders that a user put beside them, such as step-00000120-keep, are not among them."""
    names = {label: labeled_name(run.checkpoints / label) for label in LABELS}
    return [
        StoredCheckpoint(
            path,
            sum(file.stat().st_size for file in path.rglob("*") if file.is_file()),
            tuple(label for label, name in names.items() if name == path.name),
        )
        for path in sorted(run.checkpoints.glob("step-*"))
        if path.is_dir() and _NAME.fullmatch(path.name)
    ]


def labeled_name(label: Path) -> str:
    """The name that checkpoints/latest or checkpoints/best holds; "" if there is no such label."""
    if label.is_symlink():
        return label.readlink().name
    return label.read_text(encoding="utf-8", errors="replace").strip() if label.is_file() else ""


def apply_retention(run: Run, keep: KeepAfterTraining) -> str:
    """Remove the checkpoints of a run that is done, as the recipe says; a line for the user. Rank 0 only.

    keep: "all"; "best": the one whose weights are in model/ (the latest if nothing was validated); or "none". What was
    removed is noted in run.json, for those who ask for it later.
    """
    stored = stored_checkpoints(run)
    if keep == "all":
        return _advice(run, stored)
    label_kept = "best" if any("best" in one.labels for one in stored) else "latest"
    removed = [one for one in stored if keep == "none" or label_kept not in one.labels]
    removed = [one for one in removed if _remove(one.path)]
    for label in LABELS:
        if not (run.checkpoints / labeled_name(run.checkpoints / label)).is_dir() or keep == "none":
            (run.checkpoints / label).unlink(missing_ok=True)
    if not removed:
        return ""
    run.update(removed_checkpoints=[{"name": one.path.name, "bytes": one.num_bytes} for one in removed])
    return f"removed {_describe(removed)} as {KEY}: {keep} says"


def removal_remedy(run: Run) -> str:
    """What to do about a checkpoint that was removed on purpose; "" if none was."""
    removed = [one["name"] for one in run.read().get("removed_checkpoints", [])]
    if not removed:
        return ""
    left = [one.path.name for one in stored_checkpoints(run) if one.complete]
    return (
        f"{', '.join(removed)}: removed when the training was done ({KEY}). {run.model} has the weights of the best "
        f"evaluation" + (f"; {', '.join(left)} is still there." if left else "; to get checkpoints, train again.")
    )


def _remove(path: Path) -> bool:
    """Whether it could be removed. Renamed first, so that a kill leaves nothing that looks like a checkpoint."""
    doomed = path.with_name(f"{path.name}.incomplete")
    with suppress(OSError):
        path.rename(doomed)
        shutil.rmtree(doomed)
    return not path.exists()


def _advice(run: Run, stored: Sequence[StoredCheckpoint]) -> str:
    if not stored:
        return ""
    return f"{_describe(stored)} in {run.checkpoints}: not needed by model/ ({KEY}: best or none removes them)"


def _describe(stored: Sequence[StoredCheckpoint]) -> str:
    """2 checkpoints (406.0 MiB)."""
    size = format_bytes(sum(one.num_bytes for one in stored))
    return f"{format_number(len(stored), 'checkpoint')} ({size})"
