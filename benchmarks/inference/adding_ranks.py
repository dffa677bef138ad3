"""One rank of a prediction without a model, for measurements of everything around it: windows, queue, files, output.

    RANK=0 WORLD_SIZE=1 ... python -m benchmarks.inference.adding_ranks DATA OUTPUT SECONDS

DATA: JSON lines with a "text". SECONDS: that this rank takes per letter, asleep, so that ranks do not compete for the cores
of this machine. An answer is the sum of the letters. `start` starts several such ranks from Python.
"""

from __future__ import annotations

import json
import os
import resource
import socket
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path

from finetune.data.sources.source_stream import open_stream
from finetune.distributed.env import DistributedEnv, as_environ, from_environ
from finetune.distributed.launch import die_with_parent
from finetune.distributed.session import Session
from finetune.inference.prediction.board import GroupBoard
from finetune.inference.prediction.keeper import start_keeper
from finetune.inference.prediction.parts import Parts
from finetune.inference.prediction.rank_loop import RankLoop
from finetune.inference.prediction.relay import Relay, announce_figures, gather_figures
from finetune.recipe.data import SourceSection
from finetune.tasks.text_classification.card import CARD
from tests import asking

BUDGET = 2_048
KIB = 1024


class Making:
    """What the process that reads and writes makes."""

    def __init__(self, data: Path, output: Path) -> None:
        self.data, self.output = data, output

    def __call__(self):
        stream = open_stream([SourceSection(source=str(self.data))], CARD)
        return asking.make(asking.asked(stream, budget=BUDGET, window_rows=8192), self.output)


def run(data: Path, output: Path, seconds: float) -> None:
    """This process as one of the ranks; rank 0 prints a line of JSON at the end."""
    env = from_environ()
    process = connection = None
    if env is None or env.rank == 0:
        Parts(output).folder.mkdir(parents=True, exist_ok=True)
        process, connection = start_keeper(Making(data, output), None, apart=True)
    session = Session.open(None, precision="fp32", cpu=True)
    session.wait()
    relay, board = None, GroupBoard(session)
    if connection is not None:
        relay = Relay(board, Parts(output), connection, lambda state, share: None, print)
    answerer = asking.AddingAnswerer(budget=BUDGET, seconds=seconds)
    recorder = asking.recorder()
    began = time.monotonic()
    figures = RankLoop(session, board, Parts(output), answerer, recorder.splitter, recorder, asking.cost).run()
    announce_figures(board, figures.to_dict())
    if relay is not None:
        state = relay.wait()
        seconds_taken = time.monotonic() - began
        ranks = gather_figures(board, lambda: range(session.world_size))
        if process is not None:
            process.join()  # or its memory is not known
        peaks = [resource.getrusage(who).ru_maxrss * KIB for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN)]
        print(
            json.dumps({"seconds": seconds_taken, "rows": state.rows, "ranks": ranks, "peak_bytes": peaks}), flush=True
        )
    session.close()


def start(data: Path, output: Path, seconds: Sequence[float]) -> list[subprocess.Popen[str]]:
    """One process per rank; rank 0 first. seconds: per letter, by rank."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    processes = []
    for rank, slowness in enumerate(seconds):
        env = DistributedEnv(rank, len(seconds), rank, len(seconds), "environment", "127.0.0.1", port)
        command = [sys.executable, "-m", "benchmarks.inference.adding_ranks", str(data), str(output), str(slowness)]
        processes.append(
            subprocess.Popen(
                command,
                env={**os.environ, **as_environ(env), "OMP_NUM_THREADS": "1", "DS_ACCELERATOR": "cpu"},
                stdout=subprocess.PIPE,
                text=True,
                preexec_fn=die_with_parent,
            )
        )
    return processes


def finish(processes: Sequence[subprocess.Popen[str]]) -> dict:
    """What rank 0 printed. Raises: RuntimeError if a rank failed."""
    outputs = [process.communicate()[0] for process in processes]
    if any(process.returncode for process in processes):
        raise RuntimeError(f"ranks ended with {[process.returncode for process in processes]}: {outputs}")
    return json.loads(outputs[0].strip().splitlines()[-1])


if __name__ == "__main__":
    run(Path(sys.argv[1]), Path(sys.argv[2]), float(sys.argv[3]))
