"""Our side: the real command line, watched through metrics.jsonl, and ended before it would write a checkpoint."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

from benchmarks.gpu.jobs import Job

WARM_STEPS = 5  # the fourth is traced


def job(name: str, folder: Path, recipe: dict[str, Any], *, steps: int) -> Job:
    """`finetune train` on a recipe, until `steps` are done. Its rate is in units of the loss: images, or tokens but the
    first of each row.
    """
    run = folder / f"run-{name}"
    path = folder / f"{name}.yaml"
    path.write_text(json.dumps({"name": name, **recipe}))  # JSON is YAML
    command = [sys.executable, "-m", "finetune", "train", str(path), "--run-dir", str(run)]
    metrics = run / "metrics.jsonl"
    return Job(name, command, folder / f"{name}.log", watch=lambda: measured(metrics, steps))


def measured(metrics: Path, steps: int) -> dict[str, Any] | None:
    """Seconds per step, rate and peak memory, once `steps` are done; None before.

    Wall time from row to row of the journal, so whatever a step waits for is in it.
    """
    if not metrics.is_file():
        return None
    rows = []
    for line in metrics.read_text("utf-8").splitlines():
        try:
            row = json.loads(line)
        except json.JSONDecodeError:  # it is being written
            continue
        if row["split"] == "train":
            rows.append(row)
    if not rows or rows[-1]["step"] < steps:
        return None
    timed = [row for row in rows if row["step"] >= WARM_STEPS]
    first, last = timed[0], timed[-1]
    seconds = (last["time"] - first["time"]) / (last["step"] - first["step"])
    rates = [row["units_per_second"] for row in timed[1:]]
    peak = max(row.get("memory_bytes", 0) for row in rows)
    units = sum(rates) / len(rates)
    return {
        "step_seconds": seconds,
        "tokens_per_second": units,
        "peak_bytes": peak,
        "losses": [rows[0]["loss"], rows[-1]["loss"]],
    }
