"""Proves that saving a step that was saved before never leaves the run without a checkpoint of it: killed at any moment, or
refused by the disk.
"""

from __future__ import annotations

import errno
import os
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

import pytest
import torch

from finetune.training import checkpoint_writer, exchange
from finetune.training.checkpoint_manifest import Checkpoint, Manifest, checkpoint_name
from finetune.training.checkpoint_reader import find_checkpoints, open_checkpoint
from finetune.training.checkpoint_writer import attempt, beside_of, publish, write_parts

STEP = 3


class Killed(BaseException):
    """Nothing catches it: what is on the disk stays as it is."""


def save(folder: Path, value: float, *, synced: bool = True) -> str:
    final = folder / checkpoint_name(STEP)
    written = write_parts(
        beside_of(final) / "state.safetensors", [{"w@0": torch.full((4,), value)}], {"w": [4]}, 1, synced=synced
    )
    manifest = Manifest(STEP, {"value": value}, {}, written.files, written.shapes)
    return attempt(lambda: publish(Checkpoint(final, manifest), best=True, keep=1, synced=synced)).problem


def values(folder: Path) -> list[float]:
    return [float(open_checkpoint(path).manifest.loop["value"]) for path in find_checkpoints(folder)]


def killed_after(monkeypatch: pytest.MonkeyPatch, calls: int) -> Callable[[], bool]:
    """Every rename and exchange counts; the process ends before the one after `calls`. Returns whether it came to that."""
    left, ended = [calls], []

    def counted(function: Callable[..., object]) -> Callable[..., object]:
        def call(*arguments: object) -> object:
            if left[0] == 0:
                ended.append(True)
                raise Killed
            left[0] -= 1
            return function(*arguments)

        return call

    monkeypatch.setattr(Path, "rename", counted(Path.rename))
    monkeypatch.setattr(checkpoint_writer, "exchange", counted(exchange.exchange))
    return lambda: bool(ended)


@pytest.mark.parametrize("synced", [True, False])
def test_a_kill_at_any_moment_leaves_one(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, synced: bool) -> None:
    seen = []
    for calls in range(9):
        folder = tmp_path / str(calls)
        folder.mkdir()
        assert save(folder, 1.0) == ""
        with monkeypatch.context() as patch:
            was_killed = killed_after(patch, calls)
            with suppress(Killed):
                save(folder, 2.0, synced=synced)
        seen.append(values(folder))
        if not was_killed():
            break
        assert save(folder, 3.0) == "" and values(folder) == [3.0]
        assert len(list(folder.glob("step-*"))) == 1  # what was left over is gone
    else:
        raise AssertionError("never ran to its end")
    assert seen[0] == [1.0] and seen[-1] == [2.0]
    assert all(found in ([1.0], [2.0]) for found in seen) and len(seen) >= 3


@pytest.mark.parametrize("can", [True, False])
def test_one_that_the_disk_does_not_take_leaves_the_former(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, can: bool
) -> None:
    assert save(tmp_path, 1.0) == ""
    if not can:
        monkeypatch.setattr(checkpoint_writer, "exchange", lambda one, other: False)
    monkeypatch.setattr(checkpoint_writer.os, "fsync", refuse)
    assert save(tmp_path, 2.0, synced=False).startswith("the disk is full: ")
    assert values(tmp_path) == [1.0]


def refuse(descriptor: int) -> None:
    raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))


def test_without_an_exchange_it_is_two_renames(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(exchange.sys, "platform", "darwin")
    assert save(tmp_path, 1.0) == save(tmp_path, 2.0) == ""
    assert values(tmp_path) == [2.0] and len(list(tmp_path.glob("step-*"))) == 1


def test_names_of_folders_are_exchanged(tmp_path: Path) -> None:
    one, other = tmp_path / "one", tmp_path / "other ü"
    for folder in (one, other):
        folder.mkdir()
        (folder / "name").write_text(folder.name)
    assert exchange.exchange(one, other)
    assert (one / "name").read_text() == other.name and (other / "name").read_text() == one.name
    with pytest.raises(FileNotFoundError):
        exchange.exchange(one, tmp_path / "none")
