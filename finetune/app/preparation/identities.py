"""The identities of what a preparation reads: sources, tokenizer and processor, files that options name. Reads no data.

Files are known by size and times, folders by those of their files, and what the hub has by its commit.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from finetune.data.prepare.file_digest import file_stat
from finetune.data.sources.identity import folder_identity, hub_commit, source_identity
from finetune.data.sources.read_options import asked_sources
from finetune.models.adapter_source import find_adapter
from finetune.models.source import resolve_model
from finetune.recipe.model import ModelSection
from finetune.recipe.paths import PATH_OPTIONS
from finetune.recipe.recipe import Recipe
from finetune.terminal import say

WEIGHTS = (".safetensors", ".bin", ".pt", ".pth", ".h5", ".msgpack", ".onnx", ".gguf")


def sources_identity(recipe: Recipe, split: str = "", data: Sequence[str] = (), read: Sequence[str] = ()) -> list[Any]:
    """Of everything that is read: all splits, one split, or `data` in their place, read as `read` says.

    Raises: UserError, OSError.
    """
    if data:
        return [source_identity(source, "data", say) for source in asked_sources(data, read)]
    splits = {"train": recipe.data.train, "validation": recipe.data.validation, "test": recipe.data.test}
    if split and splits.get(split):
        splits = {split: splits[split]}
    elif split:  # held out of the training data
        splits = {"train": recipe.data.train}
    return [[name, [source_identity(source, name, say) for source in splits[name]]] for name in splits]


def models_identity(model: ModelSection) -> list[Any]:
    """Of tokenizer, processor and configuration, without weights."""
    return [_model_identity(source, model.revision) for source in (model.source, model.tokenizer, model.processor)]


def _model_identity(source: str, revision: str) -> list[Any]:
    if not source or source.startswith("train:"):
        return [source]
    where = resolve_model(source)
    if Path(where).is_dir():
        adapter = find_adapter(source)  # whose base may have the tokenizer
        base = [_model_identity(adapter.base, "main")] if adapter else []
        return [where, folder_identity(Path(where), ignore=WEIGHTS), *base]
    if "/" not in where:  # a model type, such as llama, or a name of the hub's first days
        return [where, revision]
    return [where, hub_commit(where, revision, "model", say)]


def option_files_identity(options: Mapping[str, Any]) -> list[Any]:
    """Of the files that options name, such as schemas of tools: what they hold is part of the artifacts.

    The task reports a missing file: a run that has its artifacts does not need it.
    """
    paths = [Path(options.get(name) or "") for name in PATH_OPTIONS]
    return [[str(path), *file_stat(path)] if path.is_file() else [] for path in paths]
