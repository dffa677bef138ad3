"""Low-rank adapters through peft: added to a model, saved, and merged into its weights."""

from __future__ import annotations

import copy
import json
import os
import shutil
import warnings
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from finetune.errors import UserError
from finetune.models.adapter_source import BASE, CONFIG, MARK, AdapterSource
from finetune.models.device import uses_cuda
from finetune.models.module_names import ModuleNames, is_linear, is_named
from finetune.models.quiet import quiet_bitsandbytes
from finetune.recipe.model import AdapterSection

if TYPE_CHECKING:
    from torch import nn

quiet_bitsandbytes()  # before peft is imported, in a function below


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
    names = ModuleNames.of(model)
    names.check_saved(adapter.save_modules)
    if adapter.targets == "all-linear":
        targets: Any = _linear_names(model, saved)
    else:
        targets = list(adapter.targets)
        names.check_targets(targets)
    saved, rows = _rows_to_train(model, saved, targets, new_tokens)
    if rows:
        check_rows_can_be_trained(model)
    config = LoraConfig(
        r=adapter.rank,
        lora_alpha=adapter.alpha,  # type: ignore[arg-type]  # peft takes any number
        lora_dropout=adapter.dropout,
        target_modules=targets,
        modules_to_save=saved or None,
        use_rslora=adapter.kind == "rslora",
        use_dora=adapter.kind == "dora",
        task_type=task_type,
        trainable_token_indices=rows or None,
    )
    embed_with_gradients(model)
    with torch.random.fork_rng(devices=[]), warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="Model has `tie_word_embeddings=True`")  # merging separates them
        torch.default_generator.manual_seed(seed)
        try:
            return get_peft_model(model, config)  # type: ignore[arg-type]
        except NotImplementedError as error:  # peft asks models that share other weights for their word embeddings
            raise UserError(
                f"peft cannot add an adapter to a {type(model).__name__}: {error}",
                where="adapter",
                remedy="Leave out the adapter section and train all weights, or freeze some with model.freeze.",
            ) from None


def save_adapter(model: nn.Module, folder: Path, *, state_dict: dict[str, Any] | None = None) -> None:
    """Write the adapter as peft does, and beside it the model's configuration: its class and the labels of a new head.
    A base that was merged here, and exists nowhere else, comes along in base/.

    state_dict: the gathered weights of the adapter and the saved modules, where the model itself is sharded. Rank 0 only.
    """
    wrapped: Any = model
    given = {} if state_dict is None else {"state_dict": state_dict}
    # The embeddings of the base are not saved again: new rows are in the adapter, by row or as whole modules.
    wrapped.save_pretrained(folder, safe_serialization=True, save_embedding_layers=False, **given)
    inner = wrapped.get_base_model()
    config = copy.deepcopy(inner.config)
    config.architectures = [type(inner).__name__]  # the base's own configuration may name another head
    config.save_pretrained(folder)
    merged = Path(getattr(inner, "name_or_path", "") or "")
    if (merged / MARK).is_file():
        bring_base(folder, lambda base: _link_files(merged, base))


def bring_base(folder: Path, write: Callable[[Path], object]) -> None:
    """Let `write` fill base/ of the adapter's folder, and name it as the adapter's base, where `folder` will be."""
    write(folder / BASE)
    path, final = folder / CONFIG, folder.with_name(folder.name.partition(".incomplete")[0])
    settings = json.loads(path.read_text(encoding="utf-8"))
    settings["base_model_name_or_path"] = str(final.resolve() / BASE)
    path.write_text(json.dumps(settings, indent=2), encoding="utf-8")


def _link_files(source: Path, folder: Path) -> None:
    """The files of `source` in `folder`, without taking space where the disk is the same."""
    folder.mkdir(parents=True)
    for file in source.iterdir():
        try:
            os.link(file, folder / file.name)
        except OSError:
            shutil.copy2(file, folder / file.name)


def check_rows_can_be_trained(model: nn.Module) -> None:
    """Raises: UserError where peft cannot train single rows of embeddings."""
    if not uses_cuda() and any(hasattr(weight, "ds_id") for weight in model.parameters()):
        raise UserError(
            "new tokens with an adapter: without CUDA, peft cannot train single rows of embeddings that ZeRO-3 shards",
            where="parallel.deepspeed",
            remedy="Set parallel.deepspeed: zero2 or none, or train all weights.",
        )


def embed_with_gradients(model: Any) -> None:
    """Let embeddings give outputs with gradients, without which checkpointed blocks pass none on."""
    if any(getattr(module, "gradient_checkpointing", False) for module in model.modules()):
        model.enable_input_require_grads()


def check_same_modules(model: nn.Module, adapter: AdapterSection, source: AdapterSource) -> None:
    """Raises: UserError if adapter.targets names other modules than those that the adapter `source` is on."""
    theirs = {name for name, _ in model.named_modules() if is_named(name, source.targets or ())}
    if adapter.targets == "all-linear":
        ours = set(_linear_names(model, [*source.saved_modules, *adapter.save_modules]))
    else:
        ModuleNames.of(model).check_targets(adapter.targets)
        ours = {name for name, _ in model.named_modules() if is_named(name, adapter.targets)}
    if ours != theirs:
        raise UserError(
            f"adapter.targets names {len(ours)} modules, the adapter that is continued is on {len(theirs)}: "
            f"{source.describe()}",
            where=str(source.folder),
            remedy="Leave out adapter.targets to train the adapter further, or set adapter.start: merge to add a new one.",
        )


def _linear_names(model: nn.Module, saved: Sequence[str]) -> list[str]:
    """Full names of the linear layers of the body, without heads, saved modules and output embeddings."""
    output = model.get_output_embeddings() if hasattr(model, "get_output_embeddings") else None  # type: ignore[operator]
    names = [
        name
        for name, module in model.named_modules()
        if is_linear(module) and module is not output and not any(name == s or name.startswith(f"{s}.") for s in saved)
    ]
    if not names:
        other = sorted({name.rsplit(".", 1)[-1] for name in ModuleNames.of(model).carriers})
        raise UserError(
            "adapter.targets is all-linear, but this model has no linear layer outside its head",
            remedy=f"List layers by the last part of their names, such as {', '.join(other[:8])}.",
        )
    return names


def _rows_to_train(
    model: nn.Module, saved: list[str], targets: Sequence[str], new_tokens: Sequence[int]
) -> tuple[list[str], dict[str, list[int]]]:
    """Modules that are trained whole, and {embeddings: rows} of those of which only the rows of new tokens are.

    Embeddings that are trained whole have the new rows already. Raises: UserError if an adapter is on embeddings: it does
    not save the rows that it is added to.
    """
    if not new_tokens:
        return saved, {}
    inputs, outputs = _embedding_names(model)
    names = [inputs, outputs] if outputs else [inputs]
    if low_rank := [name for name in names if is_named(name, targets)]:
        raise UserError(
            f"adapter.targets has {low_rank[0]}, to whose rows model.new_tokens adds: an adapter does not save new rows",
            remedy=f"Move {low_rank[0].rpartition('.')[2]} from adapter.targets to adapter.save_modules, which trains all "
            "rows.",
        )
    whole = [name for name in names if is_named(name, saved)]
    if not whole and outputs and _is_tied(model):
        names = [inputs]  # peft lets the output embeddings follow
    elif whole == [outputs] and _is_tied(model):  # peft cannot train rows of the one without the other
        return [*saved, inputs], {}
    return saved, {name: list(new_tokens) for name in names if name not in whole}


def _embedding_names(model: nn.Module) -> tuple[str, str]:
    """Full names of the input and output embeddings; "" for output embeddings that the model lacks."""
    inputs, outputs = model.get_input_embeddings(), None  # type: ignore[operator]
    if hasattr(model, "get_output_embeddings"):
        outputs = model.get_output_embeddings()  # type: ignore[operator]
    names = {module: name for name, module in model.named_modules()}
    return names[inputs], names.get(outputs, "") if outputs is not None else ""


def _is_tied(model: Any) -> bool:
    outputs = model.get_output_embeddings()
    return outputs is not None and outputs.weight is model.get_input_embeddings().weight
