"""Starts from an adapter: trains it further on its base, or writes the merged model that a training starts from."""

from __future__ import annotations

import shutil
import traceback
import warnings
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
import transformers
from torch import nn

from finetune.errors import UserError
from finetune.models.adapter_source import MARK, PROCESSOR_FILES, AdapterSource, adapter_of
from finetune.models.adapters import add_adapter, check_rows_can_be_trained, check_same_modules, embed_with_gradients
from finetune.models.auto_classes import class_of_adapter
from finetune.models.config import ODD_FILES, load_config
from finetune.models.load import load_model
from finetune.models.merging import Comparison, check_equal, compare, merge, outputs_of, random_inputs
from finetune.models.quiet import quiet_transformers
from finetune.recipe.card import ModelSpec
from finetune.recipe.model import AdapterSection, ModelSection
from finetune.recipe.recipe import Recipe

EMBEDDINGS = ("embed_tokens", "wte", "word_embeddings", "shared", "embed_in", "tok_embeddings")
COPIES = (".modules_to_save.", ".token_adapter.", ".base_layer.")  # of embeddings, which peft may save a second time


def adapt(
    model: nn.Module,
    recipe: Recipe,
    task_type: str | None,
    head_modules: Sequence[str],
    *,
    new_tokens: Sequence[int] = (),
) -> nn.Module:
    """`model` with the recipe's adapter: the one that model.source names, or a new one (see add_adapter). All ranks call it."""
    from finetune.models.low_rank import add_in_place  # imports peft, which takes seconds

    assert recipe.adapter is not None, "a recipe with an adapter"
    if (source := adapter_of(recipe.model)) is None:
        adapted = add_adapter(model, recipe.adapter, task_type, head_modules, seed=recipe.seed, new_tokens=new_tokens)
    else:
        _check_new_tokens(source, new_tokens)
        adapted = continue_adapter(model, source, recipe.adapter)
    add_in_place(adapted)
    return adapted


def _check_new_tokens(source: AdapterSource, new_tokens: Sequence[int]) -> None:
    """Raises: UserError for tokens whose rows the adapter neither trains nor saves."""
    rows = source.settings.get("trainable_token_indices") or {}
    own = {row for some in rows.values() for row in some} if isinstance(rows, dict) else set(rows)
    if (unknown := sorted(set(new_tokens) - own)) and not _saves_embeddings(source):
        raise UserError(
            f"model.new_tokens: the adapter that is continued does not train {len(unknown)} of the new tokens (ids "
            f"{', '.join(map(str, unknown[:8]))})",
            where=str(source.folder),
            remedy="Set adapter.start: merge, which adds a new adapter with the new tokens, or leave them out.",
        )


def _saves_embeddings(source: AdapterSource) -> bool:
    return any(name.rpartition(".")[2] in EMBEDDINGS for name in source.saved_modules)


def continue_adapter(model: Any, source: AdapterSource, adapter: AdapterSection | None = None) -> nn.Module:
    """`model`, the base, inside a peft model with the weights of the adapter `source`, which are trained. All ranks call it.

    adapter: the recipe's section; its dropout is used, and its targets must be the adapter's.
    Raises: UserError for weights that do not fit the model, and for targets that are others than the adapter's.
    """
    from peft import PeftConfig, get_peft_model
    from safetensors.torch import load_file

    state = load_file(source.weights)
    config: Any = PeftConfig.from_pretrained(str(source.folder))
    config.inference_mode = False
    if adapter is not None:
        config.lora_dropout = adapter.dropout
        if source.targets is not None and adapter.targets != source.targets:
            check_same_modules(model, adapter, source)
    if config.trainable_token_indices:
        check_rows_can_be_trained(model)
    embed_with_gradients(model)
    with torch.random.fork_rng(devices=[]), warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="Model has `tie_word_embeddings=True`")  # merging separates them
        warnings.filterwarnings("ignore", message="The PEFT config's `base_model_name_or_path`")  # it was moved
        try:
            adapted = get_peft_model(model, config)
            _load_weights(adapted, state)
        except (KeyError, RuntimeError, ValueError) as error:
            raise UserError(
                f"the weights of the adapter do not fit its base {source.base}: {_first_lines(error)}",
                where=str(source.folder),
                remedy="Use the base model, new tokens and labels that the adapter was trained with.",
            ) from error
        except ODD_FILES as error:
            raise UserError(
                f"the adapter cannot be used: {type(error).__name__}: {_first_lines(error)}",
                where=str(source.folder),
                remedy="Its settings are not what peft expects: copy it again, or export it again from its run.",
                trace="".join(traceback.format_exception(error)),
            ) from error
    return adapted


def _first_lines(error: BaseException) -> str:
    return " ".join(str(error).split())[:300]


def _load_weights(adapted: Any, state: Mapping[str, torch.Tensor]) -> None:
    """Every trained weight from `state`, and nothing of it left over. Raises: ValueError otherwise."""
    from peft import set_peft_model_state_dict

    trained = {name: weight for name, weight in adapted.named_parameters() if weight.requires_grad}
    if any(hasattr(weight, "ds_id") for weight in trained.values()):  # whole modules, sharded by ZeRO-3
        raise ValueError("parallel.deepspeed: ZeRO-3 shards modules that the adapter stores in full; use zero2 or none")
    result: Any = set_peft_model_state_dict(adapted, dict(state))
    missing = sorted(trained.keys() & set(result.missing_keys))
    unused = sorted(key for key in result.unexpected_keys if not any(part in key for part in COPIES))
    if missing or unused:
        names = missing or unused
        raise ValueError(f"{'missing' if missing else 'unused'}: {', '.join(names[:4])} ({len(names)} in all)")


def write_merged(card: ModelSpec, model: ModelSection, source: AdapterSource, folder: Path) -> Comparison:
    """Write `source` merged into its base to `folder`, with its tokenizer or processor.

    The weights have the data type that the configuration says. The outputs of what was written are compared with the
    adapter's. Single process. card: of the model, where the adapter does not say what it was trained for: that of a
    language model is merged as one, and a reward model begins from it with a new head, as from any language model.
    Raises: UserError if they differ, or the base lacks weights.
    """
    trained_for = class_of_adapter(source.settings) or card.auto_class
    if trained_for != card.auto_class:
        card = ModelSpec(trained_for)
    auto_class = getattr(transformers, card.auto_class)
    plain = ModelSection(source=model.source, config=model.config, trust_remote_code=model.trust_remote_code)
    config: Any = load_config(plain)
    dtype = config.dtype or torch.float32
    with quiet_transformers():
        base, _ = load_model(auto_class, plain, config, dtype=dtype, seed=0)
        adapted: Any = continue_adapter(base, source)
        inputs = random_inputs(adapted)
        expected = outputs_of(adapted, inputs, card.outputs)
        merged = merge(adapted)
        merged.save_pretrained(folder)
        kind = type(merged)
        del base, adapted, merged
        compared = compare(expected, outputs_of(kind.from_pretrained(folder), inputs, card.outputs), dtype)
    check_equal(compared, str(source.folder))
    for pattern in PROCESSOR_FILES:
        for file in sorted(Path(source.holder([pattern])).glob(pattern)):
            shutil.copy2(file, folder / file.name)
    (folder / MARK).write_text("{}\n", encoding="utf-8")
    return compared
