"""What float8 products cost in exactness: losses of a small Llama in bf16 and with torchao's recipes, emulated on a CPU.

    pip install torchao
    python -m benchmarks.float8 [--steps 200]

A byte-level Llama of two layers (hidden 64) learns the text of this repository's documentation, in bf16 with float32 masters
under autocast, each time from the same weights and batches. `bf16, halves` computes each step in two micro-batches: nothing
but the order of sums differs, which is the measure of what rounding alone does. Emulation rounds as float8 does and multiplies
in float32; a GPU also adds up in fewer bits (fast accumulation). What float8 saves only a GPU can show.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Iterator
from pathlib import Path

import torch
from torch import Tensor
from transformers import LlamaConfig, LlamaForCausalLM

from finetune.models.float8 import use_float8

ROOT = Path(__file__).resolve().parents[1]
ROWS, TOKENS, HELD_OUT, LEARNING_RATE = 16, 128, 16, 2e-3
WAYS = ("bf16", "bf16, halves", "tensorwise", "rowwise_with_gw_hp")
SHAPE = {"hidden_size": 64, "intermediate_size": 192, "num_hidden_layers": 2, "num_attention_heads": 4}


def rows() -> Tensor:
    """The documentation as bytes, in rows of TOKENS."""
    text = b"\n".join(path.read_bytes() for path in sorted((ROOT / "docs").glob("*.md")))
    data = torch.frombuffer(bytearray(text), dtype=torch.uint8).long()
    return data[: len(data) // TOKENS * TOKENS].view(-1, TOKENS)


def batches(data: Tensor, steps: int) -> Iterator[Tensor]:
    """The same for every way."""
    draw = torch.Generator().manual_seed(1)
    for _ in range(steps):
        yield data[torch.randint(0, len(data), (ROWS,), generator=draw)]


def loss_of(model: LlamaForCausalLM, batch: Tensor) -> Tensor:
    with torch.autocast("cpu", torch.bfloat16):
        loss: Tensor = model(input_ids=batch, labels=batch).loss
    return loss


def train(way: str, data: Tensor, steps: int) -> tuple[list[float], float]:
    """Losses of the steps, and of held-out rows at the end."""
    torch.manual_seed(0)
    model = LlamaForCausalLM(LlamaConfig(vocab_size=256, num_key_value_heads=2, **SHAPE)).train()
    if not way.startswith("bf16"):
        use_float8(model, way, print, emulate=True)
    optimizer = torch.optim.AdamW(model.parameters(), lr=LEARNING_RATE)
    held, trained = data[:HELD_OUT], data[HELD_OUT:]
    losses = []
    for step, batch in enumerate(batches(trained, steps)):
        for group in optimizer.param_groups:
            group["lr"] = LEARNING_RATE * min(1, (step + 1) / 20) * (1 - step / steps)
        parts = batch.chunk(2 if "halves" in way else 1)
        total = 0.0
        for part in parts:
            loss = loss_of(model, part) / len(parts)
            loss.backward()
            total += loss.item()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad()
        losses.append(total)
    with torch.no_grad():
        return losses, loss_of(model.eval(), held).item()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--steps", type=int, default=200)
    parser.add_argument("--json", type=Path, default=None)
    arguments = parser.parse_args()
    data, found = rows(), {}
    for way in WAYS:
        found[way] = train(way, data, arguments.steps)
    exact, last = found["bf16"]
    print("\n| products | largest difference of a loss, steps 1 to 10 | of all | mean of the last 20 | held-out loss |")
    print("|---|---|---|---|---|")
    for way, (losses, held) in found.items():
        each = [abs(ours - theirs) / theirs for ours, theirs in zip(losses, exact, strict=True)]
        mean = (sum(losses[-20:]) - sum(exact[-20:])) / sum(exact[-20:])
        cells = f"{max(each[:10]):.1e} | {max(each):.1e} | {mean:+.2%} | {held:.4f} ({(held - last) / last:+.2%})"
        print(f"| {way} | {cells} |")
    if arguments.json:
        arguments.json.write_text(json.dumps(found))


if __name__ == "__main__":
    main()
