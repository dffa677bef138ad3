"""Proves that a training that fails leaves no temporary file and no process, and that Ctrl-C in the first seconds is no
traceback, whatever is being imported.
"""

from __future__ import annotations

import os
import signal
import sys
import time

import pytest

from finetune.distributed.temporary_folder import COMPILED
from tests.e2e.conftest import MINUTES
from tests.faults import start_finetune

ALONE = ["--set", "parallel.processes=1", "--set", "parallel.deepspeed=none", "--set", "tracking.wandb=offline"]


@pytest.mark.parametrize("variables", [{}, {"RANK": "0", "WORLD_SIZE": "1"}], ids=["supervised", "of another launcher"])
def test_a_step_that_fails_leaves_nothing_temporary_and_no_process(workplace, temporary, tmp_path, variables):
    """What is stopped, killed, or comes to its end: test_stops.py, test_stop_alone.py."""
    sets = [*ALONE, "--set", "training.learning_rate=1e30"]
    arguments = ["train", "tiny.yaml", "--run-dir", str(tmp_path / "run"), *sets]
    environment = {"TMPDIR": str(temporary), COMPILED: str(tmp_path / "compiled"), **variables}
    with start_finetune(arguments, folder=workplace, environment=environment) as running:
        finished = running.wait(MINUTES)
        end = time.monotonic() + 30
        while running.survivors():  # W&B's service ends when it reads the end of the rank
            assert time.monotonic() < end, running.survivors()
            time.sleep(0.1)
    assert finished.code == 1 and "the loss is nan" in finished.output, finished.output
    assert (tmp_path / "run" / "wandb").is_dir()
    assert not list(temporary.iterdir())


# Sends Ctrl-C, as a terminal does to all of the group, when a module is looked for, or the process that prepares data starts.
INTERRUPTED = """
import os, signal, sys
moment = os.environ["MOMENT"]
if __name__ != "__main__" and moment == "the child":
    os.killpg(0, signal.SIGINT)
if __name__ == "__main__":
    class Interrupting:
        def find_spec(self, name, path=None, target=None):
            if name == moment:
                sys.meta_path.remove(self)
                os.killpg(0, signal.SIGINT)
    sys.meta_path.insert(0, Interrupting())
    from finetune.__main__ import main
    main()
"""


@pytest.mark.parametrize("moment", ["typer", "finetune.app.train", "finetune.distributed.watching", "the child"])
def test_ctrl_c_before_there_is_anything_to_save_is_one_word(workplace, temporary, tmp_path, moment):
    program = tmp_path / "program.py"
    program.write_text(INTERRUPTED)
    arguments = ["train", "tiny.yaml", "--run-dir", str(tmp_path / "run")]
    cache = str(tmp_path / "cache")  # in which nothing is prepared
    environment = {"TMPDIR": str(temporary), "MOMENT": moment, "XDG_CACHE_HOME": cache}
    program_here = (sys.executable, str(program))
    with start_finetune(arguments, folder=workplace, environment=environment, program=program_here) as running:
        finished = running.wait(MINUTES)
    assert (finished.code, finished.output.splitlines()[-1]) == (130, "interrupted"), finished.output
    assert "Traceback" not in finished.output
    assert not list(temporary.iterdir()) and not (tmp_path / "run").exists()


def test_ctrl_c_while_the_ranks_start_is_a_sentence(workplace, temporary, tmp_path):
    arguments = ["train", "tiny.yaml", "--run-dir", str(tmp_path / "run")]
    environment = {"TMPDIR": str(temporary), COMPILED: str(tmp_path / "compiled")}
    with start_finetune(arguments, folder=workplace, environment=environment) as running:
        while "starting 2 ranks" not in running.output() or not list(temporary.iterdir()):
            assert running.process.poll() is None, running.output()
            time.sleep(0.01)
        os.killpg(running.process.pid, signal.SIGINT)
        finished = running.wait(MINUTES)
        assert finished.code == 75, finished.output
        assert "Traceback" not in finished.output and "stopped: while the processes were starting" in finished.output
        assert not list(temporary.iterdir()) and not running.survivors()
