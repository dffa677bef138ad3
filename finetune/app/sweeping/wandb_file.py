"""The same space as the configuration of a W&B sweep: `wandb sweep FILE`, then `wandb agent` on any number of machines."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import yaml

from finetune.app.sweeping.space import Choices, Dimension
from finetune.app.sweeping.trials import Measure
from finetune.recipe.yaml import parse_value
from finetune.tracking.atomic_files import check_file, publish_text

# An agent hands over key=value for each parameter; the shell makes --set=key=value of each. The agent replaces only
# list items that are one macro, so the expansion here is the shell's.
_SHELL = 'exec finetune train "$0" "${@/#/--set=}"'
_DISTRIBUTIONS = {"uniform": "uniform", "loguniform": "log_uniform_values", "integers": "int_uniform"}


def write_wandb_sweep(
    path: Path, recipe: str, sets: Sequence[str], space: Sequence[Dimension], draws: int | None, measure: Measure
) -> None:
    """Raises: FinetuneError if the file cannot be written, or holds something else."""
    check_file(path, "\nmethod: ")
    goal = "maximize" if measure.mode == "max" else "minimize"
    values: dict[str, Any] = {
        "name": Path(recipe).stem,
        "method": "grid" if draws is None else "random",
        "metric": {"name": f"validation/{measure.metric}", "goal": goal},
        "parameters": {one.key: _parameter(one) for one in space},
        "command": ["${env}", "bash", "-c", _SHELL, recipe, *sets, "${args_no_hyphens}"],
    }
    if draws is not None:
        values["run_cap"] = draws
    # Not recipe.yaml's dump: W&B reads YAML 1.1, where 1e-05 is text and 1.0e-05 a number.
    publish_text(path, yaml.safe_dump(values, sort_keys=False, allow_unicode=True))


def _parameter(one: Dimension) -> dict[str, Any]:
    if isinstance(one, Choices):
        return {"values": [_as_argument(text) for text in one.values]}
    bounds = (int(one.low), int(one.high)) if one.kind == "integers" else (one.low, one.high)
    return {"distribution": _DISTRIBUTIONS[one.kind], "min": bounds[0], "max": bounds[1]}


def _as_argument(text: str) -> Any:
    """Numbers as numbers, for W&B's axes; all else as the text that --set takes: Python would write True and None."""
    value = parse_value(text)
    return value if isinstance(value, (int, float)) and not isinstance(value, bool) else text
