"""Our side: the real command line, watched through metrics.jsonl, and ended before it would write a checkpoint."""

from __future__ import annotations

import json
from collections.abc import Sequence
from itertools import pairwise
from pathlib import Path
from typing import Any

from benchmarks.gpu.jobs import Job, python

TOKENS = "positions_per_second"  # in the journal: all tokens that are no padding, the first of each row among them
IMAGES = "units_per_second"
WARM_STEPS = 4  # not timed; the fourth is traced


def job(
    name: str,
    folder: Path,
    recipe: dict[str, Any],
    *,
    steps: int,
    rate: str = TOKENS,
    changes: Sequence[str] = (),
    profile: Path | None = None,
) -> Job:
    """`finetune train` on a recipe, until `steps` are done.

    rate: TOKENS or IMAGES. changes: KEY=VALUE, as --set takes them. profile: the two steps after the timed ones are
    profiled, into this file.
    """
    run = folder / f"run-{name}"
    path = folder / f"{name}.yaml"
    path.write_text(json.dumps({"name": name, **recipe}))  # JSON is YAML
    arguments = ["train", str(path), "--run-dir", str(run)]
    for change in changes:
        arguments += ["--set", change]
    metrics = run / "metrics.jsonl"
    command = python("finetune", *arguments)
    if profile is not None:
        command = python("benchmarks.gpu.profiled_training", profile, steps, *arguments)

    def watch() -> dict[str, Any] | None:
        return measured(metrics, steps, rate) if profile is None or profile.is_file() else None

    return Job(name, command, folder / f"{name}.log", watch=watch, salvage=lambda: measured(metrics, steps, rate))


def measured(metrics: Path, steps: int, rate: str = TOKENS) -> dict[str, Any] | None:
    """Seconds per step, rate and peak memory, once `steps` are done; None before.

    Wall time from row to row of the journal, so whatever a step waits for is in it. The rate is what was trained on in that
    time: the journal has rates and the mean seconds of the steps that they were taken of, of which it is put together. The
    peak is that of the process since it began, updates of the optimizer among it.
    """
    if not metrics.is_file():
        return None
    rows = []
    for line in metrics.read_text("utf-8").splitlines():
        try:
            row = json.loads(line)
        except json.JSONDecodeError:  # it is being written
            continue
        if row["split"] == "train" and row["step"] <= steps:
            rows.append(row)
    if not rows or rows[-1]["step"] < steps:
        return None
    timed = [row for row in rows if row["step"] >= WARM_STEPS]
    first, last = timed[0], timed[-1]
    seconds = last["time"] - first["time"]
    count = last["step"] - first["step"]
    done = sum(
        round(row[rate] * row["step_seconds"]) * (row["step"] - former["step"]) for former, row in pairwise(timed)
    )
    return {
        "step_seconds": seconds / count,
        "tokens_per_second": done / seconds,
        "peak_bytes": max(row.get("memory_bytes", 0) for row in rows),
        "first_step_at": rows[0]["time"],
        "losses": [row["loss"] for row in (*rows[:3], rows[-1])],
        "seconds_of_steps": [round(row["step_seconds"], 5) for row in rows],
    }
