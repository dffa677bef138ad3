"""Fills the table of benchmarks/README.md on one GPU, row by row: ours beside its fastest peer, in turns on one machine.

    python -m benchmarks.gpu --minutes 5                 # every row there is time for
    python -m benchmarks.gpu --only loss-head --only packed
    python -m benchmarks.gpu --tiny                      # the same script with tiny sizes, on a CPU too: does it work?

Writes OUT.json and OUT.md after every job, so that what is done when the time is up stays. Everything that it starts is
killed with it.
"""

from __future__ import annotations

import argparse
import importlib.metadata
import json
import platform
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

from benchmarks.gpu.jobs import Job, python
from benchmarks.gpu.rows import CPU, GPU, Row, make_rows, missing

LIBRARIES = ("torch", "transformers", "accelerate", "deepspeed", "peft", "trl", "liger-kernel", "triton")
JOB_SECONDS = 100.0  # one side of one row
LEAST_SECONDS = 10.0  # less is not worth the start of a job


def main() -> None:
    """See the head of the file."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", action="append", default=[], metavar="ROW")
    parser.add_argument("--minutes", type=float, default=5.0)
    parser.add_argument("--out", type=Path, default=Path("gpu"))
    parser.add_argument("--tiny", action="store_true")
    arguments = parser.parse_args()
    for number in (signal.SIGTERM, signal.SIGHUP):  # so that jobs are killed on the way out
        signal.signal(number, lambda number, _: sys.exit(128 + number))
    folder = Path(tempfile.mkdtemp(prefix="benchmarks-gpu-"))
    try:
        measure(arguments, folder)
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def measure(arguments: argparse.Namespace, folder: Path) -> None:
    """Every row that was asked for, as long as there is time."""
    ends = time.monotonic() + 60 * arguments.minutes
    sizes = CPU if arguments.tiny else GPU
    rows = make_rows(folder, sizes)
    if unknown := set(arguments.only) - {row.name for row in rows}:
        sys.exit(f"no such row: {', '.join(sorted(unknown))}; there are {', '.join(row.name for row in rows)}")
    matmul = Job("matmul", python("benchmarks.gpu.matmul", sizes.matmul), folder / "matmul.log")
    report: dict[str, Any] = {"machine": machine(), "matmul_flops": None, "rows": []}
    write(report, arguments.out)
    report["matmul_flops"] = matmul.run(max(1.0, min(60.0, ends - time.monotonic()))).get("flops")
    for row in rows:
        if arguments.only and row.name not in arguments.only:
            continue
        filled: dict[str, Any] = {"name": row.name, "title": row.title, "sides": {}}
        report["rows"].append(filled)
        fill(row, filled, ends, lambda: write(report, arguments.out))
        shutil.rmtree(folder / "trl", ignore_errors=True)
    write(report, arguments.out)


def fill(row: Row, filled: dict[str, Any], ends: float, save: Any) -> None:
    """The results of a row's sides, each as soon as it is there."""
    for maker in row.prepare:
        if ends - time.monotonic() < LEAST_SECONDS:
            filled["sides"] = {side: {"not run": "no time left"} for side in row.sides}
            return save()
        made = maker.run(min(JOB_SECONDS, ends - time.monotonic()))
        if "not run" in made:
            filled["sides"] = dict.fromkeys(row.sides, made)
            return save()
    for side, job in row.sides.items():
        left = ends - time.monotonic()
        if package := missing(side):
            filled["sides"][side] = {"not run": f"{package} is not installed"}
        elif left < LEAST_SECONDS:
            filled["sides"][side] = {"not run": "no time left"}
        else:
            filled["sides"][side] = job.run(min(JOB_SECONDS, left))
        print(f"{row.name:20} {side:26} {shown(filled['sides'][side])}", flush=True)
        save()
    results = filled["sides"]
    if all("not run" not in result for result in results.values()):
        filled["met"], filled["verdict"] = row.judge(results)
        print(f"{row.name:20} {'met' if filled['met'] else 'MISSED'}: {filled['verdict']}", flush=True)
    return save()


def shown(result: dict[str, Any]) -> str:
    """One result for people."""
    if "not run" in result:
        return f"not run: {result['not run']}"
    rate, peak = result["tokens_per_second"], result["peak_bytes"] / 2**30
    note = f" ({result['note']})" if result.get("note") else ""
    return f"{rate:,.0f} per second, {1000 * result['step_seconds']:.1f} ms a step, {peak:.1f} GiB{note}"


def machine() -> dict[str, Any]:
    """Device, temperature and versions."""
    versions = {}
    for library in LIBRARIES:
        try:
            versions[library] = importlib.metadata.version(library)
        except importlib.metadata.PackageNotFoundError:
            versions[library] = None
    query = ["nvidia-smi", "--query-gpu=name,memory.total,temperature.gpu,clocks.sm", "--format=csv,noheader"]
    try:
        device = subprocess.run(query, capture_output=True, text=True, timeout=20, check=True).stdout.strip()
    except (OSError, subprocess.SubprocessError):
        device = "no NVIDIA GPU"
    return {"device": device, "python": platform.python_version(), "versions": versions}


def write(report: dict[str, Any], out: Path) -> None:
    """OUT.json and OUT.md."""
    out.with_suffix(".json").write_text(json.dumps(report, indent=1) + "\n")
    peak = f"{report['matmul_flops'] / 1e12:.0f} TFLOP/s" if report["matmul_flops"] else "not measured"
    versions = ", ".join(f"{name} {version or '-'}" for name, version in report["machine"]["versions"].items())
    lines = [f"{report['machine']['device']}; matrix product {peak}; {versions}", ""]
    lines += ["| row | side | result | verdict |", "|---|---|---|---|"]
    for row in report["rows"]:
        verdict = f"{'met' if row['met'] else 'missed'}: {row['verdict']}" if "met" in row else "not run"
        for side, result in row["sides"].items():
            lines.append(f"| {row['title']} | {side} | {shown(result)} | {verdict} |")
            verdict = ""
    out.with_suffix(".md").write_text("\n".join(lines) + "\n")


if __name__ == "__main__":
    main()
