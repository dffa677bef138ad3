"""`finetune sweep` whose trials are trained by the stand-in below: a program for test_sweep.py.

    python -m tests.e2e.sweep_program sweep RECIPE ...        the sweep
    python -m tests.e2e.sweep_program --trial RECIPE ...      a trial: 40 steps, each some milliseconds

A trial keeps its run folder as a training does (run.json, metrics.jsonl, a checkpoint's step), saves and ends with code 75
on SIGTERM, and goes on there. After an evaluation it waits until the sweep has looked twice: from then on, the sweep has read
it, and has asked the trial to pause if it does so at all, however crowded the machine is. Its accuracy is 1 minus the
distance of log10(learning rate) from -3, times its progress.
label_smoothing 0.5 breaks it at step 6, 0.6 has it killed there, 0.7 gives a loss that is not finite.
"""

from __future__ import annotations

import math
import os
import signal
import sys
import time
from pathlib import Path

from finetune import cli
from finetune.app import runs
from finetune.app import sweep as command
from finetune.app.opening import open_recipe
from finetune.app.sweeping import process, runner
from finetune.app.sweeping.halving import Decision
from finetune.tracking.journal import Journal

STEPS, EVERY, SECONDS = 40, 5, 0.02
LOOKS = "looks"  # a file of the sweep, which grows by a byte when it has looked at its trials


def train(words: list[str]) -> int:
    sets = [words[index + 1] for index, word in enumerate(words) if word == "--set"]
    folder = Path(words[words.index("--run-dir") + 1])
    asked: list[int] = []
    signal.signal(signal.SIGTERM, lambda number, frame: asked.append(number))
    loaded = open_recipe(words[0], sets)
    run = runs.choose_run(loaded, folder, "auto")
    if run is None:
        return 0
    training = loaded.recipe.training
    kept = folder / "checkpoints" / "step"
    begun = step = int(kept.read_text()) if kept.is_file() else 0
    journal = Journal(run)
    journal.started(start_step=step, total_steps=STEPS, steps_per_epoch=EVERY, facts={})
    best = 0.0
    while step < STEPS:
        time.sleep(SECONDS)
        step += 1
        journal.step(step=step, epoch=step / EVERY, progress={})
        if step == 6 and training.label_smoothing == 0.5:
            print("error: rank 0, step 6: the loss is nan\n  lower the learning rate", flush=True)
            journal.finished(status="failed", summary={})
            return 1
        if step == 6 and training.label_smoothing == 0.6:
            os.kill(os.getpid(), signal.SIGKILL)
        if step % EVERY == 0:
            accuracy = (1 - abs(math.log10(training.learning_rate) + 3)) * (0.5 + step / STEPS / 2)
            accuracy = math.nan if training.label_smoothing == 0.7 else accuracy
            best = max(best, accuracy)
            journal.row({"step": step, "epoch": step / EVERY, "split": "validation", "accuracy": accuracy, "loss": 0.1})
            enough = looks(folder.parent) + 2
            while not asked and looks(folder.parent) < enough:
                time.sleep(0.005)
        if asked and step < STEPS:
            kept.write_text(str(step))
            journal.finished(status="stopped", summary={})
            print(f"{folder.name}: steps {begun} to {step}", flush=True)
            return 75
    journal.finished(status="done", summary={"best_metric": "accuracy", "best_value": best, "steps": step})
    return 0


def looks(sweep: Path) -> int:
    """How often the sweep has looked at its trials."""
    file = sweep / LOOKS
    return file.stat().st_size if file.exists() else 0


class CountedRunner(runner.Runner):
    def _look(self) -> Decision:
        decision = super()._look()
        if self.state.folder.is_dir():
            with (self.state.folder / LOOKS).open("ab") as file:
                file.write(b".")
        return decision


if __name__ == "__main__":
    if sys.argv[1] == "--trial":
        sys.exit(train(sys.argv[2:]))
    command.Runner = CountedRunner  # type: ignore[misc]
    process.PROGRAM = (sys.executable, "-m", "tests.e2e.sweep_program", "--trial")
    cli.main(sys.argv[1:])
