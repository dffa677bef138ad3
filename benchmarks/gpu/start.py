"""From the command to the first step on this machine: what each stage takes, as a user sees it.

    python -m benchmarks.gpu.start                        # about 40 seconds
    python -m benchmarks.gpu.start --only zero2

First what no training can avoid, each piece by itself in one fresh process: libraries, the context of the GPU, its first
matrix product, the process group. Then the real command line on a tiny Llama: `none` whose data is not prepared yet, `none`
and `zero2` whose data is. Each line that it prints is shown with the second at which it came, then the time from one step
to the next, and the run is ended. The last line is `RESULT {...}`.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
import threading
import time
from pathlib import Path
from typing import Any

import psutil

from benchmarks.gpu.jobs import tell
from benchmarks.startup import ROOT, end, write_recipe
from finetune.distributed.prebuild import choose_cache

STEPS = 3  # until a run is ended
LIMIT_SECONDS = 60.0  # for one start
POLL_SECONDS = 0.01
PIECES = """
import time
began = time.perf_counter()
def piece(name, work):
    global began
    began = time.perf_counter()
    try:
        work()
        print(f"{name}\t{time.perf_counter() - began:.3f}", flush=True)
    except Exception as error:
        print(f"{name}\t{type(error).__name__}: {str(error)[:80]}", flush=True)
def load(name):
    return lambda: __import__(name)
def product():
    one = torch.randn(64, 64, device="cuda", dtype=torch.bfloat16)
    (one @ one).sum().item()
def attention():
    one = torch.randn(1, 2, 64, 64, device="cuda", dtype=torch.bfloat16)
    torch.nn.functional.scaled_dot_product_attention(one, one, one, is_causal=True).sum().item()
def group():
    import tempfile
    store = torch.distributed.FileStore(tempfile.mktemp(), 1)
    torch.distributed.init_process_group(
        "nccl", store=store, rank=0, world_size=1, device_id=torch.device("cuda", 0))
def reduce():
    torch.distributed.all_reduce(torch.ones(1, device="cuda"))
    torch.cuda.synchronize()
def deepspeed():
    from finetune.distributed.engines.accelerator import load_deepspeed
    load_deepspeed()
piece("import torch", load("torch"))
import torch
piece("import torch._dynamo", load("torch._dynamo"))
piece("import transformers, Llama", load("transformers.models.llama.modeling_llama"))
piece("import accelerate", load("accelerate"))
piece("import triton", load("triton"))
piece("import liger_kernel", load("liger_kernel.transformers"))
piece("import deepspeed", deepspeed)
if torch.cuda.is_available():
    piece("context of the GPU", torch.cuda.init)
    piece("first tensor", lambda: torch.ones(1, device="cuda"))
    piece("first matrix product", product)
    piece("first attention", attention)
    piece("NCCL group of one", group)
    piece("first all-reduce", reduce)
"""


def main() -> None:
    """See the head of the file."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", choices=["pieces", "none", "zero2"], help="this alone")
    asked = parser.parse_args()
    results: dict[str, Any] = {}
    choose_cache()  # DeepSpeed's libraries, which have been compiled before
    with tempfile.TemporaryDirectory(prefix="benchmarks-start-") as place:
        folder = Path(place)
        if asked.only in (None, "pieces"):
            results["pieces"] = measure_pieces()
        if asked.only != "pieces":
            recipe = write_recipe(folder)
            for name, deepspeed in (("none, data not prepared", "none"), ("none", "none"), ("zero2", "zero2")):
                if asked.only in (None, deepspeed):
                    results[name] = start(name, recipe, folder, deepspeed)
    tell(**results)


def measure_pieces() -> dict[str, Any]:
    """Piece -> seconds, or why it could not be measured."""
    command = [sys.executable, "-c", PIECES]
    try:
        done = subprocess.run(command, cwd=ROOT, env=environment(), capture_output=True, timeout=LIMIT_SECONDS)
        printed, ending = done.stdout, f"with {done.returncode}: {done.stderr[-500:].decode(errors='replace')}"
        failed = done.returncode != 0
    except subprocess.TimeoutExpired as late:  # a group that does not open, say: what came before it is known
        printed, ending, failed = late.stdout or b"", f"when {LIMIT_SECONDS:.0f} s were over", True
    found: dict[str, Any] = {}
    for line in printed.decode(errors="replace").splitlines():
        name, tab, value = line.partition("\t")
        if tab:
            found[name] = float(value) if value.replace(".", "").isdigit() else value
            print(
                f"    {name:28} {value} s" if isinstance(found[name], float) else f"    {name:28} {value}", flush=True
            )
    if failed:
        print(f"    the pieces ended {ending}", flush=True)
    return found


def environment() -> dict[str, str]:
    return {**os.environ, "PYTHONPATH": f"{ROOT}{os.pathsep}{os.environ.get('PYTHONPATH', '')}"}


def start(name: str, recipe: Path, folder: Path, deepspeed: str) -> dict[str, Any]:
    """Seconds from the command to each line that it prints and to each of the first steps."""
    run = Path(tempfile.mkdtemp(dir=folder))
    command = [sys.executable, "-m", "finetune", "train", str(recipe), "--run-dir", str(run)]
    command += ["--set", f"parallel.deepspeed={deepspeed}"]
    print(f"{name}:", flush=True)
    began = time.monotonic()
    env = {**environment(), "XDG_CACHE_HOME": str(folder / "cache")}
    process = psutil.Popen(
        command, cwd=ROOT, env=env, text=True, errors="replace", stdout=subprocess.PIPE, stderr=subprocess.STDOUT
    )
    lines: list[tuple[float, str]] = []
    reader = threading.Thread(target=read_lines, args=(process.stdout, began, lines))
    reader.start()
    steps: dict[int, float] = {}
    try:
        while len(steps) < STEPS and time.monotonic() - began < LIMIT_SECONDS and process.poll() is None:
            note_steps(run / "metrics.jsonl", steps, time.monotonic() - began)
            time.sleep(POLL_SECONDS)
    finally:
        end(process)
        reader.join(timeout=10)
    for step, at in steps.items():
        print(f"    {at:6.2f}  step {step} is in metrics.jsonl", flush=True)
    if not steps:
        print(f"    no step after {time.monotonic() - began:.0f} s (exit code {process.returncode})", flush=True)
    return {"lines": lines, "steps": steps}


def read_lines(stream: Any, began: float, lines: list[tuple[float, str]]) -> None:
    for line in stream:
        at = time.monotonic() - began
        lines.append((round(at, 2), line.rstrip()[:300]))
        print(f"    {at:6.2f}  {line.rstrip()[:200]}", flush=True)


def note_steps(metrics: Path, steps: dict[int, float], now: float) -> None:
    """The training steps that are in the journal. now: seconds since the command."""
    if not metrics.is_file():
        return
    for line in metrics.read_text("utf-8").splitlines():
        try:
            row = json.loads(line)
        except json.JSONDecodeError:  # it is being written
            continue
        if row["split"] == "train":
            steps.setdefault(row["step"], round(now, 2))


if __name__ == "__main__":
    main()
