"""A model of random weights, whole on every rank, or drawn on this rank's GPU."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

from finetune.errors import UserError
from finetune.models.guards import check_memory
from finetune.recipe.model import ModelSection

if TYPE_CHECKING:
    import torch
    from transformers import PreTrainedConfig


def build_random(
    kind: Any, auto_class: Any, model: ModelSection, config: PreTrainedConfig, seed: int, dtype: torch.dtype
) -> Any:
    """The model of class `kind` (None: of the code that the model brings) with random weights, the same on every rank; of
    `dtype` where they are drawn on a GPU, else of float32.

    Raises: UserError where its weights cannot be drawn by name on a GPU (model.init_device), or memory is short.
    """
    if model.attention != "auto":
        config._attn_implementation = model.attention
    if model.init_device == "gpu":
        return _build_on_device(kind, model, config, seed, dtype)
    # Whole on every rank: from_config shards under ZeRO-3, and then draws other random numbers.
    with _unsharded():
        if kind is None:
            return auto_class.from_config(config, trust_remote_code=True)
        check_memory(kind, config, model.source)
        return kind(config)


def _build_on_device(kind: Any, model: ModelSection, config: PreTrainedConfig, seed: int, dtype: torch.dtype) -> Any:
    from finetune.models.random_weights import build_by_name, drawing_device

    if kind is None:
        raise UserError(
            f"model.init_device: gpu: {model.source} brings code of its own, whose weights cannot be drawn by name",
            where="model.init_device",
            remedy="Set model.init_device: cpu.",
        )
    with _unsharded():
        return build_by_name(lambda: kind(config), seed=seed, device=drawing_device(), dtype=dtype)


@contextmanager
def _unsharded() -> Iterator[None]:
    """Detectors make their backbone by from_config inside their constructor: it too must not see that ZeRO-3 is alive."""
    from transformers.integrations import deepspeed

    alive = deepspeed._hf_deepspeed_config_weak_ref
    deepspeed._hf_deepspeed_config_weak_ref = None
    try:
        yield
    finally:
        deepspeed._hf_deepspeed_config_weak_ref = alive
