"""Watch the ranks of a training, and restart them after a failure. No torch here."""

from __future__ import annotations

from collections.abc import Callable

from finetune.distributed.launch import Launch
from finetune.distributed.watching import run_workers
from finetune.errors import TrainingFailed
from finetune.terminal import keep_output_in, print_beside_view, print_line
from finetune.tracking.run import Run
from finetune.training.checkpoint_manifest import step_of


def supervise(run: Run, launch: Callable[[str], Launch], resume: str, restarts: int) -> None:
    """Run the workers; after a failure restart from the last checkpoint, as long as steps are gained.

    launch: for a value of --resume. Raises: the error of the first failing rank, when restarts are used up or no step
    was gained.
    """
    gained_from = -1
    keep_output_in(run.logs / "launcher.log")
    while True:
        try:
            run_workers(launch(resume), run.logs, print_line, notify_meanwhile=print_beside_view)
            return
        except TrainingFailed as error:
            reached = _last_step(run)
            if restarts <= 0 or reached <= gained_from:
                raise
            restarts, gained_from = restarts - 1, reached
            if reached:  # resume from there, even if --resume named another checkpoint at first
                resume = "auto"
            print_line(f"{error}\nrestarting from step {reached} ({restarts} restarts left)")


def _last_step(run: Run) -> int:
    """The step of the newest published checkpoint; 0 if there is none."""
    steps = (step_of(path.name) for path in run.checkpoints.glob("step-*") if path.is_dir())
    return max((step for step in steps if step is not None), default=0)
