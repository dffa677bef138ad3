"""Fills the table of benchmarks/README.md on one GPU, row by row: ours beside its fastest peer, in turns on one machine.

    python -m benchmarks.gpu --minutes 6                 # every row there is time for
    python -m benchmarks.gpu --only loss-head --only packed
    python -m benchmarks.gpu --only full-bf16 --side ours --ours parallel.micro_batch=8     # our side alone, changed
    python -m benchmarks.gpu --only lora-8b --variant "parallel.micro_batch=4" --variant "model.compile=layers"
    python -m benchmarks.gpu --only lora-8b --profile    # and which kernels take the time of a step, on both sides
    python -m benchmarks.gpu --tiny                      # the same script with tiny sizes, on a CPU too: does it work?

Writes OUT.json and OUT.md after every job, so that what is done when the time is up stays; OUT.log has the last lines of jobs
that failed. Everything that it starts is killed with it.
"""

from __future__ import annotations

import argparse
import shutil
import signal
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path
from typing import Any

from benchmarks.gpu.jobs import Job, Running, python
from benchmarks.gpu.report import machine, shown, shown_peak, write
from benchmarks.gpu.rows import CPU, GPU, LOG_EVERY, OURS, Asked, Row, make_rows, missing
from benchmarks.gpu.sampler import sampling, summary

JOB_SECONDS = 100.0  # one side of one row
LEAST_SECONDS = 10.0  # less is not worth the start of a job
LOG_LINES = 15
SUSTAINED_SECONDS = 3.0  # of matrix products, until the limit of power holds the clock down


def main() -> None:
    """See the head of the file."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", action="append", default=[], metavar="ROW", help="in this order; repeat it")
    parser.add_argument("--side", choices=["ours", "peer"], help="one of the two sides alone")
    parser.add_argument("--ours", action="append", default=[], metavar="KEY=VALUE", help="--set of our side; repeat it")
    parser.add_argument(
        "--variant", action="append", default=[], metavar="'KEY=VALUE ...'", help="our side once more, with these"
    )
    parser.add_argument("--profile", action="store_true", help="profiles of a step in OUT-ROW.profile.txt")
    parser.add_argument(
        "--steps",
        type=int,
        help=f"of each side of a row of text, of which the first {LOG_EVERY} are not timed; in whole {LOG_EVERY}s",
    )
    parser.add_argument("--minutes", type=float, default=6.0)
    parser.add_argument("--seconds", type=float, default=JOB_SECONDS, help="at most, of a job")
    parser.add_argument("--out", type=Path, default=Path("gpu"))
    parser.add_argument("--tiny", action="store_true")
    arguments = parser.parse_args()
    for number in (signal.SIGTERM, signal.SIGHUP):  # so that jobs are killed on the way out
        signal.signal(number, lambda number, _: sys.exit(128 + number))
    folder = Path(tempfile.mkdtemp(prefix="benchmarks-gpu-", dir=roomiest()))
    try:
        with sampling(folder / "samples.csv"):
            measure(arguments, folder)
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def roomiest() -> Path:
    """A training starts only where three checkpoints would fit, 45 GB of a model with 1.24B parameters, although none is
    written.
    """
    found = [Path(tempfile.gettempdir()), *filter(Path.is_dir, [Path("/dev/shm")])]
    return max(found, key=lambda folder: shutil.disk_usage(folder).free)


def measure(arguments: argparse.Namespace, folder: Path) -> None:
    """Every row that was asked for, as long as there is time."""
    ends = time.monotonic() + 60 * arguments.minutes
    sizes, out = CPU if arguments.tiny else GPU, arguments.out.absolute()
    steps = max(arguments.steps or sizes.steps, 2 * LOG_EVERY)
    sizes = replace(sizes, steps=-(-steps // LOG_EVERY) * LOG_EVERY)
    out.parent.mkdir(parents=True, exist_ok=True)
    asked = Asked(arguments.ours, [one.split() for one in arguments.variant], out if arguments.profile else None)
    rows = chosen(make_rows(folder, sizes, asked), arguments.only)
    matmul = Job("matmul", python("benchmarks.gpu.matmul", sizes.matmul, SUSTAINED_SECONDS), folder / "matmul.log")
    report: dict[str, Any] = {"machine": machine(), "matmul": {}, "rows": []}
    write(report, out)
    chains = [[row.prepare[0], job] for row in rows for job in row.prepare[1:]]
    made = prepare([[matmul], *chains], min(60.0, ends - time.monotonic()))
    report["matmul"] = made["matmul"]
    print(f"{report['machine']['device']}; {shown_peak(made['matmul'])}", flush=True)
    bench = Bench(out.with_suffix(".log"), folder / "samples.csv", ends, arguments.seconds, made["matmul"].get("flops"))
    for row in rows:
        filled: dict[str, Any] = {"name": row.name, "title": row.title, "sides": {}}
        report["rows"].append(filled)
        wanted = [side for side in row.sides if not arguments.side or is_ours(side) == (arguments.side == OURS)]
        bench.fill(row, wanted, filled, made, lambda: write(report, out))
        shutil.rmtree(folder / "trl", ignore_errors=True)
    report["machine"]["device afterwards"] = machine()["device"]
    write(report, out)


def chosen(rows: list[Row], names: Sequence[str]) -> list[Row]:
    """The rows of these names, in this order; all if there are none."""
    by_name = {row.name: row for row in rows}
    if unknown := set(names) - set(by_name):
        sys.exit(f"no such row: {', '.join(sorted(unknown))}; there are {', '.join(by_name)}")
    return [by_name[name] for name in dict.fromkeys(names)] if names else rows


def is_ours(side: str) -> bool:
    """Whether it is our side of a row, or a variant of it."""
    return side.startswith(OURS)


def prepare(chains: Sequence[Sequence[Job]], seconds: float) -> dict[str, dict[str, Any]]:
    """The results of jobs that do not disturb each other, by name; jobs of one name are one job, run once.

    The jobs of a chain run one after the other; a job after one that failed has its result.
    """
    found: dict[str, Future[dict[str, Any]]] = {}

    def run(job: Job, before: Future[dict[str, Any]] | None) -> dict[str, Any]:
        former = {} if before is None else before.result()
        return former if "not run" in former else job.run(max(1.0, seconds))

    with ThreadPoolExecutor(max(1, sum(map(len, chains)))) as pool:  # no job waits for a thread
        for chain in chains:
            before = None
            for job in chain:
                found[job.name] = before = found.get(job.name) or pool.submit(run, job, before)
    return {name: future.result() for name, future in found.items()}


class Bench:
    """Runs the jobs of rows as long as there is time. log: gets the last lines of those that fail. samples: see sampler.py.
    ends: by time.monotonic. seconds: at most, for a job. peak: FLOP/s of a matrix product, None if not known.
    """

    def __init__(self, log: Path, samples: Path, ends: float, seconds: float, peak: float | None) -> None:
        self.log, self.samples, self.ends, self.seconds, self.peak = log, samples, ends, seconds, peak
        self.log.write_text("")

    def fill(
        self, row: Row, sides: Sequence[str], filled: dict[str, Any], made: dict[str, Any], save: Callable[[], None]
    ) -> None:
        """The results of a row's sides, each as soon as it is there. made: of the jobs that prepare."""
        results = filled["sides"]
        broken = next((made[job.name] for job in row.prepare if "not run" in made[job.name]), None)
        early = {} if broken else {side: Running(job) for side in sides if (job := row.sides[side]).early}
        try:
            for side in sides:
                results[side] = broken or self._run(side, row, early.get(side))
                print(f"{row.name:20} {side:26} {shown(results[side])}", flush=True)
                save()
        finally:
            for running in early.values():
                running.end()
        first, peer = list(row.sides)[:2]
        done = {side: result for side, result in results.items() if "not run" not in result}
        for side in filter(is_ours, done if peer in done else ()):
            others = {other: done[other] for other in done if not is_ours(other)}
            met, text = row.judge({first: done[side], peer: done[peer], **others})
            results[side]["verdict"] = f"{'met' if met else 'missed'}: {text}"
            print(f"{row.name:20} {side:26} {results[side]['verdict']}", flush=True)
        save()

    def _run(self, side: str, row: Row, early: Running | None) -> dict[str, Any]:
        left = self.ends - time.monotonic()
        if package := missing(side):
            return {"not run": f"{package} is not installed"}
        if left < LEAST_SECONDS:
            return {"not run": "no time left"}
        job, began = row.sides[side], time.time()
        sampled = self.samples.stat().st_size if self.samples.is_file() else 0
        result = dict((early or Running(job)).result(min(self.seconds, left)))
        result["seconds_of_job"] = round(time.time() - began, 1)
        if "first_step_at" in result:
            result["seconds_to_first_step"] = round(result.pop("first_step_at") - began, 1)
        if "not run" in result:
            with self.log.open("a") as log:
                log.write(f"--- {row.name}, {side}: {result['not run']}\n{job.last_lines(LOG_LINES)}\n")
            return result
        if self.samples.is_file():
            result |= summary(self.samples, sampled)
        result["flops_per_second"] = {name: flops * result["tokens_per_second"] for name, flops in row.flops.items()}
        if self.peak:
            result["shares_of_peak"] = {name: f / self.peak for name, f in result["flops_per_second"].items()}
        return result


if __name__ == "__main__":
    main()
