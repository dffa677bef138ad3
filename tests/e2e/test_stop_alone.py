"""Proves that a single process without DeepSpeed, which gets no RANK from its launcher, saves and stops on request too."""

import json
import signal
import sys
import time

import pytest

from finetune.distributed.temporary_folder import COMPILED
from tests.e2e import tiny
from tests.e2e.conftest import MINUTES
from tests.faults import start_finetune, text_appears

ALONE = ["--set", "parallel.processes=1", "--set", "parallel.deepspeed=none", "--set", "training.epochs=100000"]
WANDB = ["--set", "tracking.wandb=offline"]  # whose copies of tables are temporary files
ACCELERATE = (sys.executable, "-m", "accelerate.commands.launch", "--num_processes", "1", "--cpu", "-m", "finetune")
TORCHRUN = (sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node", "1", "-m", "finetune")


@pytest.mark.parametrize(
    ("launcher", "number", "code"),
    [
        ((), signal.SIGTERM, 75),
        ((), signal.SIGUSR1, 75),
        (ACCELERATE, signal.SIGTERM, None),
        (TORCHRUN, signal.SIGUSR1, None),
    ],
    ids=["SIGTERM", "SIGUSR1", "accelerate launch", "torchrun that dies of it"],
)
def test_a_single_process_saves_and_stops(workplace, temporary, tmp_path, launcher, number, code):
    """code: of the process that got the signal, where it is ours and not a launcher's."""
    run = tmp_path / "run"
    given = {"program": launcher} if launcher else {}
    environment = {"TMPDIR": str(temporary), COMPILED: str(tmp_path / "compiled")}
    command = ["train", "tiny.yaml", "--run-dir", str(run), "--resume", "auto", *ALONE, *WANDB]
    with start_finetune(command, folder=workplace, environment=environment, **given) as running:
        while not text_appears(run / "metrics.jsonl", '"step": 3,')():
            assert running.process.poll() is None, running.output()
        running.send(number)
        ended = running.wait(MINUTES)
        end = time.monotonic() + 60
        while running.survivors():  # a launcher may end before the process that it started
            assert time.monotonic() < end, running.output()
            time.sleep(0.1)
    assert code is None or ended.code == code, ended.output
    assert json.loads((run / "run.json").read_text())["status"] == "stopped", ended.output
    left = [path.name for path in temporary.iterdir() if not path.name.startswith("torchelastic_")]
    assert not left, "torchrun's own folder is its own"
    last = tiny.rows(run)[-1]["step"]
    assert (run / "checkpoints" / f"step-{last:08d}" / "manifest.json").is_file(), ended.output
