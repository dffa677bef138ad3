"""Proves that an error that all ranks of a foreign launcher meet is shown once, and that no error is kept back otherwise."""

from __future__ import annotations

import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import pytest

from finetune.distributed import said_once

TORCHRUN = {"WORLD_SIZE": "2", "LOCAL_WORLD_SIZE": "2", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": "1"}
LAUNCH = """
import os, subprocess, sys
for rank in "01":
    env = os.environ | {"RANK": rank, "LOCAL_RANK": rank}
    subprocess.run([sys.executable, "-m", "finetune", *ARGUMENTS], env=env)
"""


@pytest.fixture
def rank(tmp_path: Path, monkeypatch) -> None:
    """This process is rank 1 of torchrun."""
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    for name, value in {**TORCHRUN, "RANK": "1", "LOCAL_RANK": "1", "TORCHELASTIC_RUN_ID": "none"}.items():
        monkeypatch.setenv(name, value)


def test_a_text_is_said_by_the_first_rank_of_a_start(rank, monkeypatch) -> None:
    assert [said_once.said_by_another(text) for text in ("one", "one", "other", "one")] == [False, True, False, True]
    monkeypatch.setenv("TORCHELASTIC_RESTART_COUNT", "1")
    assert not said_once.said_by_another("one")
    monkeypatch.setattr(os, "getppid", lambda: os.getpid())  # another launch
    assert not said_once.said_by_another("one")


@pytest.mark.parametrize(
    "changed",
    [{"TORCHELASTIC_RUN_ID": None}, {"WORLD_SIZE": "1", "RANK": "0"}, {"RANK": None}, {"RANK": "7"}],
    ids=["a loop of the user", "one process", "contradictory", "contradictory numbers"],
)
def test_where_ranks_are_not_known_to_be_of_one_launch_everything_is_shown(rank, changed: dict, monkeypatch) -> None:
    for name, value in changed.items():
        monkeypatch.delenv(name) if value is None else monkeypatch.setenv(name, value)
    assert not any(said_once.said_by_another("one") for _ in range(2))


def test_where_no_claim_can_be_made_everything_is_shown(rank, monkeypatch) -> None:
    monkeypatch.setattr(tempfile, "tempdir", "/proc/absent")
    assert not any(said_once.said_by_another("one") for _ in range(2))


@pytest.mark.skipif(os.getuid() != 0, reason="needs root to give a file away")
def test_a_claim_of_another_user_keeps_nothing_back(rank, tmp_path: Path) -> None:
    said_once.said_by_another("one")
    [claim] = tmp_path.iterdir()
    os.chown(claim, 65534, 65534)
    assert not said_once.said_by_another("one")


def test_old_claims_are_removed(rank, tmp_path: Path) -> None:
    said_once.said_by_another("one")
    [claim] = tmp_path.iterdir()
    os.utime(claim, (0, time.time() - 2 * said_once.SECONDS))
    assert not said_once.said_by_another("other") and not claim.exists()


def launch(arguments: list[str], folder: Path) -> str:
    """What two ranks of a launch print, one after the other."""
    env = {**os.environ, **TORCHRUN, "TORCHELASTIC_RUN_ID": "none", "TMPDIR": str(folder)}
    code = f"ARGUMENTS = {arguments!r}\n{LAUNCH}"
    done = subprocess.run([sys.executable, "-c", code], env=env, cwd=folder, capture_output=True, text=True, check=True)
    return done.stderr


def test_ranks_of_torchrun_say_once_that_a_recipe_is_not_there(tmp_path: Path) -> None:
    for _ in range(2):  # a second launch says it again
        said = launch(["train", "absent.yaml"], tmp_path)
        assert said.count("error:") == 1 and "absent.yaml" in said


@pytest.mark.parametrize("command", ["export run --output x", "serve run", "chat run", "report run", "dashboard run"])
def test_a_command_of_one_process_is_refused_to_ranks(command: str, tmp_path: Path) -> None:
    """Two exports into one folder: each took the other's temporary folder for its own output."""
    said = launch(command.split(), tmp_path)
    assert said.count("error:") == 1 and "this is a command of one process, and torchrun started 2 of them" in said
    assert sorted(path.name for path in tmp_path.iterdir() if not path.name.startswith("finetune-said")) == []


@pytest.mark.parametrize(
    ("arguments", "sentences"),
    [
        (["trian", "x.yaml"], ("No such command",)),
        (["train", "x.yaml", "--learning_rate", "1"], ("No such option", "Keys of a recipe are set with --set")),
        (["train", "x.yaml", "--processes", "two"], ("Invalid value for '--processes'",)),
        (["train"], ("Missing argument",)),
    ],
    ids=["command", "key", "value", "argument"],
)
def test_ranks_say_once_what_is_wrong_in_their_command_line(arguments, sentences, tmp_path: Path) -> None:
    said = launch(arguments, tmp_path)
    assert [said.count(sentence) for sentence in (*sentences, "Usage:")] == [1] * (len(sentences) + 1), said
