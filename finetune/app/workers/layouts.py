"""The layouts that `finetune verify` compares: every way to share out one step over ranks."""

from __future__ import annotations

from dataclasses import dataclass
from math import ceil


@dataclass(frozen=True)
class Variant:
    """One layout. micro_batch: examples per forward pass on one rank. tensor: ranks that share each layer's matrices;
    pipeline: stages of the model.
    """

    name: str
    ranks: int
    deepspeed: str
    micro_batch: int
    tensor: int = 1
    pipeline: int = 1


def make_variants(
    global_batch: int, ranks: int, *, splits: bool, tensor: int = 1, pipeline: bool = False
) -> list[Variant]:
    """Every way to share out a step. splits: also in several forward passes (BatchNorm is not the same then). tensor:
    the recipe's own, one more layout where that many ranks share the layers. pipeline: also with the model's layers
    shared out over two ranks.
    """
    share = ceil(global_batch / ranks)
    variants = [Variant("1 rank", 1, "none", global_batch)]
    if splits:
        variants.append(Variant("1 rank, accumulation", 1, "none", ceil(global_batch / 4)))
    variants.append(Variant(f"{ranks} ranks", ranks, "none", share))
    if splits:
        variants.append(Variant(f"{ranks} ranks, accumulation", ranks, "none", ceil(share / 3)))
    if pipeline and ranks > 1:
        variants.append(Variant("2 stages", 2, "none", ceil(global_batch / 4) if splits else global_batch, pipeline=2))
    size = ceil(share / 2) if splits else share
    variants += [Variant(f"{ranks} ranks, ZeRO-{stage}", ranks, f"zero{stage}", size) for stage in range(4)]
    if tensor > 1 and ranks % tensor == 0:
        variants.append(Variant(f"{ranks} ranks, tensor parallel {tensor}", ranks, "zero1", global_batch, tensor))
    return variants
