"""Proves that data is prepared before the process group exists: however long it takes, wherever it is killed, once for all."""

import csv
import os
import random
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

import pytest

from finetune.errors import EXIT_STOPPED
from tests.e2e import tiny
from tests.e2e.conftest import MINUTES
from tests.faults import ROOT, file_appears, kill_after, run_finetune, small_disk, start_finetune

ROWS = 30_000
SHORT = ("training.epochs=1", "evaluation.every=6", "checkpoint.every=6", "parallel.deepspeed=none")
pytestmark = pytest.mark.timeout(600)

# What a launcher starts in place of `-m finetune`: preparing takes longer than any collective may.
SLOW = """
import datetime, time
from finetune.data.prepare import encode
from finetune.distributed import session
session.GIVE_UP_AFTER = datetime.timedelta(seconds=10)
run = encode.EncodeJob.run
encode.EncodeJob.run = lambda job, chunk: time.sleep(14 if job.table.name == "train" else 0) or run(job, chunk)
from finetune.cli import main
if __name__ == "__main__":
    main()
"""


@pytest.fixture(scope="module")
def many(tmp_path_factory):
    """A folder with a recipe of many rows."""
    folder = tmp_path_factory.mktemp("many")
    draw = random.Random(2)
    with (folder / "train.csv").open("w", newline="") as file:
        rows = csv.writer(file)
        rows.writerow(["text", "label"])
        for index in range(ROWS):
            rows.writerow(
                [" ".join(draw.choices(["film", "story", "plot", "scene"], k=60)), "good" if index % 2 else "bad"]
            )
    tiny.write_recipe(folder, "many.yaml", data={"train": "train.csv", "validation_fraction": 0.1})
    return folder


def encoded(cache):
    """What was encoded: entry and file -> content."""
    files = list((cache / "finetune" / "examples").glob("*/rows.*"))
    return {(path.parent.name, path.name): path.read_bytes() for path in files}


@pytest.fixture(scope="module")
def undisturbed_cache(many, tmp_path_factory):
    cache = tmp_path_factory.mktemp("undisturbed")
    finished = run_finetune(["prepare", "many.yaml"], MINUTES, folder=many, environment={"XDG_CACHE_HOME": str(cache)})
    assert finished.code == 0, finished.output
    assert "27," in finished.output and "prepared in" in finished.output
    return cache


def test_a_preparation_that_is_killed_continues_with_the_same_result(many, undisturbed_cache, tmp_path):
    environment, journal = {"XDG_CACHE_HOME": str(tmp_path)}, "finetune/examples/*.partial-*/journal.jsonl"
    for _ in range(2):
        with start_finetune(["prepare", "many.yaml"], folder=many, environment=environment) as running:
            begun = list(tmp_path.glob(journal))
            seconds = random.uniform(0.1, 1.0)
            with kill_after(running.process.pid, when=file_appears(tmp_path, journal), seconds=seconds):
                running.wait(MINUTES)
            end = time.monotonic() + 30  # a crowded machine takes its time
            while running.survivors() and time.monotonic() < end:
                time.sleep(0.05)
            assert not running.survivors(), "the child and its workers end with their parent"
    assert begun, "the first attempt left something to continue"
    finished = run_finetune(["prepare", "many.yaml"], MINUTES, folder=many, environment=environment)
    assert finished.code == 0, finished.output
    assert encoded(tmp_path) == encoded(undisturbed_cache) and len(encoded(tmp_path)) == 8
    assert not list(tmp_path.glob("finetune/*/*.partial-*"))


@pytest.mark.parametrize(
    ("number", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, EXIT_STOPPED), (signal.SIGUSR1, EXIT_STOPPED)]
)
def test_a_signal_ends_it(number, code, many, tmp_path):
    environment, journal = {"XDG_CACHE_HOME": str(tmp_path)}, "finetune/examples/*.partial-*/journal.jsonl"
    with start_finetune(["train", "many.yaml"], folder=many, environment=environment) as running:
        while not list(tmp_path.glob(journal)):
            assert running.process.poll() is None, running.output()
            time.sleep(0.02)
        sent = time.monotonic()
        running.send(number)
        assert running.wait(60).code == code, running.output()
        while running.survivors():  # workers end by the signal that the end of their parent sends
            assert time.monotonic() - sent < 60, running.output()
    assert "Traceback" not in running.output() and not (many / "runs").exists()


def test_what_is_prepared_is_found_without_torch_and_without_a_process(many, undisturbed_cache):
    code = (
        "import sys, multiprocessing\n"
        "from finetune.app.opening import open_recipe\n"
        "from finetune.app.preparation import child\n"
        "from finetune.app.preparation.request import Request\n"
        "child.run_apart = None\n"
        "print(child.ensure_prepared(Request.of(open_recipe('many.yaml').recipe)))\n"
        "assert not {'torch', 'transformers', 'datasets'} & set(sys.modules)\n"
    )
    environment = {**os.environ, "XDG_CACHE_HOME": str(undisturbed_cache), "PYTHONPATH": str(ROOT)}
    done = subprocess.run([sys.executable, "-c", code], cwd=many, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert Path(done.stdout.strip()).parent == undisturbed_cache / "finetune" / "prepared"


def test_a_full_disk_is_told(many, tmp_path):
    with small_disk(tmp_path / "disk", 4 << 20) as disk:
        environment = {"XDG_CACHE_HOME": str(disk)}
        finished = run_finetune(["prepare", "many.yaml"], MINUTES, folder=many, environment=environment)
        assert finished.code == 2 and "the disk is full" in finished.output, finished.output
        assert "Traceback" not in finished.output and not list(disk.glob("finetune/*/*.partial-*"))


def test_preparing_longer_than_any_collective_under_torchrun(workplace, tmp_path):
    program = Path(sys.executable).parent / "torchrun"
    if not program.exists():
        pytest.skip("torchrun is not installed")
    (tmp_path / "slow.py").write_text(SLOW)
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = str(probe.getsockname()[1])
    command = [str(program), "--nproc_per_node", "2", "--master_port", port, str(tmp_path / "slow.py")]
    sets = [argument for one in SHORT for argument in ("--set", one)]
    finished = run_finetune(
        ["train", "tiny.yaml", "--run-dir", str(tmp_path / "run"), *sets],
        MINUTES,
        folder=workplace,
        program=command,
        environment={"XDG_CACHE_HOME": str(tmp_path / "cache")},
    )
    assert finished.code == 0, finished.output
    assert len(tiny.losses(tmp_path / "run")) == 6


def train_slowly(folder, run, fails):
    """On a rank, as a launcher would start it."""
    from datetime import timedelta
    from unittest import mock

    from finetune.data.prepare import encode
    from finetune.distributed import process_group
    from tests.e2e.inside import train_here

    real = encode.EncodeJob.run

    def slow(job, chunk):
        time.sleep(14 if job.table.name == "train" else 0)
        if fails:
            raise ValueError("a fault while preparing")
        return real(job, chunk)

    with (
        mock.patch.object(encode.EncodeJob, "run", slow),
        # the training has to keep to this limit as well, on a busy machine
        mock.patch.object(process_group, "GIVE_UP_AFTER", timedelta(seconds=10)),
    ):
        train_here(folder, "tiny.yaml", run, [*SHORT, f"options.max_length={30 + fails}"], "auto", {})


def test_preparing_longer_than_any_collective_on_two_ranks(workplace, pool):
    run = workplace / "slowly"
    pool.run(2, train_slowly, str(workplace), str(run), 0)
    assert len(tiny.losses(run)) == 6
