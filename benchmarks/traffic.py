"""Collectives and bytes per optimizer step, for our DeepSpeed files and those of other projects, compared to the ideal.

    python benchmarks/traffic.py [--ranks 4]      # gloo ranks on this machine; results: README.md

Counted with DeepSpeed's own comms logger, on a Llama with 4 layers, float32, one micro-batch per step (four in the rows
"of 4"). Bytes are those that one rank sends with ring algorithms: an all-reduce of n bytes sends 2n(N-1)/N; all-gather,
reduce-scatter and reduce send n(N-1)/N. Ideal, for P bytes of weights: stages 1 and 2 send 2P(N-1)/N (reduce-scatter
gradients, all-gather weights), stage 3 3P(N-1)/N (weights are gathered for the forward and again for the backward pass) (ZeRO,
Rajbhandari et al. 2020, section 7), whatever the number of micro-batches.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parent.parent
SHAPE = {
    "vocab_size": 4096, "hidden_size": 128, "intermediate_size": 512, "num_hidden_layers": 4,
    "num_attention_heads": 8, "num_key_value_heads": 8, "max_position_embeddings": 128, "tie_word_embeddings": False,
}  # fmt: skip
H = SHAPE["hidden_size"]
# The values that these projects ship, with Hugging Face's "auto" filled in: h^2, 0.9 h^2 and 10 h.
AUTO = {"reduce_bucket_size": H * H}
AUTO3 = {**AUTO, "stage3_prefetch_bucket_size": int(0.9 * H * H), "stage3_param_persistence_threshold": 10 * H}
LARGE = {"allgather_bucket_size": 500_000_000, "reduce_bucket_size": 500_000_000}
PEERS: dict[str, dict[str, Any]] = {
    "DeepSpeed's defaults, stage 2": {"stage": 2},
    "LLaMA-Factory ds_z2": {"stage": 2, "overlap_comm": False, "contiguous_gradients": True, **LARGE},
    "axolotl zero2": {"stage": 2, "overlap_comm": True, "contiguous_gradients": True, **AUTO},
    "axolotl zero3": {
        "stage": 3, "overlap_comm": True, "contiguous_gradients": True, "sub_group_size": 0, **AUTO3,
        "stage3_max_live_parameters": 0, "stage3_max_reuse_distance": 0,
    },
    "LLaMA-Factory ds_z3": {
        "stage": 3, "overlap_comm": False, "contiguous_gradients": True, "sub_group_size": 1_000_000_000, **AUTO3,
        "stage3_max_live_parameters": 1_000_000_000, "stage3_max_reuse_distance": 1_000_000_000,
    },
}  # fmt: skip
OURS = ("zero1", "zero2", "zero3")
SEVERAL = " of 4"  # micro-batches a step
STEPS = 3


def configurations() -> dict[str, dict[str, Any]]:
    """Name -> a DeepSpeed configuration as written."""
    files = {name: json.loads((ROOT / "ds_configs" / f"{name}.json").read_text("utf-8")) for name in OURS}
    ours = {f"ours {name}": config for name, config in files.items()}
    ours |= {f"ours {name}{SEVERAL}": files[name] for name in OURS}
    # What a model too large to stay gathered until the backward pass does.
    gone = {"stage3_max_live_parameters": 0, "stage3_max_reuse_distance": 0}
    twice = {**files["zero3"]["zero_optimization"], **gone}
    ours["ours zero3, gathered twice"] = {**files["zero3"], "zero_optimization": twice}
    return {**ours, **{name: {"zero_optimization": zero} for name, zero in PEERS.items()}}


def worker(name: str) -> None:
    import torch
    from transformers import LlamaConfig, LlamaForCausalLM

    sys.path.insert(0, str(ROOT))
    from deepspeed import comm

    from finetune.distributed.engines.engine import EngineOptions
    from finetune.distributed.engines.registry import open_engine
    from finetune.distributed.session import Session
    from finetune.planning.batch import plan_batch
    from finetune.planning.deepspeed import resolve_deepspeed_config
    from finetune.planning.shape import hidden_size, layer_elements
    from finetune.recipe.training import TrainingSection
    from finetune.training.parameter_groups import make_optimizer

    ranks = int(os.environ["WORLD_SIZE"])
    shape = LlamaConfig(**SHAPE)
    config = resolve_deepspeed_config(
        configurations()[name],
        batch=plan_batch(ranks, ranks, 1, 1),
        precision="fp32",
        max_grad_norm=1.0,
        layer_elements=layer_elements(shape),
        hidden_size=hidden_size(shape),
    )
    config["comms_logger"] = {"enabled": True, "verbose": False, "prof_all": True, "debug": False}
    session = Session.open(config, precision="fp32", cpu=True)
    torch.manual_seed(0)
    model = LlamaForCausalLM(shape)
    parameters = sum(parameter.numel() for parameter in model.parameters())
    engine = open_engine(
        "deepspeed",
        session,
        model,
        lambda module: make_optimizer(module, TrainingSection(), "adamw"),
        EngineOptions(1.0),
    )
    tokens = torch.arange(64).reshape(1, 64) % 100

    count = 4 if name.endswith(SEVERAL) else 1

    def step() -> None:
        for index in range(count):
            with engine.micro_batch(last=index == count - 1):
                logits = engine.model(input_ids=tokens).logits
                engine.backward(torch.nn.functional.cross_entropy(logits[0, :-1], tokens[0, 1:]) / count)
        engine.step()

    for _ in range(3):  # ZeRO-3 learns the order of modules first
        step()
    comm.comm.comms_logger.comms_dict.clear()
    for _ in range(STEPS):
        step()
    counted = {
        op: [(size, record[0]) for size, record in sizes.items()]
        for op, sizes in comm.comm.comms_logger.comms_dict.items()
    }
    if session.is_main:
        print("COUNTED " + json.dumps({"ops": counted, "parameters": parameters}), flush=True)
    session.close()


def sent(op: str, size: int, ranks: int) -> float:
    """Bytes that one rank sends for one collective whose logged size is `size` (the rank's input)."""
    share = (ranks - 1) / ranks
    if "all_reduce" in op:
        return 2 * size * share
    if "all_gather" in op:
        return size * ranks * share
    return size * share


def measure(name: str, ranks: int) -> tuple[dict[str, int], float, int]:
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node", str(ranks), __file__]
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "DS_ACCELERATOR": "cpu"}
    done = subprocess.run(
        [*command, "--worker", name], env=environment, capture_output=True, text=True, timeout=600, check=False
    )
    lines = [line for line in done.stdout.splitlines() if line.startswith("COUNTED ")]
    if not lines:
        raise SystemExit(done.stderr[-4000:])
    told = json.loads(lines[0].removeprefix("COUNTED "))
    calls: dict[str, int] = {}
    total = 0.0
    for op, sizes in told["ops"].items():
        for size, count in sizes:
            if size >= 1024:  # flags and norms are counted as calls of nothing
                calls[op] = calls.get(op, 0) + count
                total += sent(op, size, ranks) * count
    return {op: round(count / STEPS) for op, count in calls.items()}, total / STEPS, told["parameters"]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--ranks", type=int, default=4)
    parser.add_argument("--worker", default="")
    options = parser.parse_args()
    if options.worker:
        worker(options.worker)
        return
    print("| configuration | sent per rank and step | of ideal | collectives per step |\n|---|---|---|---|")
    for name, config in configurations().items():
        calls, total, parameters = measure(name, options.ranks)
        stage = config["zero_optimization"]["stage"]
        ideal = (3 if stage == 3 else 2) * parameters * 4 * (options.ranks - 1) / options.ranks
        told = ", ".join(f"{count} {op}" for op, count in sorted(calls.items()))
        print(f"| {name} | {total / 2**20:.2f} MiB | {total / ideal:.3f} | {told} |", flush=True)


if __name__ == "__main__":
    main()
