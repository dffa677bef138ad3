"""How a checkpoint gets to disk: files written beside and synced, the manifest last, renamed, older ones removed.

A kill after any of these operations leaves the checkpoint before it or the new one, whole; tests try all of them. In a hurry,
where a process is soon to be killed, files are renamed before they are synced: a kill costs nothing then, either. If the
machine itself fails before they are synced, digests tell, and the older checkpoints are there: they are removed last.
"""

from __future__ import annotations

import errno
import hashlib
import os
import shutil
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path

import torch
from safetensors import SafetensorError
from safetensors.torch import save_file

from finetune.training.checkpoint_manifest import MANIFEST, Checkpoint, step_of
from finetune.training.checkpoint_reader import INCOMPLETE, find_checkpoints, named_checkpoint
from finetune.training.exchange import exchange
from finetune.training.staging import Part
from finetune.units import format_bytes

ABANDONED = ".abandoned"
SYNCED_AT_A_TIME = 8
NO_SPACE = "the disk is full"  # as a problem begins


@dataclass(frozen=True)
class Written:
    """What one rank wrote, or the problem that it had. files: name -> (bytes, sha256)."""

    problem: str = ""
    files: dict[str, tuple[int, str]] = field(default_factory=dict)
    shapes: dict[str, list[int]] = field(default_factory=dict)


def write_tensors(
    path: Path, tensors: dict[str, torch.Tensor], shapes: dict[str, list[int]], *, synced: bool = True
) -> Written:
    """One rank's file, in a folder that need not be there yet. Tensors may be on any device."""
    needed = sum(tensor.nbytes for tensor in tensors.values())
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        save_file(tensors, path)  # readable by its owner alone
        path.chmod(path.parent.stat().st_mode & 0o666)  # like its neighbors: others may resume from a shared disk
        with path.open("rb") as file:
            if synced:
                os.fsync(file.fileno())
            digest = hashlib.file_digest(file, "sha256").hexdigest()
    except SafetensorError as error:  # the system's own error is in its text alone
        number = errno.ENOSPC if "os error 28" in str(error) else errno.EIO
        raise _refused(OSError(number, str(error)), path, needed) from None
    except OSError as error:
        raise _refused(error, path, needed) from None
    return Written("", {path.name: (path.stat().st_size, digest)}, shapes)


def write_parts(
    path: Path, parts: Sequence[Part], shapes: dict[str, list[int]], threads: int, *, synced: bool = True
) -> Written:
    """What one rank saves: `path` itself, or a file beside it for each part where there are several.

    threads: parts that are written and hashed at a time. synced: on the disk when this returns.
    """
    if len(parts) == 1:
        return write_tensors(path, parts[0], shapes, synced=synced)
    paths = [path.with_suffix(f".part-{index:03d}-of-{len(parts):03d}.safetensors") for index in range(len(parts))]
    with ThreadPoolExecutor(threads, "checkpoint-part") as pool:
        pairs = zip(paths, parts, strict=True)
        written = list(pool.map(lambda one: write_tensors(one[0], one[1], {}, synced=synced), pairs))
    return Written("", {name: entry for one in written for name, entry in one.files.items()}, shapes)


def publish(checkpoint: Checkpoint, best: bool, keep: int, *, synced: bool = True) -> Written:
    """Make a checkpoint of the files, then set `latest` and `best`, and remove older ones. synced: whether the files are."""
    final, folder = checkpoint.path, checkpoint.path.parent
    beside = beside_of(final)
    _write(beside / MANIFEST, checkpoint.manifest.to_json().encode(), synced=synced)
    if synced:
        _sync_folder(beside)
    former = _put_in_place(beside, final)
    if not synced:
        _sync_published(final, [*checkpoint.manifest.files, MANIFEST], former)
    _sync_folder(folder)
    if former is not None:
        shutil.rmtree(former, ignore_errors=True)
    name_checkpoint(folder, "latest", final.name)
    if best:
        name_checkpoint(folder, "best", final.name)
    prune_checkpoints(folder, keep)
    return Written()


def _put_in_place(beside: Path, final: Path) -> Path | None:
    """Give the folder `beside` the name `final`. Where the same step was saved before, by the run that this one resumes, that
    folder's new path is returned. Where the system can exchange names, no moment is without a checkpoint of this step.
    """
    if not final.exists():
        beside.rename(final)
        return None
    former = final.with_name(f"{final.name}.former{INCOMPLETE}")
    shutil.rmtree(former, ignore_errors=True)
    if exchange(beside, final):
        beside.rename(former)
    else:
        final.rename(former)
        beside.rename(final)
    return former


def _sync_published(final: Path, names: Sequence[str], former: Path | None) -> None:
    """A checkpoint whose files the disk does not take is none: it gets its name of before, and the former one the step's."""
    try:
        with ThreadPoolExecutor(SYNCED_AT_A_TIME, "checkpoint-sync") as pool:
            list(pool.map(lambda name: _sync_file(final / name), names))
        _sync_folder(final)
    except OSError:
        final.rename(beside_of(final))
        if former is not None:
            former.rename(final)
        raise


def _sync_file(path: Path) -> None:
    try:
        with path.open("rb") as file:
            os.fsync(file.fileno())
    except OSError as error:
        raise _refused(error, path, path.stat().st_size) from None


def name_checkpoint(folder: Path, label: str, name: str) -> None:
    """Make `latest` or `best` name a checkpoint: a one-line file, replaced in one step. Rank 0 only."""
    beside = folder / f".{label}"
    _write(beside, name.encode())
    beside.replace(folder / label)
    _sync_folder(folder)


def prune_checkpoints(folder: Path, keep: int) -> None:
    """Remove all but the newest `keep` and the ones that `latest` and `best` name. Rank 0 only, after publishing."""
    kept = {named_checkpoint(folder, "latest"), named_checkpoint(folder, "best")}
    for path in find_checkpoints(folder)[keep:]:
        if path not in kept:
            doomed = beside_of(path)
            shutil.rmtree(doomed, ignore_errors=True)
            with suppress(OSError):  # what cannot be removed takes space, and harms nothing
                path.rename(doomed)  # so that a kill in the middle leaves nothing that looks whole
                shutil.rmtree(doomed)


def clear_leftovers(folder: Path) -> None:
    """Remove what a killed save left behind. Rank 0 only, before the first save of a session."""
    for leftover in folder.glob(f"*{INCOMPLETE}"):
        shutil.rmtree(leftover, ignore_errors=True)


def abandon_newer(folder: Path, step: int) -> None:
    """Rename checkpoints after `step` aside: training resumes from there, and will reach them again. Rank 0 only."""
    for path in find_checkpoints(folder):
        if (step_of(path.name) or 0) > step:
            aside = path.with_name(path.name + ABANDONED)
            shutil.rmtree(aside, ignore_errors=True)
            path.rename(aside)


def attempt(work: Callable[[], Written]) -> Written:
    """The result of `work`, or its error in words: what goes wrong in a thread is raised by all ranks, when they next meet."""
    try:
        return work()
    except OSError as error:
        path = error.filename or ""
        needed = f" ({format_bytes(error.filename2)} needed)" if isinstance(error.filename2, int) else ""
        if error.errno in (errno.ENOSPC, errno.EDQUOT):
            free = shutil.disk_usage(Path(path).parent).free if path and Path(path).parent.exists() else 0
            return Written(f"{NO_SPACE}: {path}{needed}, {format_bytes(free)} free")
        return Written(f"cannot write {path}: {error.strerror or error}{needed}")
    except Exception as error:  # such as MemoryError: the other ranks must learn of it too
        return Written(f"{type(error).__name__}: {error}")


def _refused(error: OSError, path: Path, needed: int) -> OSError:
    """The error with the path and, as its filename2, the bytes needed."""
    error.filename, error.filename2 = str(path), needed
    return error


def beside_of(final: Path) -> Path:
    """Where a checkpoint is written before it is renamed to `final`."""
    return final.with_name(final.name + INCOMPLETE)


def _write(path: Path, content: bytes, *, synced: bool = True) -> None:
    try:
        with path.open("wb") as file:
            file.write(content)
            file.flush()
            if synced:
                os.fsync(file.fileno())
    except OSError as error:
        raise _refused(error, path, len(content)) from None


def _sync_folder(folder: Path) -> None:
    with suppress(PermissionError):
        handle = os.open(folder, os.O_RDONLY)
        try:
            os.fsync(handle)
        finally:
            os.close(handle)
