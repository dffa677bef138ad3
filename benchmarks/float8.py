r"""What float8 products cost in exactness: losses of a small Llama in bf16 and with torchao's recipes, emulated on a CPU.

    pip install torchao
    python -m benchmarks.float8 [--steps 150] [--seeds 3]

A byte-level Llama of two layers (hidden 64) learns the text of this repository's documentation, in bf16 with float32 masters
under autocast, each time from the same weights and batches. `bf16, halves` computes each step in two micro-batches: nothing
but the order of sums differs, which is the measure of what rounding alone does. Emulation rounds as float8 does and multiplies
in float32; a GPU also adds up in fewer bits (fast accumulation). What float8 saves only a GPU can show:

    python -m benchmarks.gpu --only full-bf16 --variant model.compile=layers \
        --variant "model.compile=layers model.float8=tensorwise"
"""

from __future__ import annotations

import argparse
from collections.abc import Iterator
from pathlib import Path

import torch
from torch import Tensor
from transformers import LlamaConfig, LlamaForCausalLM

from finetune.models.float8 import use_float8

ROOT = Path(__file__).resolve().parents[1]
ROWS, TOKENS, HELD_OUT, LEARNING_RATE = 16, 128, 16, 2e-3
WAYS = ("bf16, halves", "tensorwise", "rowwise_with_gw_hp")
SHAPE = {"hidden_size": 64, "intermediate_size": 192, "num_hidden_layers": 2, "num_attention_heads": 4}


def rows() -> Tensor:
    """The documentation as bytes, in rows of TOKENS."""
    text = b"\n".join(path.read_bytes() for path in sorted((ROOT / "docs").glob("*.md")))
    data = torch.frombuffer(bytearray(text), dtype=torch.uint8).long()
    return data[: len(data) // TOKENS * TOKENS].view(-1, TOKENS)


def batches(data: Tensor, steps: int, seed: int) -> Iterator[Tensor]:
    """The same for every way."""
    draw = torch.Generator().manual_seed(seed)
    for _ in range(steps):
        yield data[torch.randint(0, len(data), (ROWS,), generator=draw)]


def make_model(way: str, seed: int) -> LlamaForCausalLM:
    torch.manual_seed(seed)
    model = LlamaForCausalLM(LlamaConfig(vocab_size=256, num_key_value_heads=2, **SHAPE)).train()
    if not way.startswith("bf16"):
        use_float8(model, way, lambda line: None, emulate=True)
    return model


def loss_of(model: LlamaForCausalLM, batch: Tensor) -> Tensor:
    with torch.autocast("cpu", torch.bfloat16):
        loss: Tensor = model(input_ids=batch, labels=batch).loss
    return loss


def backward(way: str, model: LlamaForCausalLM, batch: Tensor) -> float:
    """Gradients of a step, and its loss."""
    parts, total = batch.chunk(2 if "halves" in way else 1), 0.0
    for part in parts:
        loss = loss_of(model, part) / len(parts)
        loss.backward()
        total += loss.item()
    return total


def train(way: str, data: Tensor, steps: int, seed: int) -> tuple[list[float], float, LlamaForCausalLM]:
    """Losses of the steps, of held-out rows at the end, and the model."""
    model = make_model(way, seed)
    optimizer = torch.optim.AdamW(model.parameters(), lr=LEARNING_RATE)
    losses = []
    for step, batch in enumerate(batches(data[HELD_OUT:], steps, seed)):
        for group in optimizer.param_groups:
            group["lr"] = LEARNING_RATE * min(1, (step + 1) / 20) * (1 - step / steps)
        losses.append(backward(way, model, batch))
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad()
    with torch.no_grad():
        return losses, loss_of(model.eval(), data[:HELD_OUT]).item(), model


def gradient(way: str, trained: LlamaForCausalLM, data: Tensor) -> Tensor:
    """Of held-out rows, with the weights of a model that was trained in bf16."""
    model = make_model(way, 0)
    model.load_state_dict(trained.state_dict())
    backward(way, model, data[:HELD_OUT])
    return torch.cat([weight.grad.flatten() for weight in model.parameters() if weight.grad is not None])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--steps", type=int, default=150)
    parser.add_argument("--seeds", type=int, default=3)
    arguments = parser.parse_args()
    data = rows()
    print("| products | seed | difference of a gradient | of losses, steps 1 to 10 | of all | held-out loss |")
    print("|---|---|---|---|---|---|", flush=True)
    for seed in range(1, arguments.seeds + 1):
        exact, last, trained = train("bf16", data, arguments.steps, seed)
        expected = gradient("bf16", trained, data)
        print(f"| bf16 | {seed} | | | | {last:.4f} |", flush=True)
        for way in WAYS:
            losses, held, _ = train(way, data, arguments.steps, seed)
            each = [abs(ours - theirs) / theirs for ours, theirs in zip(losses, exact, strict=True)]
            off = (gradient(way, trained, data) - expected).norm() / expected.norm()
            cells = f"{off:.1e} | {max(each[:10]):.1e} | {max(each):.1e} | {held:.4f} ({(held - last) / last:+.2%})"
            print(f"| {way} | {seed} | {cells} |", flush=True)


if __name__ == "__main__":
    main()
