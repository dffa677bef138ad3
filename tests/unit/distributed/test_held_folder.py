"""Proves that a start removes the temporary folders whose owners were killed, and none that somebody uses."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import tempfile
from pathlib import Path

import pytest

from finetune.distributed.held_folder import MARK, PREFIX, hold_folder, make_folder, remove_abandoned

OWNER = (
    "import os, time; from finetune.distributed.held_folder import *; print(make_folder(PREFIX)[0], flush=True); {then}"
)


def start(folder: Path, then: str) -> tuple[subprocess.Popen[str], Path]:
    owner = subprocess.Popen(
        [sys.executable, "-c", OWNER.format(then=then)],
        stdout=subprocess.PIPE,
        text=True,
        env={**os.environ, "TMPDIR": str(folder)},
    )
    assert owner.stdout is not None
    return owner, Path(owner.stdout.readline().strip())


def kill(owner: subprocess.Popen[str]) -> None:
    owner.send_signal(signal.SIGKILL)
    owner.communicate()


def test_what_a_killed_process_left_goes_at_the_next_start_and_what_is_used_stays(tmp_path: Path, monkeypatch) -> None:
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    killed, left = start(tmp_path, "time.sleep(60)")
    living, used = start(tmp_path, "time.sleep(60)")
    (left / "deep").mkdir()
    (left / "deep" / "file").write_text("x")
    kill(killed)
    assert left.is_dir(), "nobody removed it when its owner was killed"
    folder, held = make_folder(PREFIX)
    assert not left.exists() and used.is_dir() and folder.is_dir()
    os.close(held)
    kill(living)


def test_a_rank_that_outlives_its_supervisor_keeps_the_folder(tmp_path: Path) -> None:
    owner, folder = start(tmp_path, "time.sleep(60)")
    held = hold_folder(folder)  # as a rank that was not forked does
    kill(owner)
    remove_abandoned(tmp_path, PREFIX)
    assert folder.is_dir()
    os.close(held)
    remove_abandoned(tmp_path, PREFIX)
    assert not folder.exists()


def test_links_files_and_folders_that_a_user_made_stay(tmp_path: Path) -> None:
    home, target = tmp_path / "home", tmp_path / "target"
    (target / "kept").mkdir(parents=True)
    (target / MARK).touch()
    home.mkdir()
    (home / f"{PREFIX}link").symlink_to(target)
    (home / f"{PREFIX}file").write_text("x")
    (home / f"{PREFIX}datasets").mkdir()
    remove_abandoned(home, PREFIX)
    assert len(list(home.iterdir())) == 3 and (target / "kept").is_dir()


@pytest.mark.skipif(os.getuid() != 0, reason="needs root to give a folder away")
def test_a_folder_of_another_user_stays(tmp_path: Path) -> None:
    theirs = tmp_path / f"{PREFIX}theirs"
    theirs.mkdir()
    (theirs / MARK).touch()
    os.chown(theirs, 65534, 65534)
    remove_abandoned(tmp_path, PREFIX)
    assert theirs.is_dir()
