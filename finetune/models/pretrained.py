"""Pretrained weights into a model: heads and embeddings that the files lack are made anew, all other weights must be there."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from finetune.errors import UserError
from finetune.models.adapter_source import AdapterSource, adapter_of
from finetune.models.config import load_config, stored_config
from finetune.models.guards import check_hub_index, no_pickles
from finetune.models.head import embedding_modules, replace_head
from finetune.models.placement import placement_options
from finetune.models.quantized import keep_layout, quantization_options
from finetune.models.source import resolve_model
from finetune.recipe.model import ModelSection

if TYPE_CHECKING:
    import torch
    from torch import nn
    from transformers import PreTrainedConfig


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


def load_pretrained(
    kind: Any,
    model: ModelSection,
    config: PreTrainedConfig,
    dtype: torch.dtype,
    seed: int,
    new_head: bool,
    heads: Callable[[Any], list[str]],
) -> tuple[Any, Loading]:
    """The model of class `kind` with the weights of its files in `dtype`, or of the base of the adapter that the recipe
    continues; `config` gets their vocabulary. new_head, heads, and what all ranks have to do: see load_model.

    Raises: UserError for shapes that do not fit, and for missing weights that no new head explains.
    """
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
    loaded, info = _read_weights(kind, model, config, adapter, dtype, heads)
    keep_layout(loaded)
    missing = set(info["missing_keys"])
    found = _brought_modules(loaded, adapter) if adapter else heads(loaded)
    renewed = [name for name in found if new_head or adapter or any(key.startswith(f"{name}.") for key in missing)]
    missing = {key for key in missing if not any(key.startswith(f"{name}.") for name in renewed)}
    _check_body(loaded, missing, model)
    if adapter:
        _check_base(missing, adapter, heads(loaded))
    if renewed or adapter:
        config.id2label, config.label2id = labels, {name: index for index, name in labels.items()}
        loaded.config.id2label, loaded.config.label2id = config.id2label, config.label2id
    if renewed:
        replace_head(loaded, renewed, config, dtype=dtype, seed=seed)
    if rows and rows > embedding_rows(loaded):
        loaded.resize_token_embeddings(rows)  # the adapter brings the new ones
    return loaded, Loading(
        tuple(sorted(missing)), tuple(sorted(info["unexpected_keys"])), () if adapter else tuple(renewed)
    )


def _read_weights(
    kind: Any,
    model: ModelSection,
    config: PreTrainedConfig,
    adapter: AdapterSource | None,
    dtype: torch.dtype,
    heads: Callable[[Any], list[str]],
) -> tuple[Any, dict[str, Any]]:
    """The model as transformers loads it, and what it says of missing and unexpected weights. Raises: UserError."""
    options: dict[str, Any] = {"trust_remote_code": True} if model.trust_remote_code else {}
    if model.attention != "auto":
        options["attn_implementation"] = model.attention
    options |= quantization_options(model, kind, config, dtype, heads)
    options |= placement_options(kind)
    where, revision = (adapter.base, "main") if adapter else (resolve_model(model.source), model.revision)
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
    return loaded, info


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


def _check_base(missing: set[str], adapter: AdapterSource, heads: list[str]) -> None:
    """Raises: UserError if the base lacks weights: the adapter was trained on random ones that are in no file, or for
    another task, whose head is another one.
    """
    lacking = [name for name in heads if any(key.startswith(f"{name}.") for key in missing)]
    if lacking and adapter.settings.get("task_type"):
        raise UserError(
            f"the adapter was trained for another task ({adapter.settings['task_type']}): neither it nor its base "
            f"{adapter.base} has the head of this one ({', '.join(lacking)})",
            where=str(adapter.folder),
            remedy="Set adapter.start: merge to begin with a new head and a new adapter on the merged model, or leave out "
            "the section adapter to train all of its weights.",
        )
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


def embedding_rows(loaded: Any) -> int:
    """Of the whole matrix, sharded or not."""
    embeddings = loaded.get_input_embeddings() if hasattr(loaded, "get_input_embeddings") else None
    return int(getattr(embeddings, "num_embeddings", 0))
