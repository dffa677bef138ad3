"""Load a model, pretrained or random: safe files only, missing weights are reported, new weights depend only on the seed."""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

from finetune.errors import UserError
from finetune.models.adapter_source import AdapterSource, adapter_of
from finetune.models.config import load_config, model_errors, stored_config
from finetune.models.guards import allocation_errors, check_hub_index, check_memory, no_pickles
from finetune.models.head import embedding_modules, head_names, replace_head
from finetune.models.placement import placement_options
from finetune.models.quantized import keep_layout, quantization_options
from finetune.models.source import resolve_model
from finetune.recipe.model import ModelSection

if TYPE_CHECKING:
    import torch
    from torch import nn
    from transformers import PreTrainedConfig

__all__ = ["Loading", "load_config", "load_model", "model_class"]


@dataclass(frozen=True)
class Loading:
    """Result of loading: names of weights, sorted. new_head: modules that start from random weights. grown: rows added to
    the embeddings.
    """

    missing: tuple[str, ...] = ()
    unexpected: tuple[str, ...] = ()
    new_head: tuple[str, ...] = ()
    grown: range = range(0)

    def facts(self) -> dict[str, Any]:
        """For the user: counts, and the first few names."""
        kinds = {"new head": self.new_head, "missing weights": self.missing, "unused weights": self.unexpected}
        facts = {name: _some(found) for name, found in kinds.items() if found}
        return facts | ({"new embeddings": len(self.grown)} if self.grown else {})


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
) -> tuple[nn.Module, Loading]:
    """The model of `auto_class` (such as AutoModelForCausalLM) for `config`, in `dtype`.

    Pretrained weights are loaded as transformers does, sharded at load where a ZeRO-3 configuration is alive: all ranks
    must call it. A head that the checkpoint lacks, or any head with new_head, is made anew from `seed` alone: the same
    weights on every rank and at every ZeRO stage. With init: config all weights are random from `seed`, built whole on
    each rank (the engine shards them later), so that ZeRO-3 starts from the same numbers as one process; init_device: gpu
    builds them on this rank's GPU (models/random_weights.py).
    vocabulary: len(tokenizer); embeddings grow to it. heads: the dotted names of the modules that make up the head.

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
            loaded, loading = _build_random(kind, auto_class, model, config, seed), Loading()
            loaded.to(dtype)
        else:
            loaded, loading = _load_pretrained(kind or auto_class, model, config, dtype, seed, new_head, heads)
        if vocabulary and vocabulary > (rows := _embedding_rows(loaded)):
            loading = replace(loading, grown=range(rows, vocabulary))
            torch.manual_seed(seed)  # new rows are drawn around the mean of the others
            loaded.resize_token_embeddings(vocabulary)  # gathers under ZeRO-3, keeps ties
    _prepare(loaded, model, dtype)
    return loaded, loading


def _source_errors(model: ModelSection) -> AbstractContextManager[None]:
    if (adapter := adapter_of(model)) is None:
        return model_errors(model.source)
    return model_errors(adapter.base, f"{adapter.base} (the base of the adapter {adapter.folder})")


def _embedding_rows(loaded: Any) -> int:
    """Of the whole matrix, sharded or not."""
    embeddings = loaded.get_input_embeddings() if hasattr(loaded, "get_input_embeddings") else None
    return int(getattr(embeddings, "num_embeddings", 0))


def _prepare(loaded: nn.Module, model: ModelSection, dtype: torch.dtype) -> None:
    config: Any = loaded.config
    config.dtype = dtype
    if model.gradient_checkpointing:
        if not getattr(loaded, "supports_gradient_checkpointing", False):
            raise UserError(
                f"a {config.model_type} model has no gradient checkpointing",
                remedy="Set model.gradient_checkpointing: false, and a smaller parallel.micro_batch if memory is short.",
            )
        loaded.gradient_checkpointing_enable(gradient_checkpointing_kwargs={"use_reentrant": False})  # type: ignore[operator]
        if hasattr(config, "use_cache"):
            config.use_cache = False


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


def _build_random(kind: Any, auto_class: Any, model: ModelSection, config: PreTrainedConfig, seed: int) -> Any:
    if model.attention != "auto":
        config._attn_implementation = model.attention
    if model.init_device == "gpu":
        return _build_on_device(kind, model, config, seed)
    # Whole on every rank: from_config shards under ZeRO-3, and then draws other random numbers.
    with _unsharded():
        if kind is None:
            return auto_class.from_config(config, trust_remote_code=True)
        check_memory(lambda: kind(copy.deepcopy(config)), config, model.source)
        return kind(config)


def _build_on_device(kind: Any, model: ModelSection, config: PreTrainedConfig, seed: int) -> Any:
    from finetune.models.random_weights import build_by_name, drawing_device

    if kind is None:
        raise UserError(
            f"model.init_device: gpu: {model.source} brings code of its own, whose weights cannot be drawn by name",
            where="model.init_device",
            remedy="Set model.init_device: cpu.",
        )
    with _unsharded():
        return build_by_name(lambda: kind(config), seed=seed, device=drawing_device())


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


def _load_pretrained(
    kind: Any,
    model: ModelSection,
    config: PreTrainedConfig,
    dtype: torch.dtype,
    seed: int,
    new_head: bool,
    heads: Callable[[Any], list[str]],
) -> tuple[Any, Loading]:
    labels: dict[int, str] = dict(config.id2label or {})  # type: ignore[assignment,arg-type]
    adapter = adapter_of(model)
    if new_head and adapter:
        raise UserError(
            "options.new_head: an adapter that is continued has its own head",
            where=str(adapter.folder),
            remedy="Leave out options.new_head, or set adapter.start: merge to begin with a new head and a new adapter.",
        )
    if new_head or adapter:  # load the head as it is stored, so that every shape fits, and replace it afterwards
        stored = stored_config(adapter.base, model) if adapter else load_config(model)
        config.id2label = stored.id2label
    rows = _take_rows(config, stored) if adapter else 0
    options: dict[str, Any] = {"trust_remote_code": True} if model.trust_remote_code else {}
    if model.attention != "auto":
        options["attn_implementation"] = model.attention
    options |= quantization_options(model, kind, config, dtype, heads)
    options |= placement_options(kind)
    where, revision = adapter.base if adapter else resolve_model(model.source), "main" if adapter else model.revision
    check_hub_index(where, revision)
    try:
        with no_pickles(model.source):
            loaded, info = kind.from_pretrained(
                where,
                config=config,
                revision=revision,
                dtype=dtype,
                use_safetensors=True,
                output_loading_info=True,
                **options,
            )
    except RuntimeError as error:
        if "mismatch" in str(error).lower():
            raise UserError(
                f"weights of {model.source} do not have the shapes that the configuration asks for",
                remedy="Remove what model.config changes, or set model.init: config to begin from random weights. "
                "For a head with other labels: options.new_head: true",
            ) from error
        raise
    keep_layout(loaded)
    missing = set(info["missing_keys"])
    found = _brought_modules(loaded, adapter) if adapter else heads(loaded)
    renewed = [name for name in found if new_head or adapter or any(key.startswith(f"{name}.") for key in missing)]
    missing = {key for key in missing if not any(key.startswith(f"{name}.") for name in renewed)}
    _check_body(loaded, missing, model)
    if adapter:
        _check_base(missing, adapter)
    if renewed or adapter:
        config.id2label, config.label2id = labels, {name: index for index, name in labels.items()}
        loaded.config.id2label, loaded.config.label2id = config.id2label, config.label2id
    if renewed:
        replace_head(loaded, renewed, config, dtype=dtype, seed=seed)
    if rows and rows > _embedding_rows(loaded):
        loaded.resize_token_embeddings(rows)  # the adapter brings the new ones
    return loaded, Loading(
        tuple(sorted(missing)), tuple(sorted(info["unexpected_keys"])), () if adapter else tuple(renewed)
    )


def _take_rows(config: Any, stored: Any) -> int:
    """Give `config` the vocabulary of the stored base, and return its own."""
    ours, theirs = config.get_text_config(), stored.get_text_config()
    rows = int(getattr(ours, "vocab_size", None) or 0)
    if rows:
        ours.vocab_size = theirs.vocab_size
    return rows


def _brought_modules(loaded: Any, adapter: AdapterSource) -> list[str]:
    """Heads that the adapter brings whole: the base may lack them, or have them for other labels."""
    inner = {id(module) for module in embedding_modules(loaded)}
    return [
        name
        for name, module in loaded.named_modules()
        if id(module) not in inner and any(name == one or name.endswith(f".{one}") for one in adapter.saved_modules)
    ]


def _check_base(missing: set[str], adapter: AdapterSource) -> None:
    """Raises: UserError if the base lacks weights: the adapter was trained on random ones that are in no file."""
    if missing:
        raise UserError(
            f"the base {adapter.base} of the adapter lacks {len(missing)} weights, which were random when the adapter was "
            f"trained and are in no file: {_some(sorted(missing))}",
            where=str(adapter.folder),
            remedy="Start from the whole model: finetune export RUN --output DIR --merge, and model.source: DIR.",
        )


def _check_body(loaded: nn.Module, missing: set[str], model: ModelSection) -> None:
    total = sum(1 for _ in loaded.parameters())
    if len(missing) * 2 > total:
        raise UserError(
            f"{model.source} lacks {len(missing)} of the model's {total} weights: {_some(sorted(missing))}",
            remedy="The files are of another architecture than config.json says. Begin from random weights on purpose "
            "with model.init: config.",
        )


def _some(names: Any, limit: int = 4) -> str:
    names = list(names)
    more = f" and {len(names) - limit} more" if len(names) > limit else ""
    return ", ".join(names[:limit]) + more


@contextmanager
def _attention(model: ModelSection) -> Iterator[None]:
    try:
        yield
    except (ImportError, ValueError) as error:
        if "attention" not in str(error).lower():
            raise
        raise UserError(
            f"model.attention: {model.attention} cannot be used here: {str(error).splitlines()[0]}",
            remedy="Set model.attention: auto, or install what it needs (flash_attention_2: pip install flash-attn, CUDA).",
        ) from error


@contextmanager
def quiet_transformers() -> Iterator[None]:
    """Without transformers' own report and bar, which would come once per rank; what matters is in Loading."""
    from transformers.utils import logging

    level = logging.get_verbosity()
    bar = logging.is_progress_bar_enabled()
    logging.set_verbosity_error()
    logging.disable_progress_bar()
    try:
        yield
    finally:
        logging.set_verbosity(level)
        if bar:
            logging.enable_progress_bar()
