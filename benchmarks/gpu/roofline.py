"""What a training step asks of an H100, ours beside its peer's, operator by operator: estimated, not run. No GPU is needed.

    python -m benchmarks.gpu.roofline                 # every row of text of benchmarks.gpu
    python -m benchmarks.gpu.roofline --only full-bf16 --top 20

Both sides run their real model code, ours its real engine, on tensors without values (FakeTensorMode); kernels of a GPU are
stand-ins (`stand_ins.py`) with the memory and the signatures of the originals. The peer is transformers' Llama with Liger's
layers, TRL's head or Liger's, clipping by torch and fused AdamW, as HF Trainer calls them. One and two layers are traced, and
the others are as the second one is. Time is that of a roofline (`operator_costs.py`): 85 % of the H100's bandwidth, 70 % of
its peak in products, 50 % in attention, 5 microseconds per launch.
"""

from __future__ import annotations

import argparse
from collections.abc import Iterator
from contextlib import ExitStack, nullcontext
from dataclasses import dataclass
from types import SimpleNamespace
from typing import Any

import numpy as np
import torch
import transformers
from peft import LoraConfig, get_peft_model
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensorMode

from benchmarks.counting import GIB, fake_model
from benchmarks.gpu.make import SHAPES
from benchmarks.gpu.operator_costs import H100, Costs, Total, wait
from benchmarks.gpu.stand_ins import LigerHead, TrlHead, on_a_gpu, use_liger_layers
from finetune.distributed.engines.ddp import DdpEngine
from finetune.distributed.engines.engine import EngineOptions
from finetune.models.accumulated_products import convert_linears
from finetune.models.kept_casts import keeping_casts
from finetune.models.light_checkpointing import use_light_checkpointing
from finetune.models.loss_head import install_loss_head
from finetune.models.low_rank import add_in_place
from finetune.models.segmented import use_segmented_attention
from finetune.recipe.training import TrainingSection
from finetune.tasks.batch import Batch
from finetune.tasks.text.padding_free import concatenate_rows
from finetune.training.parameter_groups import make_optimizer

SIDES = ("ours", "TRL's head", "Liger's head")


@dataclass(frozen=True)
class Side:
    """rows of a micro-batch, and micro-batches of a step. checkpointing: "", "whole" or "light"."""

    rows: int
    micro_batches: int
    weights: torch.dtype = torch.bfloat16
    masters: bool = False
    checkpointing: str = ""


@dataclass(frozen=True)
class Row:
    """One comparison: a shape of `make.SHAPES`, rows of `length` tokens, both sides."""

    shape: str
    ours: Side
    peer: Side
    adapter: bool = False
    length: int = 4096


ROWS = {
    "full-bf16": Row("1b", Side(4, 4), Side(4, 4)),
    "full-fp32-masters": Row(
        "1b", Side(1, 16, masters=True, checkpointing="light"), Side(4, 4, torch.float32, checkpointing="whole")
    ),
    "lora-8b": Row("8b", Side(2, 4, checkpointing="whole"), Side(2, 4, checkpointing="whole"), adapter=True),
    "lora-8b-stored": Row("8b", Side(2, 4), Side(2, 4), adapter=True),
}


def main() -> None:
    """See the head of the file."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", action="append", choices=list(ROWS), default=[])
    parser.add_argument("--top", type=int, default=12, help="operators whose time differs most")
    asked = parser.parse_args()
    print("Estimated for an H100 by a roofline, not run on one.")
    for name in asked.only or ROWS:
        row = ROWS[name]
        totals = {side: estimate(row, side) for side in SIDES}
        print(f"\n{name}: {row.shape}, {row.ours.rows * row.ours.micro_batches * row.length:,} tokens a step\n")
        print(summary(row, totals), differences(totals["ours"], totals[SIDES[1]], asked.top), sep="\n\n", flush=True)


def summary(row: Row, totals: dict[str, Total]) -> str:
    """A line for each side."""
    tokens = row.ours.rows * row.ours.micro_batches * row.length
    lines = [
        "| side | ms | tokens/s | TB moved | PFLOP | launches | waits | peak GiB |",
        "|---|---|---|---|---|---|---|---|",
    ]
    for side, total in totals.items():
        line, seconds = total.sum()
        cells = [
            f"{seconds * 1e3:,.0f}", f"{tokens / seconds:,.0f}", f"{line.bytes / 1e12:.2f}", f"{line.flops / 1e15:.3f}",
            f"{line.launches:,}", f"{total.waits.total()}", f"{total.peak / GIB:.1f}",
        ]  # fmt: skip
        lines.append(f"| {side} | {' | '.join(cells)} |")
    return "\n".join(lines)


def differences(ours: Total, other: Total, top: int, *, peer: str = SIDES[1]) -> str:
    """The operators whose estimated times differ most. peer: what the other side is called."""
    names = sorted(
        {*ours.seconds, *other.seconds}, key=lambda name: -abs(ours.seconds.get(name, 0) - other.seconds.get(name, 0))
    )
    lines = [f"| operator | ours: ms, GB, launches | {peer}: ms, GB, launches | ms more |", "|---|---|---|---|"]
    for name in names[:top]:
        both = [ours.seconds.get(name, 0.0), other.seconds.get(name, 0.0)]
        cells = [
            f"{seconds * 1e3:.1f}, {line.bytes / 1e9:,.0f}, {line.launches:,}"
            if (line := side.lines.get(name))
            else "-"
            for side, seconds in zip((ours, other), both, strict=True)
        ]
        lines.append(f"| {name} | {' | '.join(cells)} | {(both[0] - both[1]) * 1e3:+.1f} |")
    return "\n".join(lines)


def estimate(row: Row, side: str) -> Total:
    """One optimizer step, the second: the first makes the optimizer's state."""
    layers = SHAPES[row.shape][2]
    one, two = (trace(row, side, count) for count in (1, 2))
    total = Total(H100)
    micro_batches = (row.ours if side == "ours" else row.peer).micro_batches
    for part, times in (("first", 1), ("later", micro_batches - 1), ("update", 1)):
        total.add(two[part], times * (layers - 1))
        total.add(one[part], times * (2 - layers))
    total.peak = max(one[part].peak + (two[part].peak - one[part].peak) * (layers - 1) for part in one)
    return total


def trace(row: Row, side: str, layers: int) -> dict[str, Costs]:
    """The parts of a step: the first micro-batch, a later one, whose gradients are added, and the update."""
    mode = FakeTensorMode()
    with on_a_gpu():
        step = (_Ours if side == "ours" else _Peer)(row, side, layers, mode)
        found = {}
        with mode:
            for name in ("first", "later", "update") * 2:
                found[name] = costs = Costs()
                costs.hold(*step.held())
                with costs:
                    step.update() if name == "update" else step.passes()
        return found


def build(row: Row, side: Side, layers: int, mode: FakeTensorMode) -> Any:
    """A Llama in training mode, with Liger's layers, and an adapter in float32 over bf16 where the row has one."""
    hidden, inner, _, heads, groups, tied, vocabulary = SHAPES[row.shape]

    def make() -> Any:
        config = transformers.LlamaConfig(
            vocab_size=vocabulary, hidden_size=hidden, intermediate_size=inner, num_hidden_layers=layers,
            num_attention_heads=heads, num_key_value_heads=groups, tie_word_embeddings=tied,
        )  # fmt: skip
        model: Any = transformers.LlamaForCausalLM(config)
        if side.checkpointing == "whole":
            model.gradient_checkpointing_enable(gradient_checkpointing_kwargs={"use_reentrant": False})
        if not row.adapter:
            return model
        return get_peft_model(model, LoraConfig(r=16, lora_alpha=32, target_modules="all-linear"))

    model = fake_model(mode, make, side.weights).train()
    with mode:
        for weight in model.parameters():
            if weight.requires_grad and row.adapter:
                weight.data = weight.data.float()
    use_liger_layers(model)
    return model


class _Step:
    model: Any
    optimizer: Any

    def held(self) -> Iterator[Tensor]:
        """What lives before a part of the step."""
        for weight in self.model.parameters():
            yield weight
            if weight.grad is not None:
                yield weight.grad
        for group in self.optimizer.param_groups:
            yield from group["params"]
        for state in self.optimizer.state.values():
            yield from (value for value in state.values() if isinstance(value, Tensor))


class _Ours(_Step):
    """The real engine of one rank, as it is opened on a GPU."""

    def __init__(self, row: Row, side: str, layers: int, mode: FakeTensorMode) -> None:
        model = build(row, row.ours, layers, mode)
        use_segmented_attention(model.get_base_model() if row.adapter else model)
        if row.adapter:
            add_in_place(model)
        install_loss_head(model)
        convert_linears(model)
        if row.ours.checkpointing == "light":
            use_light_checkpointing(model)
        self.model = model
        self.batch = _packed(row.ours.rows, row.length, mode)
        training = TrainingSection(learning_rate=1e-5, global_batch=16, max_grad_norm=1.0, epochs=1)
        model.to = lambda device: model  # it is there
        options = EngineOptions(max_grad_norm=1.0, master_weights=row.ours.masters)
        with mode:
            self.engine = DdpEngine(
                _session(), model, lambda module: make_optimizer(module, training, "adamw"), options
            )
        self.optimizer = self.engine.inner_optimizer
        self.units = row.ours.rows * row.length * row.ours.micro_batches
        self.within = ExitStack()  # what the engine opens around all micro-batches, which come one by one here

    def passes(self) -> None:
        """Of a micro-batch."""
        self.within.enter_context(keeping_casts())
        self.engine.accumulate(
            [self.batch],
            lambda batch: self.engine.model(**batch.inputs),
            lambda outputs, batch, dummy: outputs["loss_sum"],
            lambda: 1.0 / self.units,
        )

    def update(self) -> None:
        """Clipping, the optimizer, and what follows it."""
        self.within.close()
        self.engine.step()


def _session() -> Any:
    """One rank, whose accelerator does what Accelerate does in bf16 without DeepSpeed."""

    def prepare_model(module: nn.Module, **_: Any) -> nn.Module:
        module.forward = torch.autocast("cpu", torch.bfloat16)(module.forward)  # type: ignore[method-assign]
        return module

    accelerator = SimpleNamespace(
        prepare_model=prepare_model,
        prepare=lambda optimizer: SimpleNamespace(
            optimizer=optimizer, step=optimizer.step, zero_grad=optimizer.zero_grad
        ),
        no_sync=lambda model: nullcontext(),
        backward=lambda loss: loss.backward(),
        unscale_gradients=lambda optimizer: None,
    )
    return SimpleNamespace(world_size=1, device=torch.device("cpu"), accelerator=accelerator)


def _packed(rows: int, length: int, mode: FakeTensorMode) -> Batch:
    inputs, _ = concatenate_rows([{"input_ids": np.zeros(length, np.int64)}] * rows)
    positions = torch.arange(rows * (length - 1))
    inputs |= {"target_ids": positions, "target_positions": positions}
    fake = {name: mode.from_tensor(value) if isinstance(value, Tensor) else value for name, value in inputs.items()}
    return Batch((0,), {**fake, "use_cache": False})


class _Peer(_Step):
    """What HF Trainer does with a model that Liger patched."""

    def __init__(self, row: Row, side: str, layers: int, mode: FakeTensorMode) -> None:
        self.side, self.row = side, row
        self.model = build(row, row.peer, layers, mode)
        if row.adapter and row.peer.checkpointing:
            self.model.enable_input_require_grads()
        with mode:
            trained = [weight for weight in self.model.parameters() if weight.requires_grad]
            self.optimizer = torch.optim.AdamW(trained, lr=1e-5, fused=True)
            self.tokens = torch.zeros(row.peer.rows, row.length, dtype=torch.int64)

    def passes(self) -> None:
        """Of a micro-batch. TRL asks for its number of tokens, entropy and accuracy, HF Trainer whether the loss is finite,
        and transformers whether a row is padded.
        """
        wait("transformers: is a row padded")
        with torch.autocast("cpu", torch.bfloat16):
            bare = self.model.get_base_model() if self.row.adapter else self.model
            hidden = bare.model(input_ids=self.tokens, use_cache=False).last_hidden_state
            rows = hidden[:, :-1].reshape(-1, hidden.shape[-1]).to(torch.bfloat16)  # the copy that a mask makes as well
            weight = bare.lm_head.weight.to(torch.bfloat16)
            targets = self.tokens[:, 1:].reshape(-1)
            head: Any = TrlHead if self.side == SIDES[1] else LigerHead
            if head is TrlHead:
                wait("TRL's head: which positions count")
            loss = head.apply(rows, weight, targets).sum() / 7.0
        for place in ("TRL: entropy", "TRL: accuracy", "TRL: tokens", "HF Trainer: is the loss finite"):
            wait(place)
        loss.backward()

    def update(self) -> None:
        """Clipping, AdamW, and clearing gradients."""
        trained = [weight for weight in self.model.parameters() if weight.grad is not None]
        torch.nn.utils.clip_grad_norm_(trained, 1.0)
        self.optimizer.step()
        self.optimizer.zero_grad(set_to_none=True)


if __name__ == "__main__":
    main()
