"""Do two versions of this program train to the same numbers? Four short trainings by each, compared figure by figure.

    python -m benchmarks.golden --against COMMIT                 # a commit beside this checkout, on this machine
    python -m benchmarks.golden --check benchmarks/golden.json   # this checkout beside committed figures
    python -m benchmarks.golden --write benchmarks/golden.json   # new figures; say in the commit's message why
    ... --only packed                                            # one recipe; may be given again

--against checks COMMIT out into a temporary git worktree and runs each recipe with both versions, one after the other, on
the CPU, each version with a cache of its own. Compared are all rows of metrics.jsonl (every step is a row, in full
precision; only `epoch` is rounded, to 6 digits) without times, rates and memory, and every tensor of the last checkpoint,
weights and optimizer state, by name, whatever part of it each rank held. New names in a row are reported, and no difference.
--check compares rows and norms of tensors at a relative tolerance of 1e-6 (evaluation figures below 1: absolute). It asks for
the same kind of CPU: with narrower vector instructions, rounding errors of the ResNet grow to 6e-4 of the loss in 20 steps.
Versions of Python (whose docstrings the quickstart reads), PyTorch and transformers are stored; a difference is reported.

Exit code: 0 if all agree, else 1. About 15 seconds for each recipe and version on two idle cores.
"""

from __future__ import annotations

import argparse
import json
import math
import os
import platform
import random
import subprocess
import sys
import tempfile
import time
from collections import defaultdict
from contextlib import ExitStack
from importlib import metadata
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from safetensors import safe_open

ROOT = Path(__file__).resolve().parent.parent
TOLERANCE = 1e-6
ABSENT = np.empty(0)
MACHINE = ("time", "_seconds", "_per_second", "_bytes")  # endings of figures that are the machine's
STATES = (".exp_avg", ".exp_avg_sq", ".momentum_buffer")  # endings of the optimizer's tensors
KINDS = ("loss", "gradient norm", "evaluation", "other figures", "tensor norms")
VERSIONS = {name: metadata.version(name) for name in ("torch", "transformers")} | {"python": platform.python_version()}
WORDS = ("river", "stone", "bird", "lamp", "wheel", "garden", "letter", "cloud", "finds", "lifts", "paints", "keeps")
LLAMA = """{source: llama, init: config, tokenizer: "train:400", config: {hidden_size: 48, intermediate_size: 96,
  num_hidden_layers: 2, num_attention_heads: 4, num_key_value_heads: 2, max_position_embeddings: 256}}"""
PACKED = f"""
task: causal_lm
model: {LLAMA}
data: {{train: rows.jsonl, validation_fraction: 0.1, packing: packed, capacity: 192}}
options: {{max_length: 96}}
training: {{epochs: 3, global_batch: 16, learning_rate: 2.0e-3, schedule: cosine, warmup: 0.1, weight_decay: 0.1}}
"""
PREFERENCE = f"""
task: preference
model: {LLAMA}
adapter: {{rank: 4, dropout: 0.1}}
data: {{train: pairs.jsonl, validation_fraction: 0.1}}
options: {{loss: dpo, beta: 0.1, max_length: 96}}
training: {{epochs: 2, global_batch: 8, learning_rate: 2.0e-2, warmup: 0.1}}
"""
LIMITS = "data.train.limit=320 data.validation.limit=64 training.epochs=1"
SHORT = "training.epochs=1 data.limit=640 evaluation.every=10 training.epsilon=1e-6"  # else rounding errors grow
RECIPES = {  # name -> a recipe that ships, as each version has it, or its text; settings
    "quickstart": ("recipes/quickstart.yaml", f"{LIMITS} parallel.deepspeed=zero2"),
    "packed": (PACKED, "parallel.deepspeed=zero1"),
    "vision": ("recipes/image_classification/resnet-digits.yaml", f"{SHORT} parallel.deepspeed=none"),
    "preference": (PREFERENCE, "parallel.deepspeed=zero3"),
}
ALWAYS = "parallel.processes=2 tracking.log_every=1 tracking.wandb=off"


class Result(NamedTuple):
    """figures: "split/step/name" -> value, norms of the tensors among them. tensors: by name, flat."""

    figures: dict[str, float]
    tensors: dict[str, np.ndarray]


def write_data(folder: Path) -> None:
    """rows.jsonl, pairs.jsonl and the recipes that read them; always the same."""
    draw = random.Random(11)

    def text(least: int, most: int) -> str:
        return " ".join(draw.choices(WORDS, k=draw.randint(least, most))).capitalize() + "."

    rows = [{"instruction": text(2, 9), "input": "", "output": text(3, 24)} for _ in range(192)]
    pairs = [{"prompt": text(2, 9), "chosen": text(3, 12), "rejected": text(1, 16)} for _ in range(96)]
    for name, content in (("rows", rows), ("pairs", pairs)):
        (folder / f"{name}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in content))
    for name, (recipe, _) in RECIPES.items():
        if "\n" in recipe:
            (folder / f"{name}.yaml").write_text(f"name: golden-{name}{recipe}")


def train(name: str, checkout: Path, data: Path, folder: Path) -> Result:
    """Train a recipe with the program in `checkout`. folder: that version's runs and cache."""
    own, settings = data / f"{name}.yaml", f"{RECIPES[name][1]} {ALWAYS}".split()
    recipe, run = str(own) if own.exists() else RECIPES[name][0], folder / name
    command = [sys.executable, "-m", "finetune", "train", recipe, "--run-dir", str(run)]
    command += [part for item in settings for part in ("--set", item)]
    private = {"PYTHONPATH": str(checkout), "XDG_CACHE_HOME": str(folder / "cache"), "CUDA_VISIBLE_DEVICES": ""}
    began, env = time.monotonic(), {**os.environ, **private, "OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1"}
    done = subprocess.run(command, cwd=checkout, env=env, capture_output=True, text=True, check=False)
    if done.returncode:
        raise SystemExit(f"{name} failed in {checkout}:\n{done.stdout[-3000:]}{done.stderr[-3000:]}")
    print(f"{name}: {time.monotonic() - began:.0f} s in {checkout}", file=sys.stderr, flush=True)
    tensors = read_tensors(run / "checkpoints")
    return Result(read_figures(run / "metrics.jsonl") | norms(tensors), tensors)


def read_figures(path: Path) -> dict[str, float]:
    """Every figure of every row that is not the machine's."""
    return {
        f"{row['split']}/{row['step']}/{name}": value
        for row in map(json.loads, path.read_text().splitlines())
        for name, value in row.items()
        if name not in ("split", "step") and not name.endswith(MACHINE) and not name.startswith("memory_bytes")
    }


def read_tensors(checkpoints: Path) -> dict[str, np.ndarray]:
    """The tensors of the latest checkpoint, each joined from what the ranks held ("<name>@<start>")."""
    shards: dict[str, dict[int, np.ndarray]] = defaultdict(dict)
    for path in (checkpoints / (checkpoints / "latest").read_text().strip()).glob("*.safetensors"):
        with safe_open(path, framework="np") as file:
            for key in file.keys():  # noqa: SIM118 (not a mapping)
                name, _, start = key.rpartition("@")
                shards[name][int(start)] = file.get_tensor(key).ravel()
    return {name: np.concatenate([held[start] for start in sorted(held)]) for name, held in shards.items()}


def norms(tensors: dict[str, np.ndarray]) -> dict[str, float]:
    """The L2 norm of all weights together, and of each kind of optimizer state."""
    squares: dict[str, float] = defaultdict(float)
    for name, values in tensors.items():
        kind = next((state[1:] for state in STATES if name.endswith(state)), "weights")
        squares[kind] += float(np.square(values, dtype=np.float64).sum())
    return {f"checkpoint/last/{kind}": math.sqrt(total) for kind, total in sorted(squares.items())}


def compare(name: str, ours: Result, theirs: Result, tolerance: float) -> tuple[str, bool]:
    """A row of the table, and whether all agrees. tolerance 0: to the last bit, and every tensor too."""
    worst = dict.fromkeys(KINDS, 0.0)
    for key, value in theirs.figures.items():
        split, _, figure = key.split("/")
        named = {"loss": "loss", "grad_norm": "gradient norm"}.get(figure, "other figures")
        kind = {"train": named, "checkpoint": "tensor norms"}.get(split, "evaluation")
        other = ours.figures.get(key, math.inf)
        least = 1.0 if tolerance and kind == "evaluation" else 1e-300
        differs = 0.0 if value == other else abs(value - other) / max(abs(value), min(abs(other), 1e300), least)
        worst[kind] = max(worst[kind], differs)
    rows, own = ({key.rpartition("/")[0] for key in side.figures} for side in (theirs, ours))
    if added := {key.split("/")[2] for key in ours.figures.keys() - theirs.figures.keys()}:
        print(f"{name}: only this checkout writes {', '.join(sorted(added))}", file=sys.stderr)
    names = ours.tensors.keys() | theirs.tensors.keys()
    same = [len({side.tensors.get(key, ABSENT).tobytes() for side in (ours, theirs)}) == 1 for key in names]
    agree = bool(rows == own and max(worst.values()) <= tolerance and (tolerance > 0 or (same and all(same))))
    shown = [f"{value:.1e}" if value else "0" for value in worst.values()]
    verdict = ("agree" if tolerance else "equal to the last bit") if agree else "**DIFFERENT**"
    counts = [str(sum(row.startswith("train/") for row in rows)), str(len(rows) - 1)]  # the checkpoint is no row
    cells = [name, *counts, *shown, "-" if tolerance else f"{sum(same)} of {len(same)}", verdict]
    return f"| {' | '.join(cells)} |", agree


def git(*words: str | Path) -> None:
    """git worktree WORDS."""
    subprocess.run(["git", "worktree", *words], cwd=ROOT, check=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    way = parser.add_mutually_exclusive_group(required=True)
    way.add_argument("--against", metavar="COMMIT")
    for name in ("--check", "--write"):
        way.add_argument(name, type=Path, metavar="FILE")
    parser.add_argument("--only", choices=RECIPES, action="append")
    options = parser.parse_args()
    sys.path.insert(0, str(ROOT))
    from finetune.distributed.prebuild import choose_cache

    choose_cache()  # what DeepSpeed has compiled stays where it is, although each version has a cache of its own
    with tempfile.TemporaryDirectory() as temporary, ExitStack() as stack:
        data, mine, others, tree = (Path(temporary) / part for part in ("data", "ours", "theirs", "checkout"))
        data.mkdir()
        write_data(data)
        if options.write:
            figures = {name: train(name, ROOT, data, mine).figures for name in options.only or RECIPES}
            options.write.write_text(json.dumps({"versions": VERSIONS, "figures": figures}, indent=0) + "\n")
            return
        golden: dict[str, Any] = json.loads(options.check.read_text()) if options.check else {"versions": VERSIONS}
        if golden["versions"] != VERSIONS:
            print(f"note: written with {golden['versions']}, this is {VERSIONS}", file=sys.stderr)
        if options.against:
            git("add", "--quiet", "--detach", tree, options.against)
            stack.callback(git, "remove", "--force", tree)
        print(f"Largest relative differences:\n\n| recipe | steps | rows | {' | '.join(KINDS)} | equal tensors | |")
        print("|---" * (5 + len(KINDS)) + "|", flush=True)
        agreed = True
        for name in options.only or RECIPES:
            theirs = Result(golden["figures"][name], {}) if options.check else train(name, tree, data, others)
            row, agree = compare(name, train(name, ROOT, data, mine), theirs, TOLERANCE if options.check else 0.0)
            print(row, flush=True)
            agreed &= agree
    raise SystemExit(0 if agreed else 1)


if __name__ == "__main__":
    main()
