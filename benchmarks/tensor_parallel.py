"""Benefit and cost of tensor parallelism: weights and optimizer state per rank, bytes per step, the same losses.

    python benchmarks/tensor_parallel.py          # 1 and 2 gloo ranks on this machine; results: README.md

The Llama of traffic.py (4 layers), float32, a global batch of 4 sequences of 64 tokens, 6 steps. Bytes are those that one rank
sends with ring algorithms, as in traffic.py. `each layer's own`: the gradient of the input is reduced as in DeepSpeed, once for
each matrix that reads it, instead of once for all that read the same input.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))
from benchmarks.traffic import SHAPE, sent  # noqa: E402

LAYOUTS: dict[str, dict[str, Any]] = {
    "1 rank": {"ranks": 1, "config": "zero1"},
    "2 ranks, ZeRO-1": {"ranks": 2, "config": "zero1"},
    "2 ranks, ZeRO-3": {"ranks": 2, "config": "zero3"},
    "tensor 2, ZeRO-1, each layer's own": {"ranks": 2, "config": "zero1", "tensor": 2, "joined": False},
    "tensor 2, ZeRO-1": {"ranks": 2, "config": "zero1", "tensor": 2},
}
SEQUENCES, TOKENS, STEPS = 4, 64, 6


def worker(name: str) -> None:
    import torch
    from deepspeed import comm
    from transformers import LlamaConfig, LlamaForCausalLM

    from finetune.distributed import tensor_parallel
    from finetune.distributed.engines.engine import EngineOptions
    from finetune.distributed.engines.registry import open_engine
    from finetune.distributed.session import Session
    from finetune.planning.batch import plan_batch
    from finetune.planning.deepspeed import resolve_deepspeed_config
    from finetune.planning.shape import hidden_size, layer_elements
    from finetune.recipe.training import TrainingSection
    from finetune.training.parameter_groups import make_optimizer

    layout = LAYOUTS[name]
    tensor, shape = layout.get("tensor", 1), LlamaConfig(**SHAPE)
    if not layout.get("joined", True):
        tensor_parallel.join_input_gradients = lambda module: 0
    replicas = layout["ranks"] // tensor
    config = resolve_deepspeed_config(
        json.loads((ROOT / "ds_configs" / f"{layout['config']}.json").read_text("utf-8")),
        batch=plan_batch(SEQUENCES, replicas, SEQUENCES // replicas, 1),
        precision="fp32",
        max_grad_norm=1.0,
        layer_elements=layer_elements(shape),
        hidden_size=hidden_size(shape),
        tensor=tensor,
    )
    config["comms_logger"] = {"enabled": True, "verbose": False, "prof_all": True, "debug": False}
    session = Session.open(config, precision="fp32", cpu=True, replica_size=tensor)
    torch.manual_seed(0)
    model = LlamaForCausalLM(shape)
    engine = open_engine(
        "deepspeed",
        session,
        model,
        lambda module: make_optimizer(module, TrainingSection(), "adamw"),
        EngineOptions(1.0),
    )
    tokens = torch.randint(0, 100, (SEQUENCES, TOKENS), generator=torch.Generator().manual_seed(1))
    share = SEQUENCES // replicas
    own = tokens[session.replica * share :][:share]

    def step() -> float:
        with engine.micro_batch(last=True):
            logits = engine.model(input_ids=own).logits[:, :-1].flatten(0, 1)
            loss = torch.nn.functional.cross_entropy(logits, own[:, 1:].flatten(), reduction="sum")
            units = SEQUENCES * (TOKENS - 1)
            engine.backward(loss * replicas / units)
        engine.step()
        return session.sum(float(loss.detach()) if engine.owns_outputs else 0.0)[0] / units

    losses = [step() for _ in range(3)]
    comm.comm.comms_logger.comms_dict.clear()
    losses += [step() for _ in range(STEPS - 3)]
    counted = {
        op: [(size, record[0]) for size, record in sizes.items()]
        for op, sizes in comm.comm.comms_logger.comms_dict.items()
    }
    held = sum(getattr(p, "ds_tensor", p).numel() for p in engine.module.parameters())
    state = engine.inner_optimizer.optimizer.state.values()
    moments = sum(t.nbytes for one in state for t in one.values() if torch.is_tensor(t) and t.ndim)
    if session.is_main:
        told = {"ops": counted, "held": held, "moments": moments, "losses": losses}
        print("COUNTED " + json.dumps(told), flush=True)
    session.close()


def measure(name: str) -> dict[str, Any]:
    ranks = str(LAYOUTS[name]["ranks"])
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node", ranks, __file__]
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "DS_ACCELERATOR": "cpu"}
    done = subprocess.run([*command, name], env=environment, capture_output=True, text=True, timeout=600, check=False)
    lines = [line for line in done.stdout.splitlines() if line.startswith("COUNTED ")]
    if not lines:
        raise SystemExit(done.stderr[-4000:])
    told: dict[str, Any] = json.loads(lines[0].removeprefix("COUNTED "))
    calls: dict[str, int] = {}
    total = 0.0
    for op, sizes in told["ops"].items():
        for size, count in sizes:
            if op == "reduce" and LAYOUTS[name].get("tensor", 1) == int(ranks):
                continue  # over one replica: nothing is sent
            if size >= 1024:  # flags and norms are counted as calls of nothing
                calls[op] = calls.get(op, 0) + count
                total += sent(op, size, int(ranks)) * count
    told["sent"] = total / (STEPS - 3)
    told["calls"] = {op: round(count / (STEPS - 3)) for op, count in calls.items()}
    return told


def main() -> None:
    if len(sys.argv) > 1:
        worker(sys.argv[1])
        return
    print(
        "| layout | weights per rank | Adam's moments per rank | sent per rank and step | collectives per step |",
        end="",
    )
    print(" last loss |")
    print("|---|---|---|---|---|---|")
    for name in LAYOUTS:
        told = measure(name)
        calls = ", ".join(f"{count} {op}" for op, count in sorted(told["calls"].items()) if told["sent"]) or "none"
        bytes_held = f"{told['held'] * 4 / 2**20:.2f} MiB | {told['moments'] / 2**20:.2f} MiB"
        print(
            f"| {name} | {bytes_held} | {told['sent'] / 2**20:.2f} MiB | {calls} | {told['losses'][-1]:.7f} |",
            flush=True,
        )


if __name__ == "__main__":
    main()
