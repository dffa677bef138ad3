"""Kills at random moments while the number of ranks changes: each row once, and the bytes of an undisturbed output.

    python -m benchmarks.inference.kills [--kills 50] [--seed 0]

Each start has 1 to 3 ranks; after a random time one of them, or all, get SIGKILL. Then the same output goes on.
"""

from __future__ import annotations

import argparse
import json
import random
import tempfile
import time
from pathlib import Path

from benchmarks.inference.adding_ranks import finish, start
from finetune.inference.prediction.parts import Parts
from finetune.inference.prediction.state import State

ROWS = 60_000
MOST_SECONDS = 5.0  # from a start to its kill: the import of torch takes half of it


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
            # Later and later, or the end would be reached before the last kill.
            time.sleep(draw.uniform(1.0, MOST_SECONDS))
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
