"""Low-rank adapters through peft: added to a model, saved, and merged into its weights."""

from __future__ import annotations

import copy
import difflib
import json
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from finetune.errors import UserError
from finetune.models.device import uses_cuda
from finetune.models.source import resolve_model
from finetune.recipe.model import AdapterSection

if TYPE_CHECKING:
    from torch import nn


def add_adapter(
    model: nn.Module,
    adapter: AdapterSection,
    task_type: str | None,
    head_modules: Sequence[str],
    *,
    seed: int,
    new_tokens: Sequence[int] = (),
) -> nn.Module:
    """`model` inside a peft model: its weights are frozen, those of the adapter and of `head_modules` are trained.

    task_type: peft's ("CAUSAL_LM", "SEQ_CLS", ...) or None. head_modules: new heads, trained and saved in full like
    adapter.save_modules. seed: of the adapter's initial weights, the same on every rank. new_tokens: ids whose input
    embeddings (and output embeddings, where they are not tied) are trained and saved, row by row. All ranks call it.

    Raises: UserError for a target that matches no module which can carry an adapter, with the nearest names.
    """
    import torch
    from peft import LoraConfig, get_peft_model

    saved = list(dict.fromkeys([*head_modules, *adapter.save_modules]))
    _check_names(model, adapter.save_modules, "adapter.save_modules")
    if adapter.targets == "all-linear":
        targets: Any = _linear_names(model, saved)
    else:
        targets = list(adapter.targets)
        _check_targets(model, targets)
    if new_tokens and not uses_cuda() and any(hasattr(weight, "ds_id") for weight in model.parameters()):
        raise UserError(
            "new tokens with an adapter: without CUDA, peft cannot train single rows of embeddings that ZeRO-3 shards",
            where="parallel.deepspeed",
            remedy="Set parallel.deepspeed: zero2 or none, or train all weights.",
        )
    config = LoraConfig(
        r=adapter.rank,
        lora_alpha=adapter.alpha,  # type: ignore[arg-type]  # peft takes any number
        lora_dropout=adapter.dropout,
        target_modules=targets,
        modules_to_save=saved or None,
        use_rslora=adapter.kind == "rslora",
        use_dora=adapter.kind == "dora",
        task_type=task_type,
        trainable_token_indices={name: list(new_tokens) for name in _embedding_names(model)} if new_tokens else None,
    )
    if any(getattr(module, "gradient_checkpointing", False) for module in model.modules()):
        model.enable_input_require_grads()  # type: ignore[operator]  # otherwise checkpointed blocks get no gradient
    with torch.random.fork_rng(devices=[]):
        torch.default_generator.manual_seed(seed)
        return get_peft_model(model, config)  # type: ignore[arg-type]


def save_adapter(model: nn.Module, folder: Path, *, state_dict: dict[str, Any] | None = None) -> None:
    """Write the adapter as peft does, and beside it the model's configuration: its class and the labels of a new head.

    state_dict: the gathered weights of the adapter and the saved modules, where the model itself is sharded. Rank 0 only.
    """
    wrapped: Any = model
    wrapped.save_pretrained(
        folder, safe_serialization=True, **({} if state_dict is None else {"state_dict": state_dict})
    )
    inner = wrapped.get_base_model()
    config = copy.deepcopy(inner.config)
    config.architectures = [type(inner).__name__]  # the base's own configuration may name another head
    config.save_pretrained(folder)


def merge_adapter(folder: Path, output: Path, *, base: str = "") -> None:
    """Write the complete model to `output`: the base that adapter `folder` names (or `base`), with the adapter merged.

    A config.json beside the adapter (labels of a new head) is used where there is one. Single process.
    Raises: UserError if the folder has no adapter, or its base cannot be found.
    """
    import transformers
    from peft import PeftModel

    from finetune.models.config import model_errors

    path = folder / "adapter_config.json"
    if not path.is_file():
        raise UserError("the folder has no adapter", where=str(folder), remedy="It must have adapter_config.json.")
    adapter = json.loads(path.read_text(encoding="utf-8"))
    source = base or adapter.get("base_model_name_or_path") or ""
    with model_errors(source):
        where = resolve_model(source)
        config = transformers.AutoConfig.from_pretrained(folder if (folder / "config.json").is_file() else where)
        kind = _merged_class(config, adapter.get("task_type"))
        vocabulary, rows = _vocabularies(config, transformers.AutoConfig.from_pretrained(where))
        if hasattr(config, "quantization_config"):  # merged into the unquantized weights
            del config.quantization_config
        model = kind.from_pretrained(where, config=config, use_safetensors=True, ignore_mismatched_sizes=True)
        if vocabulary > rows:  # the adapter brings the new rows
            model.resize_token_embeddings(vocabulary)
    merged: Any = PeftModel.from_pretrained(model, str(folder)).merge_and_unload()  # type: ignore[operator]
    merged.save_pretrained(output)
    for kept in sorted(folder.iterdir()):
        if kept.name.startswith(("token", "special_tokens", "chat_template", "vocab", "merges", "preprocessor")):
            (output / kept.name).write_bytes(kept.read_bytes())


def _vocabularies(config: Any, base: Any) -> tuple[int, int]:
    """Rows of the embeddings of the tuned model and of its base. Sets those of `config` to the base's, so that its weights
    load.
    """
    texts = config.get_text_config(), base.get_text_config()
    tuned_rows, base_rows = (int(getattr(text, "vocab_size", None) or 0) for text in texts)
    if tuned_rows > base_rows:
        texts[0].vocab_size = base_rows
    return tuned_rows, base_rows


def _merged_class(config: Any, task_type: str | None) -> Any:
    """By peft's task type; other tasks (images) by the class in the configuration beside the adapter."""
    import transformers

    autos = {
        "CAUSAL_LM": "AutoModelForCausalLM",
        "SEQ_2_SEQ_LM": "AutoModelForSeq2SeqLM",
        "SEQ_CLS": "AutoModelForSequenceClassification",
        "TOKEN_CLS": "AutoModelForTokenClassification",
    }
    names = [autos[task_type]] if task_type in autos else [*(config.architectures or ()), "AutoModel"]
    return next(getattr(transformers, name) for name in names if hasattr(transformers, name))


def _linear_names(model: nn.Module, saved: Sequence[str]) -> list[str]:
    """Full names of the linear layers of the body, without heads, saved modules and output embeddings."""
    output = model.get_output_embeddings() if hasattr(model, "get_output_embeddings") else None  # type: ignore[operator]
    names = [
        name
        for name, module in model.named_modules()
        if _is_linear(module) and module is not output and not any(name == s or name.startswith(f"{s}.") for s in saved)
    ]
    if not names:
        other = sorted({name.rsplit(".", 1)[-1] for name, module in model.named_modules() if _can_carry(module)})
        raise UserError(
            "adapter.targets is all-linear, but this model has no linear layer outside its head",
            remedy=f"List layers by the last part of their names, such as {', '.join(other[:8])}.",
        )
    return names


def _embedding_names(model: nn.Module) -> list[str]:
    """Full names of the input embeddings, and of the output embeddings unless they are tied."""
    inputs, outputs = model.get_input_embeddings(), None  # type: ignore[operator]
    if hasattr(model, "get_output_embeddings"):
        outputs = model.get_output_embeddings()  # type: ignore[operator]
    if outputs is not None and outputs.weight is inputs.weight:
        outputs = None
    return [name for name, module in model.named_modules() if module is inputs or (outputs and module is outputs)]


def _is_linear(module: nn.Module) -> bool:
    from torch import nn
    from transformers.pytorch_utils import Conv1D

    return isinstance(module, (nn.Linear, Conv1D))


def _can_carry(module: nn.Module) -> bool:
    from torch import nn

    return _is_linear(module) or isinstance(module, (nn.Conv2d, nn.Embedding))


def _check_targets(model: nn.Module, targets: Sequence[str]) -> None:
    names = [name for name, module in model.named_modules() if _can_carry(module)]
    for target in targets:
        if not any(name == target or name.endswith(f".{target}") for name in names):
            raise _unknown_module("adapter.targets", target, names)


def _check_names(model: nn.Module, requested: Sequence[str], key: str) -> None:
    names = [name for name, _ in model.named_modules() if name]
    for name in requested:
        if not any(known == name or known.endswith(f".{name}") for known in names):
            raise _unknown_module(key, name, names)


def _unknown_module(key: str, requested: str, names: Sequence[str]) -> UserError:
    endings = sorted({name.rsplit(".", 1)[-1] for name in names if not name.rsplit(".", 1)[-1].isdigit()})
    near = difflib.get_close_matches(requested, endings, 3, cutoff=0.4)
    return UserError(
        f"{key}: no module is called {requested!r}",
        remedy=f"Did you mean {' or '.join(near)}?" if near else f"Valid names: {', '.join(endings[:20])}.",
    )
