"""Predictions whose ranks are killed at random moments while their number changes: each row once, the bytes undisturbed.

The ranks are those of `finetune predict` with a tiny model, forked as a launcher would start them, and die of real signals.
`tests/e2e/test_predict_kills.py` does it a few times, `python -m benchmarks.inference.kills` and `make soak` often.
"""

from __future__ import annotations

import collections
import json
import os
import random
import shutil
import signal
import time
from contextlib import ExitStack
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any
from unittest import mock

from finetune.inference.prediction.parts import Parts
from finetune.inference.prediction.state import State
from tests.ranks import RankError, Ranks

WORDS = ["a", "good", "bad", "dull", "fine", "film", "plot", "and", "was", "the", "very"]
MOST_SECONDS = 1.2  # from the moment that a victim begins to the kill
FAULTS = {"one rank": 0.4, "rank 0": 0.15, "all ranks": 0.15, "the process beside rank 0": 0.15, "while starting": 0.15}
OUT_OF_MEMORY = 0.03  # share of the batches, where memory runs out


@dataclass(frozen=True)
class Kill:
    """kind: of FAULTS. rank: the victim, -1 for all. seconds: after it has begun, or after its process was asked."""

    kind: str
    rank: int
    seconds: float


@dataclass
class Kills:
    """What happened: kills by kind, starts that ended before their kill, outputs that were finished and compared."""

    kinds: collections.Counter[str] = field(default_factory=collections.Counter)
    survived: int = 0
    outputs: int = 0
    worst: float = 0.0  # difference of scores

    @property
    def count(self) -> int:
        return sum(self.kinds.values())

    def describe(self) -> str:
        kinds = ", ".join(f"{count} {kind}" for kind, count in self.kinds.most_common())
        return f"{self.count} kills ({kinds}), {self.survived} starts ended before; {self.outputs} outputs compared"


def make_place(folder: Path, rows: int) -> Path:
    """A run without training, and rows.jsonl; row 7 is bad."""
    import torch

    from tests.contract.examples import EXAMPLES
    from tests.prepared import prepare
    from tests.stored_runs import store_run, trained_like

    torch.set_num_threads(1)
    example = next(example for example in EXAMPLES if example.task == "text_classification")
    prepared = prepare(example.recipe(folder))
    store_run(prepared, trained_like(prepared.build()), folder)
    draw = random.Random(1)
    with (folder / "rows.jsonl").open("w") as file:
        for number in range(rows):
            text = " ".join(draw.choices(WORDS, k=min(40, int(draw.lognormvariate(1.5, 0.7)) + 1)))
            file.write(json.dumps({"text": text if number != 7 else None, "id": f"n{number}"}) + "\n")
    return folder


def predict_here(folder: str, output: str, window_rows: int, kill: Kill | None, memory_runs_out: bool) -> None:
    """On a rank: `finetune predict`, and its end by a signal that no handler sees."""
    os.chdir(folder)
    import torch

    from finetune.app.predict_options import PredictOptions
    from finetune.app.workers import predict, prediction_reading
    from finetune.inference.batches import BatchAnswerer
    from finetune.inference.prediction import keeper
    from finetune.inference.prediction.rank_loop import RankLoop

    rank, draw, real_answer = int(os.environ["RANK"]), random.Random(), BatchAnswerer._answer

    def armed(real: Any, kinds: tuple[str, ...]) -> Any:
        def begin(*arguments: Any) -> Any:
            if kill is not None and kill.kind in kinds and kill.rank in (rank, -1):
                arm(kill.seconds)
            return real(*arguments)

        return begin

    def answer(self: Any, batch: Any, *arguments: Any) -> Any:
        if memory_runs_out and len(batch.ids) > 1 and draw.random() < OUT_OF_MEMORY:
            raise torch.OutOfMemoryError("on purpose")
        return real_answer(self, batch, *arguments)

    if kill is not None and kill.kind == "while starting" and kill.rank == rank:
        arm(kill.seconds)
    with ExitStack() as stack:
        stack.callback(signal.setitimer, signal.ITIMER_REAL, 0)  # the kill is meant for this start alone
        enter = stack.enter_context
        enter(mock.patch.object(prediction_reading, "WINDOW_ROWS", window_rows))
        enter(mock.patch.object(RankLoop, "run", armed(RankLoop.run, ("one rank", "rank 0", "all ranks"))))
        enter(mock.patch.object(keeper.Keeper, "run", armed(keeper.Keeper.run, ("the process beside rank 0",))))
        enter(mock.patch.object(BatchAnswerer, "_answer", answer))
        data = str(Path(folder) / "rows.jsonl")
        options = PredictOptions(
            str(Path(folder) / "run"), (data,), Path(output), keep=("id",), budget=256, processes=1
        )
        predict.work(options=options)


def arm(seconds: float) -> None:
    """SIGALRM without a handler ends this process wherever it then is, as SIGKILL would; and no thread has to wait for it."""
    signal.signal(signal.SIGALRM, signal.SIG_DFL)
    signal.setitimer(signal.ITIMER_REAL, max(seconds, 1e-4))


def choose_kill(draw: random.Random, ranks: int) -> Kill:
    kind = draw.choices(list(FAULTS), weights=list(FAULTS.values()))[0]
    seconds = draw.uniform(0, MOST_SECONDS)
    rank = {"rank 0": 0, "the process beside rank 0": 0, "all ranks": -1}.get(kind, draw.randrange(ranks))
    return Kill(kind, rank, seconds)


class KilledPredictions:
    """In a folder of `make_place`. whole: the output that nothing disturbed."""

    def __init__(self, pool: Ranks, folder: Path, *, window_rows: int = 2_000) -> None:
        self.pool = pool.options(open_group=False, timeout=120)
        self.folder, self.window_rows = folder, window_rows
        whole = folder / "whole.jsonl"
        self._start(1, whole, None)
        self.whole = whole.read_bytes()
        self.rows = self.whole.count(b"\n")

    def kill(self, kills: int, seed: int, *, memory_runs_out: bool = False, until: float = float("inf")) -> Kills:
        """Start, kill and go on, on 1 to 3 ranks, until there were so many kills, or time.monotonic() is `until`.

        Raises: AssertionError for an output that is not as it should be, or a chunk that was blamed.
        """
        draw, done = random.Random(seed), Kills()
        output = self.folder / f"killed-{seed}.jsonl"
        while done.count < kills and time.monotonic() < until:
            ranks = draw.randint(1, 3)
            kill = choose_kill(draw, ranks)
            try:
                self._start(ranks, output, kill, memory_runs_out=memory_runs_out)
                done.survived += 1
            except RankError as ended:
                self._check_ended(ended, output)
                done.kinds[kill.kind] += 1
            if State.read(Parts(output).state).finished:
                self._compare(output, done, memory_runs_out)
            print(
                f"{done.count:4d} {kill.kind:26s} of {ranks}, {State.read(Parts(output).state).rows:,} rows", flush=True
            )
        self._start(2, output, None, memory_runs_out=memory_runs_out)
        self._compare(output, done, memory_runs_out)
        return done

    def _start(self, ranks: int, output: Path, kill: Kill | None, *, memory_runs_out: bool = False) -> None:
        wait_until_free(Parts(output))
        arguments = (str(self.folder), str(output), self.window_rows, kill, memory_runs_out)
        self.pool.run(ranks, predict_here, *arguments)

    def _check_ended(self, ended: RankError, output: Path) -> None:
        blamed = [path.name for path in Parts(output).folder.glob("window-*/*") if path.suffix in (".failed", ".lost")]
        assert not blamed, f"chunks are blamed for a kill: {blamed}\n{ended}"
        said = [path.read_text() for path in Parts(output).logs.glob("failure-rank-*.json")]
        assert all(
            "was killed" in text or "rank 0 can no longer" in text or "reads the data" in text for text in said
        ), said

    def _compare(self, output: Path, done: Kills, memory_runs_out: bool) -> None:
        """The finished output with the undisturbed one; then it is removed, so that every kill meets a prediction."""
        found = output.read_bytes()
        if not memory_runs_out:
            assert found == self.whole, f"{output} differs from the undisturbed output"
        else:
            done.worst = max(done.worst, compare_closely(found, self.whole))
        done.outputs += 1
        output.unlink()
        shutil.rmtree(Parts(output).folder)


def compare_closely(found: bytes, expected: bytes) -> float:
    """The largest difference of two scores. Raises: AssertionError for other rows, labels or errors, or a large one."""
    ours, theirs = ([json.loads(line) for line in text.splitlines()] for text in (found, expected))
    scores = [[line.pop("score", 0.0) for line in lines] for lines in (ours, theirs)]
    assert ours == theirs, "rows, labels or errors differ"
    worst = max(abs(mine - other) for mine, other in zip(*scores, strict=True))
    assert worst < 1e-5, f"scores differ by {worst:.1e}"
    return worst


def wait_until_free(parts: Parts, seconds: float = 10.0) -> None:
    """Until the process beside a killed rank 0 is gone, which holds the lock of the output."""
    import fcntl

    if not (parts.folder / "lock").exists():
        return
    ends = time.monotonic() + seconds
    with (parts.folder / "lock").open("r+") as file:
        while time.monotonic() < ends:
            try:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
                return
            except OSError:
                time.sleep(0.02)
