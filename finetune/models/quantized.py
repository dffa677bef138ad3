"""A base model in 4 or 8 bits through bitsandbytes: the frozen weights under an adapter, at a quarter or half the bytes.

4 bits is NF4 with double quantisation (Dettmers et al., QLoRA, 2023); 8 bits is LLM.int8 (Dettmers et al., 2022). Heads
and output embeddings stay as they are.
"""

from __future__ import annotations

import importlib.util
import logging
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

from finetune.errors import UserError
from finetune.models.device import uses_cuda
from finetune.recipe.model import ModelSection

if TYPE_CHECKING:
    import torch
    from torch import nn
    from transformers import BitsAndBytesConfig, PreTrainedConfig


def quantization_options(
    model: ModelSection,
    kind: Any,
    config: PreTrainedConfig,
    dtype: torch.dtype,
    heads: Callable[[Any], Sequence[str]],
) -> dict[str, Any]:
    """What from_pretrained needs beside the rest; empty without model.quantization.

    kind: the model's class. dtype: that products are computed in. heads: dotted names of the modules left whole.
    Raises: UserError if bitsandbytes is missing, or the model's code is its own.
    """
    if model.quantization == "none":
        return {}
    import torch

    if importlib.util.find_spec("bitsandbytes") is None:
        raise UserError(
            f"model.quantization: {model.quantization} needs bitsandbytes, which is not installed",
            remedy="pip install 'finetune[quantized]'",
        )
    logging.getLogger("bitsandbytes").setLevel(logging.ERROR)  # a line a product, about the type it computes in
    place = torch.device("cuda", torch.cuda.current_device()) if uses_cuda() else torch.device("cpu")
    return {
        "quantization_config": _config(model.quantization, dtype, _kept_whole(kind, config, heads)),
        "device_map": {"": place},
    }


def _config(quantization: str, dtype: torch.dtype, whole: list[str]) -> BitsAndBytesConfig:
    from transformers import BitsAndBytesConfig

    if quantization == "8bit":
        return BitsAndBytesConfig(load_in_8bit=True, llm_int8_skip_modules=whole)
    return BitsAndBytesConfig(
        load_in_4bit=True,
        bnb_4bit_quant_type="nf4",
        bnb_4bit_use_double_quant=True,
        bnb_4bit_compute_dtype=dtype,
        llm_int8_skip_modules=whole,
    )


def _kept_whole(kind: Any, config: PreTrainedConfig, heads: Callable[[Any], Sequence[str]]) -> list[str]:
    """Heads and output embeddings, found on a model without weights."""
    import copy

    import torch

    with torch.device("meta"):
        hollow: nn.Module = kind(copy.deepcopy(config))
    names = set(heads(hollow))
    output = hollow.get_output_embeddings() if hasattr(hollow, "get_output_embeddings") else None  # type: ignore[operator]
    names |= {name for name, module in hollow.named_modules() if output is not None and module is output}
    return sorted(names)


def keep_layout(model: nn.Module) -> None:
    """On processors with bfloat16 products, bitsandbytes lays 4-bit weights out anew in the first evaluation, and cannot
    train with them after that: keep them as they are.
    """
    for layer in model.modules():
        if getattr(layer, "support_avx512bf16_for_cpu", False):
            layer.support_avx512bf16_for_cpu = False  # type: ignore[assignment]


def stored_bytes(model: nn.Module) -> int:
    """Bytes of the weights that do not train, as they lie in memory."""
    return sum(weight.numel() * weight.element_size() for weight in model.parameters() if not weight.requires_grad)
