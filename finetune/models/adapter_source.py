"""A source of a model that is an adapter: its folder, the base that it names, and what the folder holds. No torch here.

Nothing of the folder runs: adapter_config.json is data, and weights are read from safetensors only.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from finetune.errors import UserError
from finetune.models.source import looks_like_path, resolve_model
from finetune.recipe.json_file import read_json
from finetune.recipe.model import ModelSection
from finetune.recipe.user_path import unusable, user_path

CONFIG, WEIGHTS, PICKLE = "adapter_config.json", "adapter_model.safetensors", "adapter_model.bin"
NUMBERS = (("r", "rank"), ("lora_alpha", "alpha"))  # each for all modules, and by a pattern for single ones
MAX_RANK = 65_536  # above the width of published models, where LoRA has no use
MARK = "merged_adapter.json"  # in the folder of a base that was merged here, and exists nowhere else
BASE = "base"  # folder of a base that exists nowhere else, inside the adapter's folder
PROCESSOR_FILES = ("*token*", "vocab*", "merges*", "chat_template*", "*processor_config.json", "spiece*")


@dataclass(frozen=True)
class AdapterSource:
    """settings: of adapter_config.json. base: hub id or folder of the model that it was trained on."""

    folder: Path
    settings: Mapping[str, Any]
    base: str

    @property
    def weights(self) -> Path:
        """The file of its weights. Raises: UserError if there is none, or only a pickled one."""
        path = self.folder / WEIGHTS
        if path.is_file():
            return path
        if (self.folder / PICKLE).is_file():
            raise UserError(
                f"the adapter has pickled weights ({PICKLE}), which can run code and are refused",
                where=str(self.folder),
                remedy="Convert them once where you trust them: safetensors.torch.save_file(torch.load("
                f"'{PICKLE}', weights_only=True), '{WEIGHTS}')",
            )
        raise UserError(f"the adapter has no {WEIGHTS}", where=str(self.folder), remedy="Copy the whole folder.")

    @property
    def saved_modules(self) -> tuple[str, ...]:
        """Modules that the adapter brings whole, such as a head."""
        return tuple(self.settings.get("modules_to_save") or ())

    @property
    def kind(self) -> str:
        """As `adapter.kind` calls it."""
        return "dora" if self.settings.get("use_dora") else "rslora" if self.settings.get("use_rslora") else "lora"

    @property
    def targets(self) -> list[str] | None:
        """Names of the modules that it is on; None for a pattern."""
        targets = self.settings.get("target_modules")
        return sorted(targets) if isinstance(targets, list) else None

    def holder(self, patterns: Sequence[str]) -> str:
        """The adapter's folder if it has files like `patterns`, else the base."""
        return str(self.folder) if any(any(self.folder.glob(pattern)) for pattern in patterns) else self.base

    def describe(self) -> str:
        """One line: lora, rank 8, alpha 16, on q_proj, v_proj."""
        targets = self.targets
        shown = str(self.settings.get("target_modules")) if targets is None else ", ".join(targets[:6])
        more = f" and {len(targets) - 6} more" if targets and len(targets) > 6 else ""
        return (
            f"{self.kind}, rank {self.settings.get('r')}, alpha {self.settings.get('lora_alpha'):g}, on {shown}{more}"
        )


def adapter_of(model: ModelSection) -> AdapterSource | None:
    """The adapter that model.source names; None for a whole model, or one with random weights.

    Raises: UserError for an adapter that cannot be used, or whose base is missing.
    """
    return find_adapter(model.source) if model.source and model.init == "pretrained" else None


def find_adapter(source: str) -> AdapterSource | None:
    """The adapter in the folder (or run folder) `source`; None if there is none, as for every hub id.

    Raises: UserError for an adapter of another kind than LoRA, or whose base is missing.
    """
    folder = Path(resolve_model(source))
    path = folder / CONFIG
    if not _is_adapter(folder):
        return None
    try:
        settings = read_json(path)
        kind = str(settings["peft_type"])
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise UserError(f"the adapter cannot be read: {error}", where=str(path), remedy="Copy it again.") from None
    if kind != "LORA":
        raise UserError(
            f"model.source is an adapter of the kind {kind}; LoRA adapters (rsLoRA and DoRA too) can be started from",
            where=str(folder),
            remedy="Merge it with peft (merge_and_unload), save the model, and start from that folder.",
        )
    if settings.get("megatron_config"):
        raise UserError(
            "the adapter names a Python module to import (megatron_core)",
            where=str(path),
            remedy="Set megatron_config: null in it if its layers are plain ones.",
        )
    _check_settings(settings, path)
    return AdapterSource(folder, settings, _find_base(folder, settings.get("base_model_name_or_path") or ""))


def _check_settings(settings: Mapping[str, Any], path: Path) -> None:
    """Raises: UserError for numbers and names of other types than peft writes, and for a rank that no adapter has."""
    ranks, alphas = (
        {"": settings.get(key)} | _pattern(settings, f"{pattern}_pattern", path) for key, pattern in NUMBERS
    )
    faults = [f"r: {rank!r}" for rank in ranks.values() if type(rank) is not int or not 0 < rank <= MAX_RANK]
    faults += [f"lora_alpha: {alpha!r}" for alpha in alphas.values() if not _is_number(alpha)]
    faults += [f"lora_dropout: {rate!r}" for rate in [settings.get("lora_dropout") or 0.0] if not _is_number(rate)]
    base = settings.get("base_model_name_or_path")
    if base is not None and (not isinstance(base, str) or unusable(base)):
        faults.append(f"base_model_name_or_path: {base!r}")
    for key in ("target_modules", "modules_to_save"):
        named = settings.get(key)
        if named is not None and not isinstance(named, str) and not _are_names(named):
            faults.append(f"{key}: {named!r}")
    if faults:
        raise UserError(
            f"the adapter has a setting that no LoRA adapter has: {faults[0][:200]}",
            where=str(path),
            remedy=f"Copy the adapter again. Ranks are whole numbers from 1 to {MAX_RANK:,}.",
        )


def _pattern(settings: Mapping[str, Any], key: str, path: Path) -> dict[str, Any]:
    """Numbers of single modules, by name."""
    found = settings.get(key) or {}
    if not isinstance(found, dict):
        raise UserError(f"the adapter has a {key} that is not an object", where=str(path), remedy="Copy it again.")
    return found


def _is_number(value: Any) -> bool:
    return isinstance(value, (int, float)) and not isinstance(value, bool) and math.isfinite(value)


def _are_names(value: Any) -> bool:
    return isinstance(value, list) and all(isinstance(name, str) for name in value)


def _is_adapter(folder: Path) -> bool:
    return (folder / CONFIG).is_file() and not any(folder.glob("model*.safetensors"))


def _find_base(folder: Path, named: str) -> str:
    """Beside the adapter, else where it says. Raises: UserError that names both."""
    if (folder / BASE / "config.json").is_file():
        return str(folder / BASE)
    if not named:
        raise UserError(
            "the adapter does not name its base model",
            where=str(folder / CONFIG),
            remedy="If its base was random weights (model.init: config), export it again from its run: with the base "
            "beside it (finetune export RUN --output DIR), or merged (--merge).",
        )
    for path in (user_path(named), folder / named):
        if path.is_dir():
            if _is_adapter(path):
                raise UserError(
                    f"the base of the adapter is an adapter, too: {path}",
                    where=str(folder / CONFIG),
                    remedy="Merge that one into its own base first, and set base_model_name_or_path to the merged model.",
                )
            return str(path)
    if looks_like_path(named):
        raise UserError(
            f"the base model of the adapter {folder} is not there: {named}",
            where=str(folder / CONFIG),
            remedy="Restore it, or set base_model_name_or_path in that file to its new path.",
        )
    return resolve_model(named)


def source_files(model: ModelSection) -> list[Any]:
    """What changes when the weights of model.source change: name, size and time of its files, and those of an adapter's
    base; a hub id is named by its revision.
    """
    if not model.source or model.init != "pretrained":
        return []
    adapter = adapter_of(model)
    return _files(resolve_model(model.source)) + (["base", adapter.base, *_files(adapter.base)] if adapter else [])


def _files(source: str) -> list[Any]:
    folder = Path(source)
    if not folder.is_dir():
        return []
    files = sorted(path for path in folder.iterdir() if path.is_file())
    return [(path.name, path.stat().st_size, path.stat().st_mtime_ns) for path in files]
