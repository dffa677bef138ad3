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
import json
import math
import re
import shutil
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from torch import nn

from finetune.distributed.engines.engine import Engine
from finetune.distributed.session import Session
from finetune.distributed.sharded_state import Shard
from finetune.errors import UserError
from finetune.recipe.json_file import read_json

MANIFEST = "manifest.json"
INCOMPLETE = ".incomplete"
DAMAGED = ".damaged"
FORMAT = 1
HASHED_AT_A_TIME = 4
LABELS = ("latest", "best")
NAME = re.compile(r"step-[0-9]{1,18}")  # of a checkpoint's folder
FILE_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]*")  # of a file in it
MAX_NAME = 4096  # characters of a label that are read


@dataclass(frozen=True)
class Manifest:
    """step: optimizer steps done. loop: the training loop's own state. files: name -> (bytes, sha256).

    training: what names the training (recipe/identity.py). recipe_digest: the name in the first design; no longer compared.
    """

    step: int
    loop: dict[str, Any]
    scalars: dict[str, Any]
    files: dict[str, tuple[int, str]]
    shapes: dict[str, list[int]] = field(default_factory=dict)
    training: dict[str, Any] = field(default_factory=dict)
    recipe_digest: str = ""

    def to_json(self) -> str:
        tree = {"format": FORMAT, **self.__dict__}
        return json.dumps({**tree, "digest": _digest_of(tree)}, indent=1, sort_keys=True)

    @classmethod
    def read(cls, path: Path) -> Manifest:
        """Raises: ValueError, KeyError, TypeError for anything but a whole manifest of this format."""
        tree = read_json(path)
        digest = tree.pop("digest")
        if digest != _digest_of(tree):
            raise ValueError("the manifest has changed since it was written (digest differs)")
        if tree.pop("format") != FORMAT:
            raise ValueError(f"not a manifest of format {FORMAT}")
        tree["files"] = {_file_name(name): (int(size), str(digest)) for name, (size, digest) in tree["files"].items()}
        return cls(**tree)


@dataclass(frozen=True)
class Checkpoint:
    """A published checkpoint on disk."""

    path: Path
    manifest: Manifest

    @property
    def step(self) -> int:
        return self.manifest.step


def _file_name(name: str) -> str:
    """Raises: ValueError for one that could leave the folder."""
    if not FILE_NAME.fullmatch(name):
        raise ValueError(f"the manifest names a file that is not of this folder: {name!r}")
    return name


def checkpoint_name(step: int) -> str:
    return f"step-{step:08d}"


def find_checkpoints(folder: Path) -> list[Path]:
    """Published checkpoints, newest first; `.incomplete` and `.damaged` ones are not among them."""
    if not folder.is_dir():
        return []
    found = [path for path in folder.iterdir() if path.is_dir() and path.name.startswith("step-") and path.suffix == ""]
    return sorted(found, reverse=True)


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
    """The newest whole one; damaged ones are renamed and reported. All ranks call it."""
    names = session.broadcast([path.name for path in find_checkpoints(folder)] if session.is_main else None)
    for name in names:
        checkpoint, problem = check_together(session, folder / name)
        if checkpoint is not None:
            return checkpoint
        set_aside(session, folder / name, problem, notify)
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


class CheckpointTensors:
    """Ranges of stored tensors, read from whichever files hold them; only the ranges asked for are read."""

    def __init__(self, checkpoint: Checkpoint) -> None:
        self._checkpoint = checkpoint
        self._files: list[Any] = []
        self._shards: dict[str, list[tuple[int, int, Any, str]]] = {}
        self._columns: dict[str, dict[tuple[int, int], list[tuple[int, int, Any, str]]]] = {}

    def __enter__(self) -> CheckpointTensors:
        for name in self._checkpoint.manifest.files:
            if not name.endswith(".safetensors"):
                continue
            try:
                opened = safe_open(self._checkpoint.path / name, framework="pt", device="cpu").__enter__()
            except (OSError, SafetensorError) as error:
                raise UserError(
                    f"cannot read the checkpoint: {error}", where=str(self._checkpoint.path / name)
                ) from None
            self._files.append(opened)
            for stored in opened.keys():  # noqa: SIM118 (not a dict)
                key, columns, start = parse_name(stored)
                found = self._columns.setdefault(key, {}).setdefault(columns, []) if columns else self._of(key)
                numel = opened.get_slice(stored).get_shape()[0]
                found.append((start, start + numel, opened, stored))
        for found in self._shards.values():
            found.sort(key=lambda shard: shard[0])
        return self

    def __exit__(self, *exception: object) -> None:
        for opened in self._files:
            opened.__exit__(None, None, None)

    def _of(self, key: str) -> list[tuple[int, int, Any, str]]:
        return self._shards.setdefault(key, [])

    @property
    def keys(self) -> set[str]:
        return set(self._shards) | set(self._columns)

    def read(self, key: str, start: int, numel: int) -> torch.Tensor:
        """Flat range [start, start + numel) of `key`. Raises: UserError if it is not stored."""
        if key in self._columns:
            return self._read_columns(key, start, numel)
        end, at, parts = start + numel, start, []
        for low, high, opened, stored in self._shards.get(key, ()):
            if low <= at < high and low < end:  # behind a gap, it would be read from its end
                parts.append(opened.get_slice(stored)[at - low : min(end, high) - low])
                at = min(end, high)
        if at != end:
            raise self._lacking(key, start, end)
        return parts[0] if len(parts) == 1 else torch.cat(parts) if parts else torch.empty(0)

    def _read_columns(self, key: str, start: int, numel: int) -> torch.Tensor:
        """The same, of a matrix that was stored in groups of columns: whole rows are assembled, then cut."""
        of = self._checkpoint.manifest.shapes[key][1]
        top, bottom = start // of, -(-(start + numel) // of)
        rows, missing = torch.empty(bottom - top, of), (bottom - top) * of
        for (first, last), shards in self._columns[key].items():
            low, width = top * (last - first), last - first
            group = torch.empty((bottom - top) * width)
            for begin, end, opened, stored in shards:
                begins, ends = max(begin, low), min(end, low + group.numel())
                if begins < ends:
                    values = opened.get_slice(stored)[begins - begin : ends - begin]
                    group[begins - low : ends - low] = values
                    missing -= ends - begins
            rows[:, first:last] = group.view(-1, width)
        if missing:
            raise self._lacking(key, start, start + numel)
        return rows.view(-1)[start - top * of :][:numel]

    def _lacking(self, key: str, start: int, end: int) -> UserError:
        return UserError(
            f"the checkpoint does not hold {key}[{start}:{end}]",
            where=str(self._checkpoint.path),
            remedy="The model or optimizer of the recipe has changed since it was written: start with --resume never.",
        )

    def whole(self, key: str) -> torch.Tensor:
        """The tensor `key` in its own shape."""
        shape = self._checkpoint.manifest.shapes[key]
        return self.read(key, 0, math.prod(shape)).reshape(shape)


def shard_name(shard: Shard) -> str:
    """The name of a shard in its file: "w@64", or "w[16:32]@0" for a group of columns."""
    columns = f"[{shard.columns[0]}:{shard.columns[1]}]" if shard.columns else ""
    return f"{shard.key}{columns}@{shard.start}"


def parse_name(stored: str) -> tuple[str, tuple[int, int] | None, int]:
    """Key, columns and start: "w[16:32]@0" -> ("w", (16, 32), 0)."""
    key, _, start = stored.rpartition("@")
    if key.endswith("]"):
        key, _, columns = key[:-1].rpartition("[")
        first, last = columns.split(":")
        return key, (int(first), int(last)), int(start)
    return key, None, int(start)


def _digest_of(tree: dict[str, Any]) -> str:
    return hashlib.sha256(json.dumps(tree, sort_keys=True).encode()).hexdigest()


def _sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
