"""Where the time goes from `finetune train` to the first step, and what each process computes for it.

    python -m benchmarks.startup                        # this checkout
    python -m benchmarks.startup --against COMMIT       # both versions in turns, on this machine

A tiny Llama on rows made on the fly, whose data is prepared already, with one and two ranks, without DeepSpeed and under
ZeRO-2. A run is watched from outside (its processes, what it prints, metrics.jsonl), so both versions are measured alike, and
ended when the first step is in metrics.jsonl. CPU seconds are what counts on a machine that others use as well; of several
runs the least is shown.

    checked     until the first process that is not the command itself: recipe and data are checked
    ranks       until all ranks exist
    set up      until rank 0 prints the line about the model: imports, process group, model, engine
    first step  until the first step is in metrics.jsonl
"""

from __future__ import annotations

import argparse
import json
import os
import random
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path

import psutil

from finetune.distributed.prebuild import choose_cache

ROOT = Path(__file__).resolve().parents[1]
LAYOUTS = [(1, "none"), (2, "none"), (1, "zero2"), (2, "zero2")]
PHASES = ("checked", "ranks", "set up", "first step")
ROLES = ("command", "launcher", "ranks", "others")
POLL_SECONDS = 0.02
LIMIT_SECONDS = 180.0


@dataclass
class Start:
    """at: phase -> seconds since the command was started. cpu: role -> CPU seconds until the first step."""

    at: dict[str, float] = field(default_factory=dict)
    cpu: dict[str, float] = field(default_factory=dict)


def write_recipe(folder: Path) -> Path:
    """A recipe and its rows; always the same."""
    draw = random.Random(5)
    letters = ["".join(draw.choices("abcdefghijklmnopqrstuvwxyz", k=draw.randint(2, 8))) for _ in range(500)]
    with (folder / "rows.jsonl").open("w", encoding="utf-8") as file:
        for _ in range(400):
            row = {
                "instruction": " ".join(draw.choices(letters, k=12)),
                "output": " ".join(draw.choices(letters, k=30)),
            }
            file.write(json.dumps(row) + "\n")
    shape = {"hidden_size": 64, "intermediate_size": 128, "num_hidden_layers": 2, "num_attention_heads": 4}
    values = {
        "name": "startup",
        "task": "causal_lm",
        "model": {"source": "llama", "init": "config", "tokenizer": "train:500", "config": shape},
        "data": {"train": str(folder / "rows.jsonl"), "validation_fraction": 0.05},
        "training": {"global_batch": 8, "epochs": 1},
        "tracking": {"log_every": 1, "wandb": "off"},
    }
    path = folder / "startup.yaml"
    path.write_text(json.dumps(values))
    return path


def measure(checkout: Path, recipe: Path, folder: Path, ranks: int, deepspeed: str) -> Start:
    """One start, ended after its first step. folder: of this version's runs and cache."""
    run = Path(tempfile.mkdtemp(dir=folder))
    command = [sys.executable, "-m", "finetune", "train", str(recipe), "--processes", str(ranks), "--run-dir", str(run)]
    command += ["--set", f"parallel.deepspeed={deepspeed}"]
    private = {"PYTHONPATH": str(checkout), "XDG_CACHE_HOME": str(folder / "cache"), "CUDA_VISIBLE_DEVICES": ""}
    env = {**os.environ, **private, "OMP_NUM_THREADS": "1"}
    env.pop("PYTHONDONTWRITEBYTECODE", None)  # an installed package has its compiled modules
    start, began, lines = Start(), time.monotonic(), run / "printed"
    with lines.open("wb") as printed:
        process = psutil.Popen(command, cwd=checkout, env=env, stdout=printed, stderr=subprocess.STDOUT)
    seconds: dict[int, tuple[str, float]] = {}
    try:
        while "first step" not in start.at:
            now = time.monotonic() - began
            if process.poll() is not None or now > LIMIT_SECONDS:
                raise SystemExit(f"{checkout}: no first step:\n{lines.read_text()[-3000:]}")
            watch(process, seconds, start, now, ranks, lines, run / "metrics.jsonl")
            time.sleep(POLL_SECONDS)
    finally:
        end(process)
    for role, used in seconds.values():
        start.cpu[role] = start.cpu.get(role, 0.0) + used
    return start


def watch(
    process: psutil.Popen,
    seconds: dict[int, tuple[str, float]],
    start: Start,
    now: float,
    ranks: int,
    lines: Path,
    metrics: Path,
) -> None:
    """Note the phases that have been reached, and the CPU seconds of every process by its id."""
    family = [process, *process.children(recursive=True)]
    for one in family:
        with suppress(psutil.Error):
            times = one.cpu_times()
            seconds[one.pid] = (role_of(one, process.pid, seconds), times.user + times.system)
    if len(family) > 1:
        start.at.setdefault("checked", now)
    if sum(role == "ranks" for role, _ in seconds.values()) >= ranks:
        start.at.setdefault("ranks", now)
    if " ranks on cpu" in (text := lines.read_text(errors="replace")) or " rank on cpu" in text:
        start.at.setdefault("set up", now)
    if metrics.is_file() and metrics.stat().st_size:
        start.at.setdefault("first step", now)


def role_of(one: psutil.Process, command: int, seen: dict[int, tuple[str, float]]) -> str:
    """command, launcher, ranks or others; what a process does is asked until it is a rank."""
    if one.pid == command:
        return "command"
    if one.pid in seen and seen[one.pid][0] != "others":
        return seen[one.pid][0]
    words = one.cmdline()
    if "accelerate.commands.launch" in words:
        return "launcher"
    is_rank = "finetune" in words and "train" in words
    return "ranks" if is_rank else "others"


def end(process: psutil.Popen) -> None:
    family = [process, *process.children(recursive=True)]
    for one in family:
        with suppress(psutil.Error):
            one.kill()
    psutil.wait_procs(family, timeout=10)


@contextmanager
def checkout_of(commit: str) -> Iterator[Path]:
    """That commit in a temporary git worktree."""
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "checkout"
        subprocess.run(
            ["git", "worktree", "add", "--detach", str(path), commit], cwd=ROOT, check=True, capture_output=True
        )
        try:
            yield path
        finally:
            subprocess.run(
                ["git", "worktree", "remove", "--force", str(path)], cwd=ROOT, check=True, capture_output=True
            )


def compare(versions: dict[str, Path], repeats: int) -> None:
    choose_cache()  # DeepSpeed's libraries, which have been compiled before
    with tempfile.TemporaryDirectory() as place:
        base = Path(place)
        recipe = write_recipe(base)
        for name, checkout in versions.items():
            (base / name).mkdir()
            measure(checkout, recipe, base / name, 1, "none")  # prepares the data, compiles Python files
        print("| start | version | " + " | ".join(f"{name} s" for name in PHASES) + " | CPU s | of which |")
        print("|---|---|" + "---|" * (len(PHASES) + 2))
        for ranks, deepspeed in LAYOUTS:
            found: dict[str, list[Start]] = {name: [] for name in versions}
            for _ in range(repeats):
                for name, checkout in versions.items():
                    found[name].append(measure(checkout, recipe, base / name, ranks, deepspeed))
            for name, starts in found.items():
                print(row(f"{ranks} x {deepspeed}", name, starts), flush=True)


def row(title: str, version: str, starts: list[Start]) -> str:
    """The phases of the start that was ready first, and the CPU seconds of the one that took least of them."""
    quick = min(starts, key=lambda one: one.at["first step"])
    least = min(starts, key=lambda one: sum(one.cpu.values()))
    cells = [f"{quick.at[name]:.1f}" if name in quick.at else "" for name in PHASES]
    parts = ", ".join(f"{role} {least.cpu[role]:.1f}" for role in ROLES if least.cpu.get(role, 0) >= 0.05)
    return f"| {title} | {version} | {' | '.join(cells)} | {sum(least.cpu.values()):.1f} | {parts} |"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--against", metavar="COMMIT", help="compare with this commit")
    parser.add_argument("--repeats", type=int, default=2, help="starts of each layout and version (default: 2)")
    asked = parser.parse_args()
    if asked.against is None:
        compare({"now": ROOT}, asked.repeats)
        return
    with checkout_of(asked.against) as before:
        compare({asked.against: before, "now": ROOT}, asked.repeats)


if __name__ == "__main__":
    main()
