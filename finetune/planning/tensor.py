"""Tensor parallelism as a plan: the section that DeepSpeed gets, and which models and engines do not support it.

A model is sliced as its own configuration says (transformers' `base_model_tp_plan`), and only where every rank gets the
same number of whole heads: then each rank computes the same number of every kind of activation.
"""

from __future__ import annotations

from typing import Any

from finetune.errors import UserError

KEY = "parallel.tensor"
STAGE = 1
# Styles that DeepSpeed supports. The others need transformers' own code (experts, split inputs).
STYLES = {"colwise", "rowwise", "colwise_gather_output", "replicated_with_grad_allreduce", "embedding_rowwise"}


def tensor_section(ranks: int) -> dict[str, Any]:
    """DeepSpeed's `tensor_parallel`. Logits stay whole on every rank, because our losses are computed from them."""
    return {"autotp_size": ranks, "vocab_parallel_lm_head": False}


def check_engine(tensor: int, stage: int | None) -> None:
    """stage: ZeRO's, None without DeepSpeed. Raises: UserError if it cannot train sliced matrices."""
    if tensor > 1 and stage != STAGE:
        engine = "without DeepSpeed" if stage is None else f"with ZeRO-{stage}"
        raise UserError(
            f"parallel.tensor {tensor} cannot be trained {engine}: DeepSpeed's AutoTP is used with ZeRO-{STAGE}",
            where="parallel.deepspeed",
            remedy=f"Set parallel.deepspeed: zero{STAGE}, or parallel.tensor: 1.",
        )


def check_model(config: Any, tensor: int, *, where: str = KEY) -> None:
    """config: of a transformers model. Raises: UserError if its layers cannot be cut into `tensor` equal slices."""
    if tensor == 1:
        return
    text = getattr(config, "text_config", None) or config
    plan = getattr(text, "base_model_tp_plan", None) or {}
    odd = sorted(set(plan.values()) - STYLES)
    if not plan or odd:
        problem = f"needs what DeepSpeed does not support ({', '.join(odd)})" if odd else "is missing"
        raise UserError(
            f"a {text.model_type} model cannot be sliced: its tensor-parallel plan {problem}",
            where=where,
            remedy="Set parallel.tensor: 1 and use parallel.deepspeed: zero3 for what one GPU cannot hold.",
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
        ways = (
            f"This model can be shared by {', '.join(map(str, fitting))} ranks"
            if fitting
            else "No number of ranks can share it"
        )
        raise UserError(
            f"{tensor} ranks cannot share the layers equally: {', '.join(uneven)} of the model "
            f"{'is' if len(uneven) == 1 else 'are'} not a multiple of {tensor}",
            where=where,
            remedy=f"{ways}; or set parallel.tensor: 1 with parallel.deepspeed: zero3.",
        )
