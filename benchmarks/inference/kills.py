"""Kills at random moments while the number of ranks changes: each row once, and the bytes of an undisturbed output.

    python -m benchmarks.inference.kills [--kills 50] [--seed 0]

Each start has 1 to 3 ranks; at a random moment after its first answered chunk, one of them, or all, get SIGKILL. Then the same
output goes on.
"""

from __future__ import annotations

import argparse
import json
import random
import subprocess
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path

from benchmarks.inference.adding_ranks import finish, start
from finetune.inference.prediction.parts import Parts
from finetune.inference.prediction.state import State

ROWS = 60_000
MOST_SECONDS = 1.0  # from the first chunk that a start has answered to its kill


def progress(output: Path) -> tuple[int, int]:
    """(rows in the output, chunks of open windows that are answered)"""
    parts = Parts(output)
    return State.read(parts.state).rows, len(list(parts.folder.glob("window-*/*.answers")))


def wait_for_progress(output: Path, processes: Sequence[subprocess.Popen[str]]) -> None:
    """Until a chunk is answered, or the ranks have ended."""
    before = progress(output)
    while progress(output) == before and any(process.poll() is None for process in processes):
        time.sleep(0.02)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--kills", type=int, default=50)
    parser.add_argument("--seed", type=int, default=0)
    asked = parser.parse_args()
    draw = random.Random(asked.seed)
    with tempfile.TemporaryDirectory() as folder:
        data, output, whole = (Path(folder) / name for name in ("rows.jsonl", "out.jsonl", "whole.jsonl"))
        with data.open("w") as file:
            for _ in range(ROWS):
                file.write(json.dumps({"text": "".join(draw.choices("abcdefgh", k=draw.randint(1, 60)))}) + "\n")
        finish(start(data, whole, [0.0]))
        kills, done, reached = 0, 0, []
        while kills < asked.kills:
            ranks = draw.randint(1, 3)
            processes = start(data, output, [3e-5] * ranks)
            wait_for_progress(output, processes)
            time.sleep(draw.uniform(0.0, MOST_SECONDS))
            victims = processes if draw.random() < 0.5 else [draw.choice(processes)]
            for process in victims:
                process.kill()
            time.sleep(0.05)
            for process in processes:
                process.kill()
                process.communicate()
            kills += 1
            state = State.read(Parts(output).state)
            reached.append(state.rows)
            if state.finished:  # begin again, so that every kill meets a prediction
                assert output.read_bytes() == whole.read_bytes()
                done += 1
                output.unlink()
                Parts(output).state.unlink()
            time.sleep(0.3)  # until the process beside a killed rank 0 is gone
        if not State.read(Parts(output).state).finished:
            finish(start(data, output, [0.0, 0.0]))
        same = output.read_bytes() == whole.read_bytes()
        print(f"{kills} kills, {done + 1} outputs finished, rows after the kills: {reached}")
        print(f"each of {ROWS:,} rows once, and the same bytes: {same}")
        if not same:
            raise SystemExit(1)


if __name__ == "__main__":
    main()
