"""Load a model, pretrained or random: safe files only, missing weights are reported, new weights depend only on the seed."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from dataclasses import replace
from typing import TYPE_CHECKING, Any

from finetune.errors import UserError
from finetune.models.adapter_source import adapter_of
from finetune.models.config import load_config, model_errors
from finetune.models.guards import allocation_errors
from finetune.models.head import head_names
from finetune.models.pretrained import Loading, embedding_rows, load_pretrained
from finetune.models.quiet import quiet_transformers
from finetune.models.random_model import build_random
from finetune.models.source import resolve_model
from finetune.models.training_layers import prepare_layers
from finetune.recipe.model import ModelSection

if TYPE_CHECKING:
    import torch
    from torch import nn
    from transformers import PreTrainedConfig

__all__ = ["Loading", "load_config", "load_model", "model_class"]


def model_class(auto_model: str, model: ModelSection, config: PreTrainedConfig) -> Any:
    """The class that `auto_model` (such as "AutoModelForCausalLM") builds for `config`, with its own code where it brings
    some; nothing is built. Raises: UserError if the model cannot do the task.
    """
    import transformers

    auto_class = getattr(transformers, auto_model)
    found = _model_class(auto_class, model, config)
    if found is not None:
        return found
    from transformers.dynamic_module_utils import get_class_from_dynamic_module

    with model_errors(model.source):
        return get_class_from_dynamic_module(
            config.auto_map[auto_model], resolve_model(model.source), revision=model.revision
        )


def load_model(
    auto_class: Any,
    model: ModelSection,
    config: PreTrainedConfig,
    *,
    dtype: torch.dtype,
    seed: int,
    new_head: bool = False,
    vocabulary: int = 0,
    heads: Callable[[Any], list[str]] = head_names,
    kernels: str = "none",
) -> tuple[nn.Module, Loading]:
    """The model of `auto_class` (such as AutoModelForCausalLM) for `config`, in `dtype`.

    Pretrained weights are loaded as transformers does, sharded at load where a ZeRO-3 configuration is alive: all ranks
    must call it. A head that the checkpoint lacks, or any head with new_head, is made anew from `seed` alone: the same
    weights on every rank and at every ZeRO stage. With init: config all weights are random from `seed`, built whole on
    each rank (the engine shards them later), so that ZeRO-3 starts from the same numbers as one process; init_device: gpu
    builds them on this rank's GPU (models/random_weights.py).
    vocabulary: len(tokenizer); embeddings grow to it. heads: the dotted names of the modules that make up the head.
    kernels: see prepare_layers.

    Raises: UserError for missing files, pickled weights, shapes that do not fit, or a body that is mostly missing.
    """
    import torch

    with (
        torch.random.fork_rng(devices=[]),
        _source_errors(model),
        _attention(model),
        allocation_errors(model.source),
        quiet_transformers(),
    ):
        torch.default_generator.manual_seed(seed)
        kind = _model_class(auto_class, model, config)
        if model.init == "config":
            loaded, loading = build_random(kind, auto_class, model, config, seed, dtype), Loading()
            loaded.to(dtype)
        else:
            loaded, loading = load_pretrained(kind or auto_class, model, config, dtype, seed, new_head, heads)
        if vocabulary and vocabulary > (rows := embedding_rows(loaded)):
            loading = replace(loading, grown=range(rows, vocabulary))
            torch.manual_seed(seed)  # new rows are drawn around the mean of the others
            loaded.resize_token_embeddings(vocabulary)  # gathers under ZeRO-3, keeps ties
    loaded.config.dtype = dtype  # type: ignore[union-attr]
    prepare_layers(loaded, model, kernels)
    return loaded, loading


def _source_errors(model: ModelSection) -> AbstractContextManager[None]:
    if (adapter := adapter_of(model)) is None:
        return model_errors(model.source)
    return model_errors(adapter.base, f"{adapter.base} (the base of the adapter {adapter.folder})")


def _model_class(auto_class: Any, model: ModelSection, config: PreTrainedConfig) -> Any:
    """The concrete class; None where it comes with the model's own code."""
    if auto_class.__name__ in (getattr(config, "auto_map", None) or {}) and model.trust_remote_code:
        return None
    mapping = auto_class._model_mapping
    if type(config) not in mapping:
        what = auto_class.__name__.removeprefix("AutoModelFor")
        raise UserError(
            f"a {config.model_type} model cannot do this task: transformers has no {what} for it",
            remedy="Choose another model, or another task.",
        )
    kind = mapping[type(config)]
    return kind[0] if isinstance(kind, (list, tuple)) else kind


@contextmanager
def _attention(model: ModelSection) -> Iterator[None]:
    try:
        yield
    except (ImportError, ValueError) as error:
        if model.attention == "auto" or "attention" not in str(error).lower():
            raise
        raise UserError(
            f"model.attention: {model.attention} cannot be used here: {str(error).splitlines()[0]}",
            remedy="Set model.attention: auto, or install what it needs (flash_attention_2: pip install flash-attn, CUDA).",
        ) from error
