"""Peak memory and bytes moved with every way of checkpointing activations; traced, without a GPU.

    python -m benchmarks.light_checkpointing

The Llama of 1.24B parameters of `benchmarks.loss_head`, bf16 weights, 4,096 tokens, FakeTensorMode: bytes alive between forward
and backward pass without weights, bytes moved by both passes, and operators. Norms are LayerNorms without a bias, which keep
what a fused RMSNorm keeps on a GPU (its input, and a number per token). Fused kernels there move less.
"""

from __future__ import annotations

from typing import Any
from unittest import mock

import torch
import transformers
from torch import nn
from torch._subclasses.fake_tensor import FakeTensorMode

from benchmarks.counting import GIB, Count, fake_model
from benchmarks.loss_head import ONE_BILLION
from finetune.models.gated import recompute_gates
from finetune.models.light_checkpointing import use_light_checkpointing
from finetune.models.loss_head import install_loss_head

TOKENS = 4096


class FusedLlama(transformers.LlamaForCausalLM):
    """With norms of one operator."""

    def __init__(self, config: Any) -> None:
        super().__init__(config)
        for parent in list(self.modules()):
            for name, child in list(parent.named_children()):
                if type(child).__name__ == "LlamaRMSNorm":
                    setattr(parent, name, nn.LayerNorm(config.hidden_size, eps=config.rms_norm_eps, bias=False))


def trace(way: bool | str) -> tuple[int, int, int]:
    """(bytes held between the passes, bytes moved, operators)."""
    mode, count = FakeTensorMode(), Count()
    model: Any = fake_model(mode, lambda: FusedLlama(transformers.LlamaConfig(**ONE_BILLION)), torch.bfloat16).train()
    install_loss_head(model)
    if way is True:
        model.gradient_checkpointing_enable(gradient_checkpointing_kwargs={"use_reentrant": False})
    else:
        recompute_gates(model)
    if way == "light":
        use_light_checkpointing(model)
    with mode, mock.patch("transformers.masking_utils.find_packed_sequence_indices", lambda _: None):
        ids = torch.zeros(1, TOKENS, dtype=torch.int64)
        targets = torch.zeros(TOKENS, dtype=torch.int64)
        count.hold(*model.parameters())
        weights = count.live
        with count:
            loss = model(input_ids=ids, use_cache=False, target_ids=targets)["loss_sum"]
            held = count.live - weights
            loss.backward()
    return held, count.moved, sum(count.operators.values())


def main() -> None:
    """See the head of the file."""
    print("| gradient_checkpointing | held between the passes | bytes moved | operators |")
    print("|---|---|---|---|")
    for way in (False, "light", True):
        held, moved, operators = trace(way)
        print(f"| {str(way).lower()} | {held / GIB:.2f} GiB | {moved / GIB:.1f} GiB | {operators} |", flush=True)


if __name__ == "__main__":
    main()
