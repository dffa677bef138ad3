"""A training opens no port that another machine can reach, and leaves nothing in /tmp and /dev/shm."""

from __future__ import annotations

import os
import tempfile
import time
from pathlib import Path

import psutil
import pytest

from tests.e2e import tiny
from tests.faults import start_finetune


@pytest.mark.parametrize(("ranks", "engine"), [(2, "zero2"), (1, "none")])
def test_ranks_listen_on_the_loopback_interface_alone(ranks: int, engine: str, tmp_path: Path) -> None:
    tiny.write_data(tmp_path)
    training = {"global_batch": 8, "epochs": 3, "learning_rate": 5e-3}
    tiny.write_recipe(tmp_path, training=training, parallel={"processes": ranks, "deepspeed": engine})
    before, seen = traces(), set()
    with start_finetune(["train", "tiny.yaml", "--run-dir", "run"], folder=tmp_path) as running:
        while running.process.poll() is None:
            seen |= listeners(running.process.pid)
            time.sleep(0.1)
        finished = running.wait(240)
    assert finished.code == 0, finished.output
    assert {address for address, _ in seen} <= {"127.0.0.1", "::1"}, seen
    assert ranks == 1 or seen, "gloo listens somewhere, or this looked in the wrong place"
    assert traces() <= before, traces() - before


def listeners(pid: int) -> set[tuple[str, int]]:
    """(address, port) of every listening socket of a process and what it started."""
    found = set()
    try:
        family = [psutil.Process(pid), *psutil.Process(pid).children(recursive=True)]
    except psutil.NoSuchProcess:
        return found
    for process in family:
        try:
            sockets = process.net_connections(kind="inet")
        except psutil.Error:
            continue
        found |= {(one.laddr.ip, one.laddr.port) for one in sockets if one.status == psutil.CONN_LISTEN}
    return found


def traces() -> set[str]:
    """What trainings leave in the folders that all users share."""
    shared, temporary = Path("/dev/shm"), Path(tempfile.gettempdir())
    names = [*shared.glob("deepspeed_*"), *temporary.glob("torchelastic_*")]
    mine = f"finetune-{os.getuid()}-"
    return {str(path) for path in [*names, *temporary.glob(f"{mine}*")]}
