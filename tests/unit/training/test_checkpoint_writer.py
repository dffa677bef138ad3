"""Proves that a checkpoint which is published before it is synced is taken back if the disk does not take it."""

from __future__ import annotations

import errno
import shutil
from pathlib import Path

import pytest
import torch

from finetune.training import checkpoint_writer
from finetune.training.checkpoint_manifest import Checkpoint, Manifest, checkpoint_name, step_of
from finetune.training.checkpoint_reader import find_checkpoints, named_checkpoint, open_checkpoint
from finetune.training.checkpoint_writer import abandon_newer, attempt, beside_of, publish, write_parts


def save(folder: Path, step: int, *, synced: bool) -> checkpoint_writer.Written:
    final = folder / checkpoint_name(step)
    parts = [{"w@0": torch.arange(8.0)}, {"w@8": torch.arange(4.0)}]
    written = write_parts(beside_of(final) / "state.safetensors", parts, {"w": [12]}, 2, synced=synced)
    manifest = Manifest(step, {}, {}, written.files, written.shapes)
    return attempt(lambda: publish(Checkpoint(final, manifest), best=True, keep=1, synced=synced))


def test_files_are_synced_before_the_rename_or_after_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = tmp_path / "checkpoints"
    seen: list[tuple[str, int]] = []

    def sync(descriptor: int) -> None:
        name = Path(f"/proc/self/fd/{descriptor}").readlink().name
        seen.append((name, len(find_checkpoints(folder))))

    monkeypatch.setattr(checkpoint_writer.os, "fsync", sync)
    files = {"state.part-000-of-002.safetensors", "state.part-001-of-002.safetensors", "manifest.json"}
    for synced, published in ((True, 0), (False, 1)):
        folder = tmp_path / f"synced-{synced}"
        folder.mkdir()
        seen.clear()
        assert save(folder, 1, synced=synced).problem == ""
        assert {(name, there) for name, there in seen if name in files} == {(name, published) for name in files}
        assert seen[-1] == (folder.name, 1)


def test_one_that_the_disk_does_not_take_is_none_and_the_one_before_stays(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert save(tmp_path, 1, synced=True).problem == ""

    def refuse(descriptor: int) -> None:
        if "part-001" in Path(f"/proc/self/fd/{descriptor}").readlink().name:
            raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(checkpoint_writer.os, "fsync", refuse)
    problem = save(tmp_path, 2, synced=False).problem
    assert problem.startswith("the disk is full: ") and "part-001" in problem
    assert [open_checkpoint(path).step for path in find_checkpoints(tmp_path)] == [1]
    assert named_checkpoint(tmp_path, "latest") == named_checkpoint(tmp_path, "best") == tmp_path / checkpoint_name(1)


def test_copies_that_a_user_made_are_left_alone(tmp_path: Path) -> None:
    copy = tmp_path / f"{checkpoint_name(1)}-keep"
    save(tmp_path, 1, synced=False)
    shutil.copytree(tmp_path / checkpoint_name(1), copy)
    save(tmp_path, 2, synced=False)  # keep=1 removes the first
    save(tmp_path, 3, synced=False)
    abandon_newer(tmp_path, 0)
    assert [path.name for path in sorted(tmp_path.glob("step-*"))] == [copy.name, f"{checkpoint_name(3)}.abandoned"]
    assert find_checkpoints(tmp_path) == [] and step_of(copy.name) is None


def test_checkpoints_are_in_the_order_of_their_steps(tmp_path: Path) -> None:
    for step in (99_999_999, 100_000_000):
        save(tmp_path, step, synced=False)
    assert [step_of(path.name) for path in find_checkpoints(tmp_path)] == [100_000_000]
    abandon_newer(tmp_path, 99_999_999)
    assert find_checkpoints(tmp_path) == []
