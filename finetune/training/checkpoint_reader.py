"""Checkpoints on disk: finding, checking and reading them. A checkpoint is a directory that is whole or absent.

    checkpoints/step-00000120/
        state-00000-of-00002.safetensors   what rank 0 held: "<key>@<start>" -> flat values; "<key>[a:b]@<start>" of
                                           columns a to b alone, where tensor parallelism slices a matrix so
        state-00001-of-00002.safetensors   a large one in parts: state-00001-of-00002.part-000-of-003.safetensors
        manifest.json                      step, what is trained, the loop's state, sizes and SHA-256 of the files
    checkpoints/latest, checkpoints/best   one line each: the name of a checkpoint

Any number of ranks reads it, under any engine. Only safetensors and JSON: loading runs no code.
"""

from __future__ import annotations

import hashlib
import shutil
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import torch
from torch import nn

from finetune.distributed.engines.engine import Engine
from finetune.distributed.session import Session
from finetune.errors import UserError
from finetune.training.checkpoint_manifest import MANIFEST, NAME, Checkpoint, Manifest, checkpoint_name, step_of
from finetune.training.checkpoint_tensors import CheckpointTensors

INCOMPLETE = ".incomplete"
DAMAGED = ".damaged"
HASHED_AT_A_TIME = 4
LABELS = ("latest", "best")
MAX_NAME = 4096  # characters of a label that are read


def find_checkpoints(folder: Path) -> list[Path]:
    """Published checkpoints, newest first. Folders of other names are not among them: `.incomplete` and `.damaged` ones, and
    copies that a user made.
    """
    if not folder.is_dir():
        return []
    steps = {path: step for path in folder.iterdir() if (step := step_of(path.name)) is not None and path.is_dir()}
    return sorted(steps, key=steps.__getitem__, reverse=True)


def named_checkpoint(folder: Path, label: str) -> Path | None:
    """The folder that the file `latest` or `best` names, or that has this name itself; None if there is none.

    Raises: UserError if the file names something else than a checkpoint beside it.
    """
    name = label
    if label in LABELS and (file := folder / label).is_file():
        with file.open(encoding="utf-8", errors="replace") as text:
            name = text.read(MAX_NAME).strip()
        if not NAME.fullmatch(name):
            raise UserError(
                f"checkpoints/{label} does not name a checkpoint: {name!r}",
                where=str(file),
                remedy=f"It holds one name, such as {checkpoint_name(120)}; or name a checkpoint: --checkpoint step-...",
            )
    if name not in LABELS and not NAME.fullmatch(name):
        return None
    return folder / name if (folder / name).is_dir() else None


def read_checkpoint(path: Path) -> Checkpoint:
    """The manifest and the files' sizes, not their digests. Raises: UserError saying what is wrong."""
    try:
        manifest = Manifest.read(path / MANIFEST)
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise UserError(f"not a whole checkpoint: {error}", where=str(path)) from None
    for name, (size, _) in manifest.files.items():
        file = path / name
        actual = file.stat().st_size if file.is_file() else -1
        if actual != size:
            problem = "missing" if actual < 0 else f"{actual} bytes instead of {size}"
            raise UserError(f"a file of the checkpoint is {problem}", where=str(file))
    return Checkpoint(path, manifest)


def open_checkpoint(path: Path, *, share: tuple[int, int] = (0, 1)) -> Checkpoint:
    """Check sizes, and the digests of every file, or of one rank's share (rank, world size) of them.

    Raises: UserError saying what is wrong.
    """
    checkpoint = read_checkpoint(path)
    files = sorted(checkpoint.manifest.files.items())[share[0] :: share[1]]
    with ThreadPoolExecutor(HASHED_AT_A_TIME, "checkpoint-digest") as pool:
        list(pool.map(lambda one: _check_digest(path / one[0], one[1][1]), files))
    return checkpoint


def _check_digest(path: Path, digest: str) -> None:
    try:
        actual = _sha256(path)
    except OSError as error:
        raise UserError(f"a file of the checkpoint cannot be read: {error.strerror}", where=str(path)) from None
    if actual != digest:
        raise UserError("a file of the checkpoint has changed since it was written (digest differs)", where=path.name)


def check_together(session: Session, path: Path) -> tuple[Checkpoint | None, str]:
    """`open_checkpoint` with the digests divided over the ranks: the checkpoint, or what is wrong. All ranks call it."""
    checkpoint, problem = None, ""
    try:
        checkpoint = open_checkpoint(path, share=(session.rank, session.world_size))
    except UserError as error:
        problem = str(error)
    problems = [one for one in session.all_gather(problem) if one]
    return (None, problems[0]) if problems else (checkpoint, "")


def newest_checkpoint(session: Session, folder: Path, notify: Callable[[str], None]) -> Checkpoint | None:
    """The newest whole one; damaged ones are renamed and reported, and that none is left. All ranks call it."""
    names = session.broadcast([path.name for path in find_checkpoints(folder)] if session.is_main else None)
    for name in names:
        checkpoint, problem = check_together(session, folder / name)
        if checkpoint is not None:
            return checkpoint
        set_aside(session, folder / name, problem, notify)
    if names and session.is_main:
        notify("no checkpoint is whole: the training begins again, at its first step")
    return None


def set_aside(session: Session, path: Path, problem: str, notify: Callable[[str], None]) -> None:
    """Rename a damaged checkpoint so that it is never taken again, and report it. All ranks call it."""
    if session.is_main:
        aside = path.with_name(path.name + DAMAGED)
        shutil.rmtree(aside, ignore_errors=True)
        path.rename(aside)
        notify(f"skipping a damaged checkpoint, kept as {aside.name}: {problem}")
    session.wait()


def load_checkpoint(engine: Engine, checkpoint: Checkpoint) -> None:
    """Restore weights, optimizer state and buffers. All ranks call it; any number of ranks, any engine."""
    with CheckpointTensors(checkpoint) as stored:
        engine.load_shards(stored.read, checkpoint.manifest.scalars)


def put_weights(model: nn.Module, checkpoint: Checkpoint) -> None:
    """A checkpoint's weights and buffers into a model of one process.

    Raises: UserError if it lacks a trained weight, or one has another shape.
    """
    with CheckpointTensors(checkpoint) as stored, torch.no_grad():
        trained = {name for name, weight in model.named_parameters() if weight.requires_grad}
        if missing := sorted(trained - stored.keys):
            raise UserError(
                f"the checkpoint lacks {len(missing)} of the model's weights, such as {missing[0]}",
                where=str(checkpoint.path),
                remedy="The model or adapter of recipe.yaml has changed since it was written.",
            )
        tensors = {**dict(model.named_parameters()), **dict(model.named_buffers())}
        for name in stored.keys & tensors.keys():
            weight = stored.whole(name)
            if weight.shape != tensors[name].shape:
                raise UserError(
                    f"the checkpoint has {name} in the shape {tuple(weight.shape)}, the model of recipe.yaml in "
                    f"{tuple(tensors[name].shape)}",
                    where=str(checkpoint.path),
                    remedy="The model or adapter of recipe.yaml has changed since it was written.",
                )
            tensors[name].copy_(weight)


def _sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
