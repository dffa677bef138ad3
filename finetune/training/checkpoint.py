"""Checkpoints: a directory that is whole or absent, read by any number of ranks under any ZeRO stage.

    checkpoints/step-00000120/
        state-00000-of-00002.safetensors   what rank 0 held: "<key>@<start>" -> flat fp32 values
        state-00001-of-00002.safetensors
        manifest.json                      step, recipe digest, the loop's state, sizes and SHA-256 of the files

Written beside (`.incomplete`), synced, the manifest last, then renamed. Only safetensors and JSON: loading runs no code.
"""

from __future__ import annotations

import errno
import hashlib
import json
import os
import shutil
from collections.abc import Iterable
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file

from finetune.distributed import fragments
from finetune.distributed.engine import Engine
from finetune.errors import TrainingFailed, UserError
from finetune.units import format_bytes

MANIFEST = "manifest.json"
INCOMPLETE = ".incomplete"
DAMAGED = ".damaged"
FORMAT = 1


@dataclass(frozen=True)
class Manifest:
    """step: optimiser steps done. loop: the training loop's own state. files: name -> (bytes, sha256)."""

    step: int
    recipe_digest: str
    loop: dict[str, Any]
    scalars: dict[str, Any]
    files: dict[str, tuple[int, str]]
    shapes: dict[str, list[int]] = field(default_factory=dict)

    def write(self, path: Path) -> None:
        tree = {"format": FORMAT, **self.__dict__}
        _write_synced(path, json.dumps(tree, indent=1, sort_keys=True).encode())

    @classmethod
    def read(cls, path: Path) -> Manifest:
        """Raises: ValueError for anything but a whole manifest of this format."""
        tree = json.loads(path.read_text(encoding="utf-8"))
        if tree.pop("format", None) != FORMAT:
            raise ValueError(f"{path} is not a manifest of format {FORMAT}")
        tree["files"] = {name: (int(size), str(digest)) for name, (size, digest) in tree["files"].items()}
        return cls(**tree)


@dataclass(frozen=True)
class Checkpoint:
    """A published checkpoint on disk."""

    path: Path
    manifest: Manifest

    @property
    def step(self) -> int:
        return self.manifest.step


def checkpoint_name(step: int) -> str:
    return f"step-{step:08d}"


def save_checkpoint(engine: Engine, folder: Path, *, step: int, recipe_digest: str, loop: dict[str, Any]) -> Checkpoint:
    """Write the state of all ranks under folder/step-XXXXXXXX. All ranks call it; folder is on a shared disk.

    Raises: TrainingFailed on every rank if any rank could not write; what was there before stays as it was.
    """
    session = engine.session
    final = folder / checkpoint_name(step)
    beside = folder / (final.name + INCOMPLETE)
    problem = _attempt(lambda: _fresh_folder(beside)) if session.is_main else None
    _raise_everywhere(session, problem)
    written: dict[str, tuple[int, str]] = {}
    shapes: dict[str, list[int]] = {}

    def write_own() -> None:
        tensors, own_shapes = _snapshot(fragments.pieces(engine))
        shapes.update(own_shapes)
        name = f"state-{session.rank:05d}-of-{session.world_size:05d}.safetensors"
        written[name] = _write_tensors(beside / name, tensors)

    problem = _attempt(write_own)
    told = session.all_gather((problem, written, shapes))
    problems = [trouble for trouble, _, _ in told if trouble]
    if not problems and session.is_main:
        manifest = Manifest(
            step=step,
            recipe_digest=recipe_digest,
            loop=loop,
            scalars=fragments.scalars(engine),
            files={name: entry for _, files, _ in told for name, entry in files.items()},
            shapes={key: shape for _, _, some in told for key, shape in some.items()},
        )
        problem = _attempt(lambda: _publish(manifest, beside, final))
    if problems:
        problem = problems[0]
    if problem and session.is_main:
        shutil.rmtree(beside, ignore_errors=True)
    _raise_everywhere(session, problem)
    return Checkpoint(final, Manifest.read(final / MANIFEST))


def load_checkpoint(engine: Engine, checkpoint: Checkpoint) -> None:
    """Restore weights, optimiser state and buffers. All ranks call it; any number of ranks, any ZeRO stage."""
    with StoredState(checkpoint) as stored:
        fragments.restore(engine, stored.read, checkpoint.manifest.scalars)


class StoredState:
    """Ranges of stored tensors, read from whichever files hold them; only the ranges asked for are read."""

    def __init__(self, checkpoint: Checkpoint) -> None:
        self._checkpoint = checkpoint
        self._files: list[Any] = []
        self._pieces: dict[str, list[tuple[int, int, Any, str]]] = {}

    def __enter__(self) -> StoredState:
        for name in self._checkpoint.manifest.files:
            if not name.endswith(".safetensors"):
                continue
            opened = safe_open(self._checkpoint.path / name, framework="pt", device="cpu").__enter__()
            self._files.append(opened)
            for stored in opened.keys():  # noqa: SIM118 (not a dict)
                key, _, start = stored.rpartition("@")
                numel = opened.get_slice(stored).get_shape()[0]
                self._pieces.setdefault(key, []).append((int(start), int(start) + numel, opened, stored))
        for found in self._pieces.values():
            found.sort(key=lambda piece: piece[0])
        return self

    def __exit__(self, *exception: object) -> None:
        for opened in self._files:
            opened.__exit__(None, None, None)

    @property
    def keys(self) -> set[str]:
        return set(self._pieces)

    def read(self, key: str, start: int, numel: int) -> torch.Tensor:
        """Flat range [start, start + numel) of `key`. Raises: UserError if it is not stored."""
        end, at, parts = start + numel, start, []
        for low, high, opened, stored in self._pieces.get(key, ()):
            if high > at and low < end:
                parts.append(opened.get_slice(stored)[at - low : min(end, high) - low])
                at = min(end, high)
        if at != end:
            raise UserError(
                f"the checkpoint does not hold {key}[{start}:{end}]",
                where=str(self._checkpoint.path),
                remedy="the model or optimiser of the recipe has changed since: start with --resume never",
            )
        return parts[0] if len(parts) == 1 else torch.cat(parts)

    def whole(self, key: str) -> torch.Tensor:
        """The tensor `key` in its own shape."""
        shape = self._checkpoint.manifest.shapes[key]
        numel = 1
        for size in shape:
            numel *= size
        return self.read(key, 0, numel).reshape(shape)


def find_checkpoints(folder: Path) -> list[Path]:
    """Published checkpoints, newest first; `.incomplete` and `.damaged` ones are not among them."""
    if not folder.is_dir():
        return []
    found = [path for path in folder.iterdir() if path.is_dir() and path.name.startswith("step-") and path.suffix == ""]
    return sorted(found, reverse=True)


def open_checkpoint(path: Path) -> Checkpoint:
    """Check sizes and digests of every file. Raises: UserError saying what is wrong."""
    try:
        manifest = Manifest.read(path / MANIFEST)
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise UserError(f"not a whole checkpoint: {error}", where=str(path)) from None
    for name, (size, digest) in manifest.files.items():
        file = path / name
        actual = file.stat().st_size if file.is_file() else -1
        if actual != size:
            told = "missing" if actual < 0 else f"{actual} bytes instead of {size}"
            raise UserError(f"a file of the checkpoint is {told}", where=str(file))
        if _sha256(file) != digest:
            raise UserError(
                "a file of the checkpoint has changed since it was written (digest differs)", where=str(file)
            )
    return Checkpoint(path, manifest)


def newest_checkpoint(folder: Path, tell: Any) -> Checkpoint | None:
    """The newest whole one; damaged ones are renamed aside and told. Rank 0 only."""
    for path in find_checkpoints(folder):
        try:
            return open_checkpoint(path)
        except UserError as error:
            aside = path.with_name(path.name + DAMAGED)
            shutil.rmtree(aside, ignore_errors=True)
            path.rename(aside)
            tell(f"passed over a damaged checkpoint, kept as {aside.name}: {error}")
    return None


def name_checkpoint(folder: Path, label: str, checkpoint: Checkpoint) -> None:
    """Make `latest` or `best` name a checkpoint: a one-line file, replaced in one step."""
    beside = folder / f".{label}"
    _write_synced(beside, checkpoint.path.name.encode())
    beside.replace(folder / label)
    _sync_folder(folder)


def named_checkpoint(folder: Path, label: str) -> Path | None:
    """The folder that `latest` or `best` names, or that is called so; None if there is none."""
    file = folder / label
    if file.is_file():
        file = folder / file.read_text(encoding="utf-8").strip()
    return file if file.is_dir() else None


def prune_checkpoints(folder: Path, keep: int) -> None:
    """Remove all but the newest `keep` and the ones that `latest` and `best` name. Rank 0 only, after publishing."""
    kept = {named_checkpoint(folder, "latest"), named_checkpoint(folder, "best")}
    for path in find_checkpoints(folder)[keep:]:
        if path not in kept:
            doomed = path.with_name(path.name + INCOMPLETE)
            shutil.rmtree(doomed, ignore_errors=True)
            path.rename(doomed)  # so that a kill in the middle leaves nothing that looks whole
            shutil.rmtree(doomed)
    for leftover in folder.glob(f"*{INCOMPLETE}"):
        shutil.rmtree(leftover, ignore_errors=True)


def checkpoint_bytes(engine: Engine) -> int:
    """Bytes of one checkpoint, over all ranks, before it is written. All ranks call it."""
    state_tensors = 2 if "betas" in engine.inner_optimizer.param_groups[0] else 1
    own = sum(piece.values.numel() * 4 for piece in fragments.pieces(engine) if "." in piece.key)
    weights = sum(
        int(getattr(parameter, "ds_numel", parameter.numel()))
        for _, parameter in fragments.trainable_parameters(engine.module)
    )
    return int(max(engine.session.sum(float(own))[0], weights * 4 * (1 + state_tensors)))


def check_space(engine: Engine, folder: Path, *, copies: int) -> None:
    """Refuse to start a training whose checkpoints cannot fit. All ranks call it.

    Raises: TrainingFailed naming the path, the bytes needed and the bytes free.
    """
    needed = checkpoint_bytes(engine) * copies
    free = shutil.disk_usage(folder).free if engine.session.is_main else 0
    free = engine.session.broadcast(free)
    if free < needed:
        raise TrainingFailed(
            f"{copies} checkpoints need {format_bytes(needed)}, {format_bytes(free)} are free",
            where=str(folder),
            remedy="free some space, choose another --run-dir, or lower checkpoint.keep",
        )


def _snapshot(pieces: Iterable[fragments.Piece]) -> tuple[dict[str, torch.Tensor], dict[str, list[int]]]:
    tensors, shapes = {}, {}
    for piece in pieces:
        tensors[f"{piece.key}@{piece.start}"] = piece.values.detach().to("cpu", copy=True).contiguous()
        shapes[piece.key] = list(piece.shape)
    return tensors, shapes


def _write_tensors(path: Path, tensors: dict[str, torch.Tensor]) -> tuple[int, str]:
    try:
        save_file(tensors, path)
        with path.open("rb") as file:
            os.fsync(file.fileno())
    except (OSError, SafetensorError) as error:
        needed = sum(tensor.numel() * tensor.element_size() for tensor in tensors.values())
        raise OSError(
            errno.ENOSPC if "space" in str(error).lower() else errno.EIO, f"{error}", str(path), needed
        ) from None
    return path.stat().st_size, _sha256(path)


def _publish(manifest: Manifest, beside: Path, final: Path) -> None:
    manifest.write(beside / MANIFEST)
    _sync_folder(beside)
    if final.exists():  # the same step saved again, by a run resumed before it
        shutil.rmtree(final)
    beside.rename(final)
    _sync_folder(final.parent)


def _attempt(work: Any) -> str | None:
    """None, or what went wrong in words; a full disk is not a bug of ours."""
    try:
        work()
    except OSError as error:
        path = error.filename or ""
        needed = f" ({format_bytes(error.filename2)} needed)" if isinstance(error.filename2, int) else ""
        if error.errno == errno.ENOSPC:
            free = shutil.disk_usage(Path(path).parent).free if path else 0
            return f"the disk is full: {path}{needed}, {format_bytes(free)} free"
        return f"cannot write {path}: {error.strerror}{needed}"
    return None


def _raise_everywhere(session: Any, problem: str | None) -> None:
    problems = [told for told in session.all_gather(problem) if told]
    if problems:
        raise TrainingFailed(
            f"the checkpoint could not be saved: {problems[0]}",
            remedy="the checkpoint before it is untouched; free some space and run the same command to go on from it",
        )


def _fresh_folder(folder: Path) -> None:
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)


def _write_synced(path: Path, content: bytes) -> None:
    with path.open("wb") as file:
        file.write(content)
        file.flush()
        os.fsync(file.fileno())


def _sync_folder(folder: Path) -> None:
    with suppress(PermissionError):
        handle = os.open(folder, os.O_RDONLY)
        try:
            os.fsync(handle)
        finally:
            os.close(handle)


def _sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
