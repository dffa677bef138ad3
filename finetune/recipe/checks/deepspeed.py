"""The DeepSpeed configuration that a recipe names: whether it exists, and what it says that other checks ask for."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from finetune.errors import Fault, UserError
from finetune.recipe.checks.context import CheckContext
from finetune.recipe.deepspeed import Asked, config_faults, read_deepspeed_config
from finetune.recipe.faults import nearest
from finetune.recipe.recipe import Recipe
from finetune.recipe.shelf import find_deepspeed_config, list_deepspeed_configs, looks_like_file

DEEPSPEED_OFF = "none"
PRECISIONS = ("fp32", "tf32", "bf16", "fp16")
DERIVED_PRECISIONS = ("bf16", "fp32")  # what training.precision: auto may become


def check_deepspeed(context: CheckContext) -> Iterator[Fault]:
    """A DeepSpeed configuration that exists and does not contradict the recipe."""
    name = context.recipe.parallel.deepspeed
    if name == DEEPSPEED_OFF:
        return
    names = [DEEPSPEED_OFF, *list_deepspeed_configs()]
    if not looks_like_file(name) and name not in names:
        near = "none" if name in ("off", "false", "no", "") else nearest(name, names)
        yield context.fault(
            "parallel.deepspeed", "no such DeepSpeed configuration", allowed=", ".join(names), near=near
        )
        return
    try:
        path = find_deepspeed_config(name)
    except UserError:
        return  # reported by check_files
    try:
        config = read_deepspeed_config(path)
    except UserError as error:
        yield Fault(error.where, "parallel.deepspeed", error.what, allowed="a JSON object")
        return
    asked = context.recipe.training.precision
    precisions = (asked,) if asked in PRECISIONS else DERIVED_PRECISIONS
    yield from config_faults(config, Asked.of(context.recipe, precisions), where=str(path))


def zero_section(recipe: Recipe) -> dict[str, Any] | None:
    """`zero_optimization` of the DeepSpeed configuration; empty without one, None if it cannot be read."""
    if recipe.parallel.deepspeed == DEEPSPEED_OFF:
        return {}
    config = stored_config(recipe)
    section = None if config is None else config.get("zero_optimization", {})
    return section if isinstance(section, dict) else None


def stored_config(recipe: Recipe) -> dict[str, Any] | None:
    """The content of the file that the recipe names; None if it names none, or one that cannot be read."""
    if recipe.parallel.deepspeed == DEEPSPEED_OFF:
        return None
    try:
        return read_deepspeed_config(find_deepspeed_config(recipe.parallel.deepspeed))
    except UserError:
        return None


def offloads_optimizer(recipe: Recipe) -> bool | None:
    """Whether the DeepSpeed configuration keeps optimizer state in main memory; None if it cannot be read."""
    section = zero_section(recipe)
    return None if section is None else (section.get("offload_optimizer") or {}).get("device") in ("cpu", "nvme")
