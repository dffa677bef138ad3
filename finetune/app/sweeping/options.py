"""The options of `finetune sweep`, as the command line gives them. No heavy imports."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True)
class SweepOptions:
    """See the help of the command. Every field is an option of the same name, but `recipe`, the argument, and `draws` and
    `seed`, which are --random and --random-seed.

    A new option is a field here and an entry of cli/sweep_parameters.py.
    """

    recipe: str
    grid: tuple[str, ...] = ()
    draws: int | None = None
    seed: int = 0
    metric: str = ""
    halving: bool = True
    parallel: int | None = None
    processes: int | None = None
    sets: tuple[str, ...] = ()
    retry_failed: bool = False
    sweep_dir: Path | None = None
    wandb_sweep: Path | None = None
