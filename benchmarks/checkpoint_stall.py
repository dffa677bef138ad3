"""The cost of checkpoints during training: stall while saving, synchronous and asynchronous, seconds per GB, bytes gathered.

    python benchmarks/checkpoint_stall.py [--ranks 2] [--stages none,zero2,zero3] [--saves 3]      # results: checkpoint.md

A Llama with 31 million parameters, float32, AdamW, so 12 bytes per parameter, on CPU ranks (gloo). Synchronous: training
waits until everything is written, synced and renamed. Asynchronous: it waits for the copy to memory, and later for two short
synchronizations; `slowdown` is the time that the writing thread takes from the overlapping steps, on cores that training keeps
busy. Target: a stall of at most 10 percent of a synchronous save.
"""

from __future__ import annotations

import argparse
import json
import os
import pickle
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parent.parent
SHAPE = {
    "vocab_size": 8192, "hidden_size": 512, "intermediate_size": 1376, "num_hidden_layers": 8, "num_attention_heads": 8,
    "num_key_value_heads": 8, "max_position_embeddings": 256, "tie_word_embeddings": True,
}  # fmt: skip
WARM, QUIET = 2, 4  # steps before measuring, and measured without a save


def build() -> Any:
    import torch
    from transformers import LlamaConfig, LlamaForCausalLM

    torch.manual_seed(0)
    return LlamaForCausalLM(LlamaConfig(**SHAPE))


def open_engine_here(stage: str) -> Any:
    """The engine as a worker of `finetune train` opens it."""
    from finetune.distributed.engines.engine import EngineOptions
    from finetune.distributed.engines.registry import open_engine
    from finetune.distributed.session import Session
    from finetune.planning.batch import plan_batch
    from finetune.planning.deepspeed import resolve_deepspeed_config
    from finetune.recipe.training import TrainingSection
    from finetune.training.parameter_groups import make_optimizer

    training = TrainingSection(global_batch=2 * int(os.environ["WORLD_SIZE"]))
    batch = plan_batch(training.global_batch, int(os.environ["WORLD_SIZE"]), 2, 2)
    config = None
    if stage != "none":
        written = json.loads((ROOT / "ds_configs" / f"{stage}.json").read_text(encoding="utf-8"))
        config = resolve_deepspeed_config(written, batch=batch, precision="fp32", max_grad_norm=1.0, hidden_size=512)
    session = Session.open(config, precision="fp32", cpu=True)
    name = "ddp" if config is None else "deepspeed"
    return open_engine(
        name, session, build(), lambda module: make_optimizer(module, training, "adamw"), EngineOptions(1.0)
    )


class Steps:
    """A step as the loop makes it, without data: forward, backward, update, and the sum that all ranks make anyway."""

    def __init__(self, engine: Any) -> None:
        import torch

        self.engine = engine
        self.tokens = torch.randint(0, SHAPE["vocab_size"], (2, 64))

    def __call__(self, saver: Any) -> float:
        """Seconds."""
        began = time.perf_counter()
        with self.engine.micro_batch(last=True):
            loss = self.engine.model(input_ids=self.tokens, labels=self.tokens, use_cache=False).loss
            self.engine.backward(loss)
        self.busy = self.engine.session.sum(float(loss.detach()), float(saver.busy))[1] > 0
        self.engine.step()
        return time.perf_counter() - began


def worker(stage: str, saves: int, folder: Path) -> None:
    sys.path.insert(0, str(ROOT))
    from finetune.training.checkpoint import Saver

    engine = open_engine_here(stage)
    session = engine.session
    gathered = count_gathered(session)
    step, found = Steps(engine), {"stall": [], "slower": [], "steps": [], "quiet": [], "synchronous": []}
    saver = Saver(engine, folder, training={}, keep=1)
    for _ in range(WARM):
        step(saver)
    for number in range(saves + 1):
        session.wait()
        began = time.perf_counter()
        saver.begin(2 * number + 1, {})
        saver.finish()
        synchronous = time.perf_counter() - began
        quiet = [step(saver) for _ in range(QUIET)]
        session.wait()
        began = time.perf_counter()
        saver.begin(2 * number + 2, {})
        stall, meanwhile = time.perf_counter() - began, []
        while saver.under_way:
            meanwhile.append(step(saver))
            began = time.perf_counter()
            if not step.busy:
                saver.advance()
            stall += time.perf_counter() - began
        if number:  # the first save of each kind makes the buffers
            found["synchronous"].append(synchronous)
            found["quiet"].append(statistics.median(quiet))
            found["stall"].append(stall)
            found["steps"].append(len(meanwhile))
            found["slower"].append(max(0.0, sum(meanwhile) - len(meanwhile) * statistics.median(quiet)))
    saver.close()
    size = sum(size for size, _ in saver.latest.manifest.files.values())
    told = {key: statistics.median(values) for key, values in found.items()}
    if session.is_main:
        row = {"stage": stage, "ranks": session.world_size, "bytes": size, "gathered": gathered["bytes"], **told}
        (folder / "row.json").write_text(json.dumps(row), encoding="utf-8")
    session.close()


def count_gathered(session: Any) -> dict[str, int]:
    """Bytes that this rank hands to others through the session's objects; no other collective is in a save."""
    counted, real = {"bytes": 0}, session.all_gather

    def all_gather(value: Any) -> list[Any]:
        counted["bytes"] = len(pickle.dumps(value))
        return real(value)

    session.all_gather = all_gather
    return counted


def launch(stage: str, ranks: int, saves: int) -> dict[str, Any]:
    with tempfile.TemporaryDirectory(dir=os.environ.get("BENCHMARK_DISK")) as folder:
        command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node", str(ranks)]
        command += [__file__, "--worker", stage, "--saves", str(saves), "--folder", folder]
        threads = str(max(1, len(os.sched_getaffinity(0)) // ranks))
        environment = {**os.environ, "DS_ACCELERATOR": "cpu", "CUDA_VISIBLE_DEVICES": "", "OMP_NUM_THREADS": threads}
        done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
        if done.returncode:
            sys.exit(done.stderr[-3000:])
        return dict(json.loads((Path(folder) / "row.json").read_text(encoding="utf-8")))


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--ranks", type=int, default=2)
    parser.add_argument("--stages", default="none,zero2,zero3")
    parser.add_argument("--saves", type=int, default=3)
    parser.add_argument("--worker", default="")
    parser.add_argument("--folder", type=Path)
    asked = parser.parse_args()
    if asked.worker:
        worker(asked.worker, asked.saves, asked.folder)
        return
    print(f"free: {shutil.disk_usage(tempfile.gettempdir()).free / 1e9:.0f} GB; 1 GB is 1e9 bytes")
    print(
        "| stage | ranks | checkpoint | synchronous | s per GB | stall | share | overlapping steps | slowdown | gathered |"
    )
    print("|---|---|---|---|---|---|---|---|---|---|")
    for stage in asked.stages.split(","):
        row = launch(stage, asked.ranks, asked.saves)
        gigabytes = row["bytes"] / 1e9
        print(
            f"| {stage} | {row['ranks']} | {gigabytes:.2f} GB | {row['synchronous']:.2f} s | "
            f"{row['synchronous'] / gigabytes:.1f} | {row['stall'] * 1000:.0f} ms | "
            f"{row['stall'] / row['synchronous']:.1%} | {row['steps']:.0f} | {row['slower']:.2f} s | "
            f"0 B of tensors, {row['gathered'] / 1024:.0f} KiB of names |",
            flush=True,
        )


if __name__ == "__main__":
    main()
