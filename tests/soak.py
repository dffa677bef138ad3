"""Trains to the end while random ranks are killed at random moments, and compares with an undisturbed run: `make soak`.

    python -m tests.soak [--kills 50] [--seed 0] [--elastic 20] [--predictions 20]

First under one layout (2 ranks, ZeRO-2, dropout on): ids, every row and the model's bytes must be the same. Then the
number of ranks and the ZeRO stage change at each start (dropout off): ids the same, losses within 1e-5. The ranks are
real processes that die of real signals, forked as a launcher would start them; `tests/e2e` kills through the launchers.
Then predictions (tests/kills.py): every row once, and the bytes of an undisturbed output.
"""

from __future__ import annotations

import argparse
import collections
import os
import random
import shutil
import signal
import sys
import tempfile
import time
from dataclasses import dataclass, field
from pathlib import Path

from finetune.distributed.prebuild import choose_cache
from finetune.training.checkpoint_reader import find_checkpoints, open_checkpoint
from tests.e2e import tiny
from tests.e2e.conftest import Ended, Workers
from tests.e2e.inside import ids_by_step
from tests.kills import KilledPredictions, make_place
from tests.ranks import RankError, Ranks

STEPS = 240
FAULTS = {
    "SIGKILL of one rank": 0.65, "SIGKILL of all ranks": 0.15, "SIGTERM": 0.07, "SIGUSR1": 0.07,
    "SIGKILL while starting": 0.06,
}  # fmt: skip
LAYOUTS = [(1, "none"), (1, "zero2"), (2, "none"), (2, "zero1"), (2, "zero2"), (2, "zero3"), (3, "zero1"), (3, "zero3")]


@dataclass
class Log:
    """What happened: faults by kind, starts, steps computed again, and how often a save was cut in two."""

    faults: collections.Counter[str] = field(default_factory=collections.Counter)
    starts: int = 0
    halves: int = 0

    @property
    def kills(self) -> int:
        return sum(self.faults.values())


def choose_fault(draw: random.Random, ranks: int, at: int) -> tuple[str, dict[int, tuple[float, ...]]]:
    """Its kind, and when: after one of the next steps and up to 0.3 s more, or within 2 s of the start."""
    kind = draw.choices(list(FAULTS), weights=list(FAULTS.values()))[0]
    rank = -1 if kind == "SIGKILL of all ranks" else draw.randrange(ranks)
    if kind == "SIGKILL while starting":
        return kind, {0: (rank, signal.SIGKILL, draw.uniform(0, 2))}
    number = {"SIGTERM": signal.SIGTERM, "SIGUSR1": signal.SIGUSR1}.get(kind, signal.SIGKILL)
    return kind, {at + draw.randint(1, 9): (rank, number, draw.uniform(0, 0.3))}


def soak(workers: Workers, name: str, recipe: str, kills: int, seed: int, layouts: list[tuple[int, str]]) -> Log:
    """Start again and again until the training is done and `kills` faults have happened."""
    draw, log, run = random.Random(seed), Log(), workers.folder / name
    while True:
        published = find_checkpoints(run / "checkpoints")
        at = open_checkpoint(published[0]).step if published else 0  # the newest is whole, whatever was killed
        ranks, stage = draw.choice(layouts)
        kind, signals = choose_fault(draw, ranks, at)
        log.starts += 1
        try:
            workers.train(
                ranks, name, f"parallel.deepspeed={stage}", recipe=recipe, signals=signals if log.kills < kills else {}
            )
            if log.kills >= kills:
                return log
            sys.exit(f"only {log.kills} faults happened before the end: more steps are needed")
        except (Ended, RankError):
            log.faults[kind] += 1
            log.halves += any(run.glob("checkpoints/*.incomplete"))
        print(f"{log.kills:4d} {kind:24s} from step {at}, {ranks} ranks, {stage}", flush=True)


def computed_again(run: Path) -> int:
    """Steps that were computed more than once, as often as that was."""
    starts: dict[int, set[float]] = {}
    for path in (run / "notes").glob("*-0.jsonl"):
        for line in path.read_text().splitlines():
            step, began = (float(part) for part in _numbers(line))
            starts.setdefault(int(step), set()).add(began)
    return sum(len(found) - 1 for found in starts.values())


def _numbers(line: str) -> tuple[float, float]:
    import json

    note = json.loads(line)
    return note["step"], note["began"]


def compare_exactly(run: Path, undisturbed: Path) -> list[str]:
    problems = [] if ids_by_step(run) == ids_by_step(undisturbed) else ["ids differ"]
    if tiny.comparable(run) != tiny.comparable(undisturbed):
        problems.append("rows of metrics.jsonl differ")
    models = [(one / "model" / "model.safetensors").read_bytes() for one in (run, undisturbed)]
    return problems + ([] if models[0] == models[1] else ["the models differ"])


def compare_closely(run: Path, undisturbed: Path) -> tuple[list[str], float]:
    problems = [] if ids_by_step(run) == ids_by_step(undisturbed) else ["ids differ"]
    ours, theirs = tiny.losses(run), tiny.losses(undisturbed)
    if list(ours) != list(theirs):
        return [*problems, "steps differ"], float("inf")
    worst = max(abs(ours[step] - theirs[step]) / theirs[step] for step in ours)
    return problems + ([] if worst < 1e-5 else [f"losses differ by {worst:.1e}"]), worst


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--kills", type=int, default=50)
    parser.add_argument("--elastic", type=int, default=20)
    parser.add_argument("--predictions", type=int, default=20)
    parser.add_argument("--seed", type=int, default=0)
    asked = parser.parse_args()
    os.environ.update(TORCH_EXTENSIONS_DIR=str(choose_cache()), OMP_NUM_THREADS="1")
    folder = Path(tempfile.mkdtemp(prefix="finetune-soak-"))
    os.environ["XDG_CACHE_HOME"] = str(folder / "cache")
    tiny.write_data(folder)
    epochs = STEPS * tiny.GLOBAL_BATCH // tiny.TRAIN_ROWS
    training = {**tiny.recipe()["training"], "epochs": epochs, "learning_rate": 1e-3}
    tiny.write_recipe(folder, "soak.yaml", training=training)
    model = tiny.recipe()["model"]
    model["config"] |= {"hidden_dropout_prob": 0.0, "attention_probs_dropout_prob": 0.0}
    tiny.write_recipe(folder, "calm.yaml", training=training, model=model)
    (folder / "ranks").mkdir()
    pool = Ranks(folder / "ranks")
    workers = Workers(pool.options(open_group=False, timeout=600), folder)
    began, problems = time.monotonic(), []
    try:
        workers.train(2, "straight", recipe="soak.yaml")
        log = soak(workers, "soaked", "soak.yaml", asked.kills, asked.seed, [(2, "zero2")])
        problems += compare_exactly(folder / "soaked", folder / "straight")
        notify("one layout, dropout on", log, folder / "soaked", "ids, rows and model bit for bit")
        if asked.elastic:
            workers.train(2, "calm", recipe="calm.yaml")
            log = soak(workers, "elastic", "calm.yaml", asked.elastic, asked.seed + 1, LAYOUTS)
            found, worst = compare_closely(folder / "elastic", folder / "calm")
            problems += found
            notify("ranks and stages changing", log, folder / "elastic", f"ids the same, losses within {worst:.1e}")
        if asked.predictions:
            (folder / "predictions").mkdir()
            killed = KilledPredictions(pool, make_place(folder / "predictions", 5_000))
            done = killed.kill(asked.predictions, asked.seed)
            print(f"\npredictions: {done.describe()}; each of {killed.rows:,} rows once, the same bytes\n", flush=True)
    finally:
        pool.close()
    print(f"{time.monotonic() - began:.0f} s; " + ("; ".join(problems) if problems else "nothing lost, nothing twice"))
    if problems:
        sys.exit(f"kept in {folder}")
    shutil.rmtree(folder)


def notify(name: str, log: Log, run: Path, agreed: str) -> None:
    kinds = ", ".join(f"{count} {kind}" for kind, count in log.faults.most_common())
    print(f"\n{name}: {log.kills} faults ({kinds}) in {log.starts} starts, {STEPS} steps; {computed_again(run)} steps ")
    print(f"computed again, {log.halves} saves cut in two; compared with the undisturbed run: {agreed}\n", flush=True)


if __name__ == "__main__":
    main()
