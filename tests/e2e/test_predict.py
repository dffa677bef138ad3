"""Proves that `finetune predict` writes the same bytes on any number of ranks, after kills, Ctrl-C and a full disk, and from a
pipe; and that what it cannot go on with is refused.
"""

import json
import random
import shutil
import signal
import socket
import subprocess
import sys
import time
from dataclasses import replace
from itertools import islice
from pathlib import Path

import pytest
import torch

from finetune.errors import EXIT_STOPPED, EXIT_USER
from finetune.inference.prediction.state import State
from tests.contract.examples import EXAMPLES
from tests.faults import ROOT, file_appears, kill_after, run_finetune, small_disk, start_finetune
from tests.prepared import prepare
from tests.stored_runs import store_run, trained_like
from tests.warm_start import run_warm_tasks, slurm_tasks

pytestmark = pytest.mark.timeout(600)
ROWS = 9_000
MINUTES = 180


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    """A folder with a run, without training, and rows.jsonl."""
    folder = tmp_path_factory.mktemp("predict")
    torch.set_num_threads(1)
    example = next(example for example in EXAMPLES if example.task == "text_classification")
    prepared = prepare(example.recipe(folder))
    store_run(prepared, trained_like(prepared.build()), folder)
    draw, words = random.Random(1), ["a", "good", "bad", "dull", "fine", "film", "plot", "and", "was", "the", "very"]
    with (folder / "rows.jsonl").open("w") as file:
        for number in range(ROWS):
            text = " ".join(draw.choices(words, k=min(40, int(draw.lognormvariate(1.5, 0.7)) + 1)))
            file.write(json.dumps({"text": text if number != 5_000 else None, "id": f"n{number}"}) + "\n")
    return folder


def arguments(output, *more, data="rows.jsonl"):
    return ["predict", "run", "--data", data, "--output", str(output), "--keep", "id", "--budget", "256", *more]


@pytest.fixture(scope="module")
def whole(place):
    """The output of one rank that was never disturbed."""
    finished = run_finetune(arguments("whole.jsonl"), MINUTES, folder=place)
    assert finished.code == 0, finished.output
    assert "9,000 rows answered" in finished.output and "1 bad_row" in finished.output, finished.output
    return (place / "whole.jsonl").read_bytes()


def test_an_undisturbed_output(place, whole, finetune):
    lines = [json.loads(line) for line in whole.decode().splitlines()]
    assert [(line["row"], line["id"]) for line in lines] == [(number, f"n{number}") for number in range(ROWS)]
    assert lines[5_000]["error"]["kind"] == "bad_row" and "text" in lines[5_000]["error"]["message"]
    assert all(0 <= line["score"] <= 1 for line in lines if "error" not in line)
    assert sorted(path.name for path in (place / "whole.jsonl.parts").iterdir()) == [
        "journal.jsonl", "lock", "logs", "manifest.json", "scored.jsonl", "state.json"
    ]  # fmt: skip
    row = json.loads((place / "whole.jsonl.parts/journal.jsonl").read_text())
    assert row["rows"] == ROWS and row["errors"] == {"bad_row": 1} and 0 <= row["padding_share"] < 0.2
    again = finetune(*arguments("whole.jsonl"), folder=place)
    assert again.code == 0 and "answered already" in again.output and (place / "whole.jsonl").read_bytes() == whole


def test_kills_while_the_number_of_ranks_changes(place, whole):
    """On 2, 1 and 3 ranks: a rank is killed, and starts again; then the launcher is, twice; then a rank that may not be started
    again: the others do its part.
    """
    output, parts = place / "killed.jsonl", place / "killed.jsonl.parts"
    with start_finetune(arguments(output, "--processes", "2"), folder=place) as running:
        with kill_after(lambda: running.rank(1).pid, when=file_appears(parts, "window-*/*.answers", 8)):
            while "replica 1 (rank 1) starts again" not in running.output():
                assert running.process.poll() is None, running.output()
                time.sleep(0.01)
        assert "(2 restarts left)" in running.output(), running.output()
        running.process.kill()
        assert running.wait(MINUTES).code == -signal.SIGKILL
    time.sleep(1)
    with (
        start_finetune(arguments(output, "--processes", "1"), folder=place) as running,
        kill_after(running.process.pid, when=file_appears(parts, "window-*/*.answers", 30)),
    ):
        assert running.wait(MINUTES).code == -signal.SIGKILL
    time.sleep(1)
    with start_finetune(arguments(output, "--processes", "3", "--restarts", "0"), folder=place) as running:
        when = file_appears(parts, "window-*/*.answers", 60)
        with kill_after(lambda: running.rank(1).pid, when=when):
            finished = running.wait(MINUTES)
        assert finished.code == 0 and "rank 1: was killed by SIGKILL" in finished.output, finished.output
        assert "replica 1 (rank 1) is given up" in finished.output, finished.output
        assert not running.survivors()
    assert output.read_bytes() == whole


@pytest.mark.parametrize(("number", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, EXIT_STOPPED)])
def test_a_signal_ends_it_within_a_second(place, whole, number, code, finetune):
    output = place / f"stopped-{code}.jsonl"
    with start_finetune(arguments(output, "--processes", "2"), folder=place) as running:
        appears = file_appears(Path(f"{output}.parts"), "window-*/*.answers", 5)
        while not appears():
            assert running.process.poll() is None, running.output()
            time.sleep(0.02)
        running.send(number)
        sent = time.monotonic()
        finished = running.wait(60)
        assert time.monotonic() - sent < 20, "a second, on a machine that does other things"
        assert finished.code == code and "Traceback" not in finished.output, finished.output
        assert not running.survivors()
    assert finetune(*arguments(output), folder=place).code == 0
    assert output.read_bytes() == whole


def test_a_full_disk_leaves_what_is_done(place, whole, tmp_path, finetune):
    with small_disk(tmp_path / "disk", 1 << 20) as disk:
        output = disk / "out.jsonl"
        filler = disk / "filler"
        filler.write_bytes(b"x" * (500 << 10))
        finished = finetune(*arguments(output, "--processes", "2"), folder=place)
        assert finished.code == 1 and "No space left" in finished.output, finished.output
        assert "Traceback" not in finished.output and "restarting" not in finished.output, finished.output
        assert len(finished.output.strip().splitlines()) < 8, finished.output
        filler.unlink()
        subprocess.run(["mount", "-o", "remount,size=64m", str(disk)], check=True)
        finished = finetune(*arguments(output), folder=place)
        assert finished.code == 0, finished.output
        assert output.read_bytes() == whole


def test_standard_input(place, whole):
    command = [sys.executable, "-m", "finetune", *arguments("pipe.jsonl", data="-")]
    with (place / "rows.jsonl").open("rb") as rows:
        done = subprocess.run(
            command, cwd=place, stdin=rows, capture_output=True, text=True, timeout=MINUTES, env=environment()
        )
    assert done.returncode == 0, done.stdout + done.stderr
    assert (place / "pipe.jsonl").read_bytes() == whole
    state = place / "pipe.jsonl.parts/state.json"
    replace(State.read(state), finished=False).save(state)
    with (place / "rows.jsonl").open("rb") as rows:
        done = subprocess.run(
            command, cwd=place, stdin=rows, capture_output=True, text=True, timeout=MINUTES, env=environment()
        )
    assert done.returncode == EXIT_USER and "cannot be read again" in done.stderr


def environment():
    import os

    absent = ("RANK", "WORLD_SIZE")
    return {
        **{name: value for name, value in os.environ.items() if name not in absent},
        "PYTHONPATH": str(ROOT),
        "CUDA_VISIBLE_DEVICES": "",
        "OMP_NUM_THREADS": "1",
    }


def test_what_cannot_go_on_is_refused(place, whole, finetune):
    """Another file, other options, an output of someone else, too many errors."""
    copy = place / "refused.jsonl"
    for name in ("", ".parts"):
        source = place / f"whole.jsonl{name}"
        (shutil.copytree if name else shutil.copyfile)(source, Path(f"{copy}{name}"))
    state = Path(f"{copy}.parts/state.json")
    replace(State.read(state), finished=False).save(state)
    (place / "other.jsonl").write_text('{"text": "another", "id": 1}\n')
    (place / "mine.jsonl").write_text("mine")
    cases = [
        (arguments(copy, data="other.jsonl"), EXIT_USER, "the data is other.jsonl, and was rows.jsonl"),
        (arguments(copy, "--top-k", "2"), EXIT_USER, "--top-k is 2, and was 1"),
        (arguments("mine.jsonl"), EXIT_USER, "exists already"),
        (arguments("strict.jsonl", "--max-errors", "0"), 1, "--max-errors is 0"),
    ]
    for words, code, said in cases:
        finished = finetune(*words, folder=place)
        assert (finished.code, said in finished.output) == (code, True), finished.output
    assert copy.read_bytes() == whole and (place / "mine.jsonl").read_text() == "mine"
    assert not (place / "mine.jsonl.parts").exists()
    finished = finetune(*arguments("strict.jsonl", "--max-errors", "1"), folder=place)
    assert finished.code == 0 and (place / "strict.jsonl").read_bytes() == whole


BIN = Path(sys.executable).parent
PLAIN = ("--mixed_precision", "no", "--dynamo_backend", "no", "-m", "finetune")
LAUNCHERS = {
    "accelerate": (
        "accelerate",
        "launch",
        "--multi_gpu",
        "--num_processes",
        "2",
        "--main_process_port",
        "PORT",
        *PLAIN,
    ),
    "torchrun": ("torchrun", "--nproc_per_node", "2", "--master_port", "PORT", "-m", "finetune"),
    "deepspeed": ("deepspeed", "--num_gpus", "2", "--master_port", "PORT", "--module", "finetune"),
}


def free_port():
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return str(probe.getsockname()[1])


@pytest.fixture(scope="module")
def few(place, finetune):
    """The output of one rank for rows.jsonl's first rows: launchers start ranks, which then share rows as all ranks do."""
    with (place / "rows.jsonl").open() as rows, (place / "few.jsonl").open("w") as file:
        file.writelines([*islice(rows, 400), '{"text": null, "id": "bad"}\n'])
    assert finetune(*arguments("few-answers.jsonl", data="few.jsonl"), folder=place).code == 0
    return (place / "few-answers.jsonl").read_bytes()


@pytest.mark.parametrize("launcher", LAUNCHERS)
def test_a_foreign_launcher_writes_the_same_bytes(place, few, launcher):
    program, *words = LAUNCHERS[launcher]
    if not (BIN / program).exists():
        pytest.skip(f"{program} is not installed")
    port = free_port()
    command = [str(BIN / program), *(port if word == "PORT" else word for word in words)]
    finished = run_finetune(arguments(f"{launcher}.jsonl", data="few.jsonl"), MINUTES, folder=place, program=command)
    assert finished.code == 0, finished.output
    assert finished.output.count("rows answered") == 1 and "2 ranks" in finished.output, finished.output
    assert (place / f"{launcher}.jsonl").read_bytes() == few


def test_two_agents_of_torchrun_write_the_same_bytes(place, few):
    """As on two machines that share a file system: each starts one rank."""
    words = ["--nnodes", "2", "--nproc_per_node", "1", "--master_addr", "127.0.0.1", "--master_port", free_port()]
    starts = [
        start_finetune(
            arguments("agents.jsonl", data="few.jsonl"),
            folder=place,
            program=[str(BIN / "torchrun"), *words, "--node_rank", str(node), "-m", "finetune"],
        )
        for node in range(2)
    ]
    with starts[0] as first, starts[1] as second:
        ends = first.wait(MINUTES), second.wait(MINUTES)
    assert [end.code for end in ends] == [0, 0], ends
    assert (place / "agents.jsonl").read_bytes() == few


def test_tasks_of_srun_write_the_same_bytes(place, few, pool):
    ends = run_warm_tasks(pool, arguments("srun.jsonl", data="few.jsonl"), MINUTES, slurm_tasks(2), folder=place)
    assert [end.code for end in ends] == [0, 0], ends
    assert (place / "srun.jsonl").read_bytes() == few
