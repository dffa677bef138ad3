"""Proves that predictions survive kills at random moments, rows that kill the process, and a file that grows."""

import json
import os
import random
import shutil
import time

import pytest

from finetune.distributed.prebuild import choose_cache
from finetune.errors import EXIT_USER
from tests.faults import ROOT, file_appears, run_finetune, start_finetune
from tests.kills import KilledPredictions, make_place
from tests.ranks import Ranks

pytestmark = pytest.mark.timeout(600)
MINUTES = 180
POISON = (5, 40)  # rows
# What Python runs at its start: ranks die of a segmentation fault when they compute one of the rows.
DIES = f"""
import os, signal
if "RANK" in os.environ:
    from finetune.inference.batches import BatchAnswerer
    real = BatchAnswerer._answer
    def answer(self, batch, *rest):
        if {set(POISON)} & set(map(int, batch.ids)):
            os.kill(os.getpid(), signal.SIGSEGV)
        return real(self, batch, *rest)
    BatchAnswerer._answer = answer
"""


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    return make_place(tmp_path_factory.mktemp("kills"), 1_200)


def arguments(output, *more):
    return ["predict", "run", "--data", "rows.jsonl", "--output", output, "--budget", "256", *more]


def test_kills_at_random_moments(place, tmp_path):
    """A few; `make soak` has more of them."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("TORCH_EXTENSIONS_DIR", str(choose_cache()))
        pool = Ranks(tmp_path)
        try:
            killed = KilledPredictions(pool, place, window_rows=500)
            done = killed.kill(3, seed=5, until=time.monotonic() + 60)
        finally:
            pool.close()
    assert done.outputs >= 1 and killed.rows == 1_200


def test_rows_that_kill_the_process_are_given_up(place, tmp_path, finetune):
    """Twice a chunk is tried as it is, then row by row; the rows at which the process dies even so have errors."""
    plain = finetune(*arguments("plain.jsonl"), folder=place)
    assert plain.code == 0, plain.output
    (tmp_path / "sitecustomize.py").write_text(DIES)
    path = os.pathsep.join((str(tmp_path), str(ROOT)))
    command = arguments("poison.jsonl", "--processes", "2")
    finished = run_finetune(command, MINUTES, folder=place, environment={"PYTHONPATH": path})
    assert finished.code == 0, finished.output
    assert "its rows are answered one by one" in finished.output and "2 failed" in finished.output, finished.output
    ours, theirs = (
        [json.loads(line) for line in (place / name).read_text().splitlines()]
        for name in ("poison.jsonl", "plain.jsonl")
    )
    failed = [line for line in ours if line.get("error", {}).get("kind") == "failed"]
    assert [line["row"] for line in failed] == list(POISON)
    assert [line.get("label") for line in ours if line not in failed] == [
        line.get("label") for line in theirs if line["row"] not in POISON
    ]


def test_a_file_that_grows_is_an_error_once(place, tmp_path, finetune):
    """What was answered before stays; the command does not go on with another file."""
    shutil.copytree(place / "run", tmp_path / "run")
    draw = random.Random(0)
    with (tmp_path / "rows.jsonl").open("w") as file:
        for _ in range(8_192 * 4 + 300):  # one window more than are open at once
            file.write(json.dumps({"text": draw.choice("ab")}) + "\n")
    command = ["predict", "run", "--data", "rows.jsonl", "--output", "out.jsonl", "--budget", "2048"]
    with start_finetune(command, folder=tmp_path) as running:
        appears = file_appears(tmp_path / "out.jsonl.parts", "window-*/*.answers", 1)
        while not appears():
            assert running.process.poll() is None, running.output()
            time.sleep(0.01)
        with (tmp_path / "rows.jsonl").open("a") as file:
            file.write('{"text": "more"}\n')
        finished = running.wait(MINUTES)
    assert finished.code == EXIT_USER, finished.output
    assert "changed while it was read" in finished.output and "restarting" not in finished.output, finished.output
    assert "Traceback" not in finished.output, finished.output
    again = finetune(*command, folder=tmp_path)
    assert again.code == EXIT_USER and "the content of rows.jsonl has changed" in again.output, again.output
