"""Peak memory of forward and backward pass with the loss head, beside the loss of all logits; traced, without a GPU. The last
column has gated layers that compute their activation again as well, as models that are trained do.

    python -m benchmarks.loss_head

A Llama of 1.24B parameters (hidden 2,048, 16 layers, vocabulary 128,256, tied), 8,192 tokens (4 x 2,048), of which every one is
supervised, and every fourth. Tensors have no values (FakeTensorMode), so that nothing is computed; live bytes are counted
in blocks of 512, weights and their gradients included, optimizer state not. "bf16": weights in bf16. "none": float32 weights
under autocast, and what Accelerate's wrapper makes of outputs. A measured tiny Llama agrees to the byte.
"""

from __future__ import annotations

import argparse
from typing import Any
from unittest import mock

import torch
import transformers
from accelerate.utils import convert_outputs_to_fp32
from torch._subclasses.fake_tensor import FakeTensorMode

from benchmarks.counting import GIB, Count, fake_model
from finetune.models import loss_head
from finetune.models.gated import recompute_gates

ONE_BILLION = {
    "vocab_size": 128_256, "hidden_size": 2048, "intermediate_size": 8192, "num_hidden_layers": 16,
    "num_attention_heads": 32, "num_key_value_heads": 8, "head_dim": 64, "max_position_embeddings": 8192,
    "tie_word_embeddings": True,
}  # fmt: skip


def peak(
    config: dict[str, Any],
    *,
    head: bool,
    gates: bool = False,
    weights: torch.dtype,
    autocast: bool,
    rows: int,
    length: int,
    every: int = 1,
) -> tuple[int, int]:
    """(peak bytes of a forward and a backward pass, bytes moved). head: the loss head; else the loss of all logits. gates:
    those of gated layers are computed again in the backward pass.
    """
    mode, count = FakeTensorMode(), Count()
    build = lambda: transformers.LlamaForCausalLM(transformers.LlamaConfig(**config))  # noqa: E731
    model: Any = fake_model(mode, build, weights).train()
    with mock.patch.object(loss_head, "find_transform", loss_head.find_transform if head else lambda _: "compared"):
        loss_head.install_loss_head(model)
    if gates and recompute_gates(model) != config["num_hidden_layers"]:
        raise RuntimeError("the gated layers of this version of transformers are not known")
    run = convert_outputs_to_fp32(model.forward) if autocast else model.forward
    with mode, mock.patch("transformers.masking_utils.find_packed_sequence_indices", lambda _: None):
        tokens = torch.zeros(rows, length, dtype=torch.int64)
        positions = torch.zeros(rows * length // every, dtype=torch.int64)
        count.hold(*model.parameters())
        with count, torch.autocast("cpu", torch.bfloat16, enabled=autocast):
            found = run(input_ids=tokens, use_cache=False, target_ids=positions, target_positions=positions)
            loss = found["loss_sum"] / 3.0
            del found
            loss.backward()
    return count.peak, count.moved


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--layers", type=int, default=16)
    config = ONE_BILLION | {"num_hidden_layers": parser.parse_args().layers}
    print("| weights | supervised | all logits: peak | loss head: peak | and gates again: peak | less | bytes moved |")
    print("|---|---|---|---|---|---|---|")
    for name, weights, autocast in (("bf16", torch.bfloat16, False), ("none (float32, autocast)", torch.float32, True)):
        for every in (1, 4):
            options: dict[str, Any] = {
                "weights": weights,
                "autocast": autocast,
                "rows": 4,
                "length": 2048,
                "every": every,
            }
            ways = ({"head": False}, {"head": True}, {"head": True, "gates": True})
            peaks, moved = zip(*(peak(config, **way, **options) for way in ways), strict=True)
            cells = [f"{value / GIB:.2f} GiB" for value in (*peaks, peaks[0] - peaks[-1])]
            print(f"| {name} | 1 of {every} | {' | '.join(cells)} ", end="")
            print(f"| {', '.join(f'{value / GIB:.0f}' for value in moved)} GiB |", flush=True)


if __name__ == "__main__":
    main()
