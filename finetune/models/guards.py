"""Guards around the building and loading of a model: no pickle is opened, and no more memory is asked for than there is."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any
from unittest.mock import patch

import psutil
import torch

from finetune.errors import UserError
from finetune.models.folder_check import CONVERT, check_index
from finetune.models.meta import build_on_meta
from finetune.recipe.json_file import read_json
from finetune.units import format_bytes

INDEX = "model.safetensors.index.json"
LARGE = 1 << 30  # elements of a matrix, from which a model is measured before it is built
UNALLOCATED = ("can't allocate memory", "not enough memory", "Storage size calculation overflowed", "overflow")


@contextmanager
def no_pickles(source: str) -> Iterator[None]:
    """Whatever the libraries find in the files of `source`, torch.load is not called. Raises: UserError in its place."""

    def refuse(file: Any = "", *args: Any, **options: Any) -> None:
        raise UserError(
            f"the weights of {source} are pickled, which can run code, and are never opened: {str(file)[:200]}",
            remedy=CONVERT,
        )

    with patch.object(torch, "load", refuse):
        yield


def check_hub_index(source: str, revision: str) -> None:
    """The index of a model of the hub, once it is on this machine; a folder is checked where it is resolved.

    Raises: UserError as check_index does.
    """
    if Path(source).is_dir():
        return
    from transformers.utils.hub import cached_file

    path = cached_file(
        source,
        INDEX,
        revision=revision,
        _raise_exceptions_for_missing_entries=False,
        _raise_exceptions_for_connection_errors=False,
        _raise_exceptions_for_gated_repo=False,
    )
    if path is not None:
        try:
            content = read_json(Path(path))
        except (OSError, ValueError) as error:
            raise UserError(f"the index of the weights cannot be read: {error}", where=str(path)) from None
        check_index(content, str(path))


def check_memory(build: Callable[[Any], Any], config: Any, source: str) -> None:
    """Measure the model that `build` makes of `config`, without its memory, if it has sizes of which one matrix would be large.

    Raises: UserError if its weights, in float32, do not fit into this machine's memory.
    """
    sizes = sorted(_numbers(config.to_dict()))[-2:]
    if len(sizes) < 2 or sizes[0] * sizes[1] < LARGE:
        return
    model = build_on_meta(build, config)
    needed = 4 * sum(weight.numel() for weight in model.parameters())
    memory = psutil.virtual_memory().total
    if needed > memory:
        raise UserError(
            f"the weights of {source} need {format_bytes(needed)} in float32, and this machine has {format_bytes(memory)}",
            where="model.config",
            remedy="Correct the sizes in model.config or in the model's config.json.",
        )


@contextmanager
def allocation_errors(source: str) -> Iterator[None]:
    """Raises: UserError in place of what the allocator says of sizes that no machine has."""
    try:
        yield
    except (RuntimeError, OverflowError, MemoryError) as error:
        if not isinstance(error, RuntimeError) or any(sign in str(error) for sign in UNALLOCATED):
            raise UserError(
                f"the weights of {source} do not fit into the memory: {str(error).strip().splitlines()[0][:300]}",
                where="model.config",
                remedy="Correct the sizes in model.config or in the model's config.json, or take a machine with more memory.",
            ) from error
        raise


def _numbers(tree: Any) -> Iterator[int]:
    if isinstance(tree, dict):
        for value in tree.values():
            yield from _numbers(value)
    elif isinstance(tree, int) and not isinstance(tree, bool) and tree > 0:
        yield tree
