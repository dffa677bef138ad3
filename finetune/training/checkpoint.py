"""Checkpoints are written while training continues; each is whole or absent. `checkpoint_reader.py` describes the files.

A save copies this rank's state to memory, and training continues. Threads write the copy to a folder beside
(`.incomplete`), synced, and compute its digests, several parts at a time. When the files of all ranks are written, which the
ranks learn from a sum that each step makes anyway, rank 0's thread writes the manifest, last, and renames the folder: only
then is it a checkpoint, and only then are older ones removed.
"""

from __future__ import annotations

import math
import os
import shutil
import threading
from collections.abc import Callable, Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import suppress
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import torch

from finetune.data.prepare.memory import available_bytes
from finetune.distributed.engines.engine import Engine
from finetune.distributed.sharded_state import trainable_parameters
from finetune.distributed.tensor_parallel import whole_shape
from finetune.errors import DISK_FULL, TrainingFailed
from finetune.recipe.optimizers import FLOAT32_BYTES, OPTIMIZERS
from finetune.recipe.quotas import threads_each
from finetune.training.checkpoint_manifest import Checkpoint, Manifest, checkpoint_name
from finetune.training.checkpoint_reader import find_checkpoints
from finetune.training.checkpoint_writer import NO_SPACE, Written, attempt, beside_of, publish, write_parts
from finetune.training.staging import Staging, divide
from finetune.units import format_bytes

MOST_THREADS = 8  # that write parts: more than a disk serves
NICENESS = 5  # of the writing thread: training goes first where both need the processors

Published = Callable[[Checkpoint, bool], None]


@dataclass
class _Save:
    """A save under way. task: what this rank's thread does for it; synced: files are synced as they are written; publishing:
    all are written.
    """

    step: int
    best: bool
    loop: dict[str, Any]
    scalars: dict[str, Any]
    task: Future[Written]
    synced: bool = True
    publishing: bool = False


class Saver:
    """Saves the state of all ranks under folder/step-XXXXXXXX, on a shared disk. Each rank has one.

    `begin`, `advance` and `finish` are called by all ranks, after the same step. One save is under way at a time.
    training: what names the training (recipe/identity.py), kept in every manifest.
    published: called on rank 0 with each new checkpoint, and whether it is the best.
    """

    def __init__(
        self,
        engine: Engine,
        folder: Path,
        *,
        training: Mapping[str, Any],
        keep: int = 2,
        published: Published | None = None,
    ) -> None:
        self.engine, self.session, self.folder = engine, engine.session, folder
        self.training, self.keep, self.published = dict(training), keep, published
        self.latest: Checkpoint | None = None
        self.best: Checkpoint | None = None
        self._save: _Save | None = None
        self._staging = Staging(self.session.device)
        self._threads = _writing_threads(self.session.local_world_size)
        self._thread = ThreadPoolExecutor(1, "checkpoint", initializer=_be_nice)

    @property
    def under_way(self) -> bool:
        """A save was begun and is not yet published. The same on all ranks."""
        return self._save is not None

    @property
    def busy(self) -> bool:
        """This rank's thread is still writing. Once no rank is busy, `advance` does not wait."""
        return self._save is not None and not self._save.task.done()

    def begin(self, step: int, loop: dict[str, Any], *, best: bool = False, hurry: bool = False) -> None:
        """Copy this rank's state, and write it from now on. Raises: TrainingFailed if the save before it failed.

        hurry: the process may be killed soon. The checkpoint is there before the disk has all of it (checkpoint_writer.py);
        where ranks are on several hosts, whose files rank 0 cannot sync, it is not.
        """
        self.finish()
        shards = list(self.engine.local_shards())
        shapes = {shard.key: list(shard.shape) for shard in shards}
        needed = sum(shard.values.nbytes for shard in shards)
        host = needed * self.session.local_world_size  # the other ranks of this host save now, too
        spare = self._staging.is_filled or available_bytes() > 1.25 * host
        parts = divide(shards)
        if spare:
            parts = self._staging.copy(parts)
        threads = self._threads if spare else 1  # a part on a GPU is copied by the thread that writes it
        name = f"state-{self.session.rank:05d}-of-{self.session.world_size:05d}.safetensors"
        path = beside_of(self.folder / checkpoint_name(step)) / name
        synced = not hurry or self.session.local_world_size < self.session.world_size
        task = self._thread.submit(attempt, lambda: write_parts(path, parts, shapes, threads, synced=synced))
        self._save = _Save(step, best, loop, self.engine.scalars(), task, synced)
        if not spare:  # no memory for a copy: training waits until its tensors are written
            task.result()

    def advance(self) -> None:
        """Once no rank is busy: publish what all have written, or note that it is published.

        Raises: TrainingFailed on every rank if any rank could not write; what was there before stays as it was.
        """
        save = self._save
        assert save is not None
        done = save.task.result()
        final = self.folder / checkpoint_name(save.step)
        if not save.publishing:
            ranks = self.session.all_gather(done)
            self._raise_problem(next((one.problem for one in ranks if one.problem), ""), final)
            manifest = Manifest(
                step=save.step,
                training=self.training,
                loop=save.loop,
                scalars=save.scalars,
                files={name: entry for one in ranks for name, entry in one.files.items()},
                shapes={key: shape for one in ranks for key, shape in one.shapes.items()},
            )
            checkpoint = Checkpoint(final, manifest)
            self.latest, self.best = checkpoint, checkpoint if save.best else self.best
            save.publishing = True
            if self.session.is_main:
                finishing = partial(publish, checkpoint, save.best, self.keep, synced=save.synced)
                save.task = self._thread.submit(attempt, finishing)
            return
        self._save = None
        self._raise_problem(self.session.broadcast(done.problem), final)
        if self.session.is_main and self.published is not None and self.latest is not None:
            self.published(self.latest, save.best)

    def finish(self) -> None:
        """Wait until the save under way, if any, is published. Raises: as `advance` does."""
        while self._save is not None:
            self.advance()

    def close(self) -> None:
        """End the thread. Any rank may call it alone."""
        self._thread.shutdown(wait=False, cancel_futures=True)
        self._staging.clear()

    def _raise_problem(self, problem: str, final: Path) -> None:
        if not problem:
            return
        self._save = None
        if self.session.is_main:
            shutil.rmtree(beside_of(final), ignore_errors=True)
        raise TrainingFailed(
            f"the checkpoint could not be saved: {problem}",
            remedy="The previous checkpoint is untouched. Free some space, and run the same command to resume from it.",
            kind=DISK_FULL if problem.startswith(NO_SPACE) else "",
        )


def checkpoint_bytes(engine: Engine, optimizer: str) -> int:
    """Bytes of one checkpoint, over all ranks, before it is written. optimizer: its name. All ranks call it."""
    own = sum(_stored_bytes(shard.values) for shard in engine.local_shards())
    weights = sum(math.prod(whole_shape(parameter)) for _, parameter in trainable_parameters(engine.module))
    each = FLOAT32_BYTES + OPTIMIZERS[optimizer].state_bytes
    return int(max(engine.session.sum(float(own))[0], weights * each))


def _stored_bytes(values: torch.Tensor) -> int:
    """Most that a tensor takes in a checkpoint: float32, or the bytes of 8-bit state."""
    return values.numel() * (FLOAT32_BYTES if values.is_floating_point() else values.element_size())


def check_space(engine: Engine, folder: Path, *, optimizer: str, copies: int) -> None:
    """Refuse to start a training whose checkpoints cannot fit. All ranks call it.

    copies: most checkpoints that exist at a time, the one being written included; those that exist already take no more
    space.
    Raises: TrainingFailed naming the path, the bytes needed and the bytes free.
    """
    each = checkpoint_bytes(engine, optimizer)
    free, there = 0, 0
    if engine.session.is_main:
        free, there = shutil.disk_usage(folder).free, len(find_checkpoints(folder))
    free, there = engine.session.broadcast((free, there))
    needed = each * max(1, copies - there)
    if free < needed:
        raise TrainingFailed(
            f"{max(1, copies - there)} checkpoints of {format_bytes(each)} need {format_bytes(needed)}, "
            f"{format_bytes(free)} are free",
            where=str(folder),
            remedy="Free some space, choose another --run-dir, or lower checkpoint.keep.",
            kind=DISK_FULL,
        )


def _writing_threads(ranks: int) -> int:
    """How many parts a rank writes and hashes at a time. ranks: on this host."""
    return min(MOST_THREADS, threads_each(ranks))


def _be_nice() -> None:
    """Linux: the priority of this thread alone."""
    with suppress(OSError, AttributeError):
        os.setpriority(os.PRIO_PROCESS, threading.get_native_id(), NICENESS)
