"""What runs on a forked rank: a training as a launcher would start it, its examples noted, signalled at a chosen step."""

import json
import os
import shutil
import signal
import threading
import time
from contextlib import ExitStack, nullcontext, redirect_stdout, suppress
from pathlib import Path
from typing import Any
from unittest import mock


def train_here(
    folder: str, recipe: str, run_dir: str, sets: list[str], resume: str, signals: dict[Any, tuple[int, int]]
) -> None:
    """signals: step -> (rank, signal), sent by that rank to itself just before it computes this step (1-based; 0: as it
    begins). A number below 0 fills the disk of the run until so many bytes, and one, are left, when saves of earlier steps are
    done; 0 makes the rank's next evaluation raise. (rank, signal, seconds): so much later, wherever it then is; rank -1: every
    rank. "validation-step-00000020" in place of a step: in that evaluation, after the rank's first micro-batch.
    """
    os.chdir(folder)
    from finetune.app import worker
    from finetune.app.dispatch import run_verb
    from finetune.inference.evaluation import Evaluator
    from finetune.training import loop

    rank = int(os.environ["RANK"])
    notes = Path(run_dir) / "notes"
    real_step, real_seed, real_evaluate = loop.train_step, loop.seed_step, Evaluator.evaluate
    at = {"step": 0, "fault": 0}
    filled = min((step for step, (_, number, *_) in signals.items() if number < 0), default=0)
    real_begin = loop.Saver.begin
    began, start = time.time(), os.environ["MASTER_PORT"]  # each start of ranks has another port

    def seed_step(seed: int, step: int, own: int) -> None:
        at["step"] = step + 1
        suffer(step + 1)
        real_seed(seed, step, own)

    def suffer(moment: int | str) -> None:
        who, number, *later = signals.get(moment, (-2, 0))
        if who not in (rank, -1):
            return
        if later:
            timer = threading.Timer(later[0], os.kill, (os.getpid(), number))
            timer.daemon = True
            timer.start()
        elif number == 0:
            at["fault"] = 1
        elif number < 0:
            fill_disk(Path(run_dir), leave=-number - 1)
        else:
            os.kill(os.getpid(), number)

    def begin(saver: Any, step: int, *rest: Any, **options: Any) -> None:
        """A save that the disk is not to fail is done before the disk is full, however busy the machine is."""
        real_begin(saver, step, *rest, **options)
        if step < filled:
            saver.finish()

    def train_step(task: Any, artifacts: Any, engine: Any, batches: Any, **options: Any) -> Any:
        ids = [i for batch, dummy in zip(batches, options["dummies"], strict=True) if not dummy for i in batch.ids]
        result = real_step(task, artifacts, engine, batches, **options)
        notes.mkdir(exist_ok=True)
        with (notes / f"{engine.session.world_size}-ranks-{rank}.jsonl").open("a") as file:
            file.write(json.dumps({"step": at["step"], "ids": ids, "began": began, "start": start}) + "\n")
        return result

    def evaluate(evaluator: Evaluator, *rest: Any, **options: Any) -> Any:
        decode = evaluator.task.decode

        def decode_first(*given: Any) -> Any:
            suffer(options["out"].stem)
            return decode(*given)

        if not at["fault"]:
            with mock.patch.object(evaluator.task, "decode", decode_first):
                return real_evaluate(evaluator, *rest, **options)
        with mock.patch.object(evaluator.task, "decode", raise_fault):
            return real_evaluate(evaluator, *rest, **options)

    said = Path(run_dir) / "logs" / f"said-{rank}.txt"  # line by line: a rank may end without a flush
    said.parent.mkdir(parents=True, exist_ok=True)
    suffer(0)
    with ExitStack() as stack:
        stack.enter_context(redirect_stdout(stack.enter_context(said.open("a", buffering=1))))
        # This process trains again, and W&B's folder, made when it was imported, is to stay.
        stack.enter_context(mock.patch.object(worker, "own_temporary_folder", nullcontext))
        stack.enter_context(mock.patch.object(loop, "train_step", train_step))
        stack.enter_context(mock.patch.object(loop, "seed_step", seed_step))
        stack.enter_context(mock.patch.object(loop.Saver, "begin", begin))
        stack.enter_context(mock.patch.object(Evaluator, "evaluate", evaluate))
        run_verb("train", recipe=recipe, sets=sets, processes=None, run_dir=Path(run_dir), resume=resume, restarts=0)


def raise_fault(*arguments: Any, **options: Any) -> Any:
    raise ValueError("a fault of this rank alone")


def fill_disk(folder: Path, *, leave: int) -> Path:
    """A file that takes all the space but `leave` bytes; its path."""
    filler = folder / "filler"
    with filler.open("ab", buffering=0) as file, suppress(OSError):
        while (left := shutil.disk_usage(folder).free - leave) > 0:
            file.write(bytes(min(left, 1 << 20)))
    return filler


def ids_by_step(run: Path) -> dict[int, list[int]]:
    """Examples of each step, over all ranks; sorted. An example computed twice is there twice. A step that was computed
    again after a kill counts as it was computed last.
    """
    notes = [json.loads(line) for path in (run / "notes").glob("*.jsonl") for line in path.read_text().splitlines()]
    last = {note["step"]: note["start"] for note in sorted(notes, key=lambda note: note["began"])}
    found: dict[int, list[int]] = {}
    for note in notes:
        if note["start"] == last[note["step"]]:
            found.setdefault(note["step"], []).extend(note["ids"])
    return {step: sorted(ids) for step, ids in sorted(found.items())}


USR1, TERM, KILL = signal.SIGUSR1, signal.SIGTERM, signal.SIGKILL
