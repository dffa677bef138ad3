"""What an optimizer step in bf16 asks of one GPU under each engine: operators, bytes moved and peak memory, counted without a
clock on a CPU.

    python -m benchmarks.one_gpu [--layers 4] [--hidden 256] [--micro-batches 4]    # results: README.md

The real engines, one rank, each in a process of its own, on a Llama with random weights. The second step is counted, as the
first makes the optimizer's state: passes (all micro-batches) and the update (clipping, AdamW, copies) apart. Bytes of the
update, and memory, are given per parameter, because they grow with the model and not with the tokens. Losses are those of
the same batches. Operators of DeepSpeed's own C++ code are not seen; a process alone calls none of them but all-reduces.
"""

from __future__ import annotations

import argparse
import gc
import json
import os
import subprocess
import sys
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
import transformers

from benchmarks.counting import Count
from finetune.distributed.engines import master_weights
from finetune.distributed.engines.engine import EngineOptions
from finetune.distributed.engines.registry import open_engine
from finetune.distributed.session import Session
from finetune.models.gated import recompute_gates
from finetune.models.loss_head import install_loss_head
from finetune.models.segmented import use_segmented_attention
from finetune.planning.batch import BatchPlan
from finetune.planning.deepspeed import resolve_deepspeed_config
from finetune.planning.shape import layer_elements
from finetune.recipe.deepspeed import read_deepspeed_config
from finetune.recipe.shelf import find_deepspeed_config
from finetune.recipe.training import TrainingSection
from finetune.tasks.batch import Batch
from finetune.tasks.text.padding_free import concatenate_rows
from finetune.training.parameter_groups import make_optimizer

KINDS = {
    "none, float32 weights": ("none", False),
    "none, float32 masters": ("none", True),
    "zero1": ("zero1", False),
    "zero2": ("zero2", False),
}
SIZES = (160, 96, 128, 128)  # tokens of the sequences of a micro-batch
STEPS = 4
PORTIONS = 5  # of the update of float32 masters, as of a model of 1.3B parameters


def build(layers: int, hidden: int) -> Any:
    """A Llama as trainings build it."""
    torch.manual_seed(0)
    shape = {
        "vocab_size": 8 * hidden,
        "hidden_size": hidden,
        "intermediate_size": 4 * hidden,
        "num_hidden_layers": layers,
    }
    heads = {"num_attention_heads": 4, "num_key_value_heads": 2, "max_position_embeddings": 256}
    model = transformers.LlamaForCausalLM(transformers.LlamaConfig(**shape, **heads, tie_word_embeddings=True)).train()
    use_segmented_attention(model)
    install_loss_head(model)
    recompute_gates(model)
    return model


def open_kind(config: str, masters: bool, model: Any, micro_batches: int) -> Any:
    """The engine, as a training of one rank opens it."""
    training = TrainingSection(learning_rate=1e-3, global_batch=4 * micro_batches, max_grad_norm=1.0, epochs=1)
    resolved = None
    if config != "none":
        resolved = resolve_deepspeed_config(
            read_deepspeed_config(find_deepspeed_config(config)),
            batch=BatchPlan(4 * micro_batches, 1, 4, micro_batches),
            precision="bf16",
            max_grad_norm=1.0,
            hidden_size=model.config.hidden_size,
            layer_elements=layer_elements(model.config),
        )
    session = Session.open(resolved, precision="bf16", cpu=True)
    if masters or resolved is not None:
        model = model.bfloat16()
    options = EngineOptions(max_grad_norm=1.0, master_weights=masters)
    name = "ddp" if resolved is None else "deepspeed"
    return open_engine(name, session, model, lambda module: make_optimizer(module, training, "adamw"), options)


def make_batches(vocabulary: int, count: int) -> list[Batch]:
    draw = np.random.default_rng(0)
    batches = []
    for _ in range(count):
        inputs, borders = concatenate_rows([{"input_ids": draw.integers(0, vocabulary, size=size)} for size in SIZES])
        positions = torch.arange(0, borders[-1], 3)
        batches.append(
            Batch((0,), {**inputs, "use_cache": False, "target_ids": positions, "target_positions": positions})
        )
    return batches


def count_kind(kind: str, layers: int, hidden: int, micro_batches: int) -> dict[str, Any]:
    """Figures of one engine; this process can open no other one afterwards."""
    model = build(layers, hidden)
    parameters = sum(parameter.numel() for parameter in model.parameters())
    master_weights.PORTION = parameters // PORTIONS
    engine = open_kind(*KINDS[kind], model, micro_batches)
    batches = make_batches(8 * hidden, micro_batches)
    units = sum(len(batch.inputs["target_ids"]) for batch in batches)
    found: dict[str, Any] = {"parameters": parameters, "losses": []}
    for step in range(STEPS):
        passes, update = Count(), Count()
        if step == 1:
            passes.hold(*_live_tensors())
        engine.set_learning_rate(1e-3)
        with passes:
            done = _accumulate(engine, batches, units)
        if step == 1:
            update.hold(*_live_tensors())
        with update:
            engine.step()
        found["losses"].append(sum(float(loss) for loss in done.losses) / units)
        if step == 1:
            found |= {
                "pass_operators": passes.operators.total() / micro_batches,
                "pass_bytes": passes.moved / micro_batches,
                "pass_peak": passes.peak,
                "update_operators": update.operators.total(),
                "update_bytes": update.moved / parameters,
                "update_peak": update.peak / parameters,
            }
        del done
    return found


def _accumulate(engine: Any, batches: Sequence[Batch], units: int) -> Any:
    return engine.accumulate(
        batches,
        lambda batch: engine.model(**batch.inputs),
        lambda outputs, batch, dummy: outputs["loss_sum"],
        lambda: 1.0 / units,
    )


def _live_tensors() -> list[torch.Tensor]:
    gc.collect()
    return [thing for thing in gc.get_objects() if type(thing) in (torch.Tensor, torch.nn.Parameter)]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--kind", choices=KINDS, help="this engine alone, as JSON")
    parser.add_argument("--layers", type=int, default=4)
    parser.add_argument("--hidden", type=int, default=256)
    parser.add_argument("--micro-batches", type=int, default=4)
    asked = parser.parse_args()
    sizes = (asked.layers, asked.hidden, asked.micro_batches)
    if asked.kind:
        print(json.dumps(count_kind(asked.kind, *sizes)))
        return
    print(
        "| engine | passes: operators | MB moved | peak MB | update: operators | bytes per parameter | peak per parameter |"
    )
    print("|---|---|---|---|---|---|---|")
    losses = []
    for kind in KINDS:
        options = ["--layers", str(sizes[0]), "--hidden", str(sizes[1]), "--micro-batches", str(sizes[2])]
        command = [sys.executable, "-m", "benchmarks.one_gpu", "--kind", kind, *options]
        done = subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True, env={**os.environ})
        found = json.loads(done.stdout.splitlines()[-1])
        losses.append(f"{kind}: " + ", ".join(f"{loss:.5f}" for loss in found["losses"]))
        cells = [
            f"{found['pass_operators']:,.0f}",
            f"{found['pass_bytes'] / 1e6:,.1f}",
            f"{found['pass_peak'] / 1e6:,.1f}",
            f"{found['update_operators']:,}",
            f"{found['update_bytes']:.1f}",
            f"{found['update_peak']:.1f}",
        ]
        print(f"| {kind} | {' | '.join(cells)} |", flush=True)
    print(f"\n{found['parameters']:,} parameters; losses:", *losses, sep="\n")


if __name__ == "__main__":
    main()
