"""Quantizes a base model to 4 or 8 bits with bitsandbytes, as frozen weights under an adapter.

4 bits is NF4 with double quantization (QLoRA; Dettmers et al., 2023); 8 bits is LLM.int8 (Dettmers et al., 2022). Heads
and output embeddings are not quantized.
"""

from __future__ import annotations

import importlib.util
import logging
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

from finetune.errors import UserError
from finetune.models.device import uses_cuda
from finetune.models.meta import build_on_meta
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
    """Additional arguments of from_pretrained; empty without model.quantization.

    kind: class of the model. dtype: data type of matrix products. heads: model -> dotted names of modules that are not
    quantized.
    Raises: UserError if bitsandbytes is not installed.
    """
    if model.quantization == "none":
        return {}
    import torch

    if importlib.util.find_spec("bitsandbytes") is None:
        raise UserError(
            f"model.quantization: {model.quantization} needs bitsandbytes, which is not installed",
            remedy="Run: pip install 'finetune[quantized]'",
        )
    logging.getLogger("bitsandbytes").setLevel(logging.ERROR)  # it logs the data type of every product
    device = torch.device("cuda", torch.cuda.current_device()) if uses_cuda() else torch.device("cpu")
    return {
        "quantization_config": _config(model.quantization, dtype, _unquantized_modules(kind, config, heads)),
        "device_map": {"": device},
    }


def _config(quantization: str, dtype: torch.dtype, unquantized: list[str]) -> BitsAndBytesConfig:
    from transformers import BitsAndBytesConfig

    if quantization == "8bit":
        return BitsAndBytesConfig(load_in_8bit=True, llm_int8_skip_modules=unquantized)
    return BitsAndBytesConfig(
        load_in_4bit=True,
        bnb_4bit_quant_type="nf4",
        bnb_4bit_use_double_quant=True,
        bnb_4bit_compute_dtype=dtype,
        llm_int8_skip_modules=unquantized,
    )


def _unquantized_modules(kind: Any, config: PreTrainedConfig, heads: Callable[[Any], Sequence[str]]) -> list[str]:
    """Names of heads and output embeddings, found on a model on the meta device."""
    meta_model = build_on_meta(kind, config)
    names = set(heads(meta_model))
    output = meta_model.get_output_embeddings() if hasattr(meta_model, "get_output_embeddings") else None  # type: ignore[operator]
    names |= {name for name, module in meta_model.named_modules() if output is not None and module is output}
    return sorted(names)


def keep_layout(model: nn.Module) -> None:
    """Keep bitsandbytes from changing the layout of 4-bit weights.

    On CPUs with bfloat16 instructions, it repacks them in the first evaluation, and cannot train with them afterwards.
    """
    for layer in model.modules():
        if getattr(layer, "support_avx512bf16_for_cpu", False):
            layer.support_avx512bf16_for_cpu = False  # type: ignore[assignment]


def stored_bytes(model: nn.Module) -> int:
    """Memory of the frozen weights in bytes, as stored (quantized)."""
    return sum(weight.numel() * weight.element_size() for weight in model.parameters() if not weight.requires_grad)
