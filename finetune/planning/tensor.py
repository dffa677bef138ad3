"""Tensor parallelism as a plan: what DeepSpeed is told, and which models and engines it cannot be done with.

A model is sliced as its own configuration says (transformers' `base_model_tp_plan`), and only where every rank gets whole
heads and equally many of them: then each rank makes the same number of every kind of activation.
"""

from __future__ import annotations

from typing import Any

from finetune.errors import UserError

KEY = "parallel.tensor"
STAGE = 1
# What a plan may ask for, and DeepSpeed does. Others need code of transformers' own (experts, split inputs).
STYLES = {"colwise", "rowwise", "colwise_gather_output", "replicated_with_grad_allreduce", "embedding_rowwise"}


def tensor_section(ranks: int) -> dict[str, Any]:
    """DeepSpeed's `tensor_parallel`. Logits stay whole on every rank, because our losses are computed from them."""
    return {"autotp_size": ranks, "vocab_parallel_lm_head": False}


def check_engine(tensor: int, stage: int | None) -> None:
    """stage: ZeRO's, None without DeepSpeed. Raises: UserError if matrices cannot be shared out with it."""
    if tensor > 1 and stage != STAGE:
        told = "without DeepSpeed" if stage is None else f"with ZeRO-{stage}"
        raise UserError(
            f"parallel.tensor {tensor} cannot be trained {told}: DeepSpeed's AutoTP goes with ZeRO-{STAGE} here",
            where="parallel.deepspeed",
            remedy=f"set parallel.deepspeed: zero{STAGE}, or parallel.tensor: 1",
        )


def check_model(config: Any, tensor: int, *, where: str = KEY) -> None:
    """config: of a transformers model. Raises: UserError if its layers cannot be cut into `tensor` equal slices."""
    if tensor == 1:
        return
    text = getattr(config, "text_config", None) or config
    plan = getattr(text, "base_model_tp_plan", None) or {}
    odd = sorted(set(plan.values()) - STYLES)
    if not plan or odd:
        told = f"asks for what DeepSpeed cannot do ({', '.join(odd)})" if odd else "is not there"
        raise UserError(
            f"a {text.model_type} model cannot be sliced: its tensor-parallel plan {told}",
            where=where,
            remedy="set parallel.tensor: 1 and use parallel.deepspeed: zero3 for what one GPU cannot hold",
        )
    heads = getattr(text, "num_attention_heads", None)
    counts = {
        "num_attention_heads": heads,
        "num_key_value_heads": getattr(text, "num_key_value_heads", None) or heads,
        "intermediate_size": getattr(text, "intermediate_size", None),
    }
    uneven = [f"{name} {count}" for name, count in counts.items() if isinstance(count, int) and count % tensor]
    if uneven:
        fitting = [
            n for n in range(2, 65) if not any(isinstance(count, int) and count % n for count in counts.values())
        ]
        ways = f"this model can be shared by {', '.join(map(str, fitting))}" if fitting else "no number of ranks can"
        raise UserError(
            f"{tensor} ranks cannot share the layers equally: {', '.join(uneven)} of the model "
            f"{'is' if len(uneven) == 1 else 'are'} no multiple of {tensor}",
            where=where,
            remedy=f"{ways}; or parallel.tensor: 1 with parallel.deepspeed: zero3",
        )
