"""A prediction as one W&B run of job type `predict`: what was asked, and the figures of its end."""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from finetune.recipe.secrets import mask
from finetune.tracking.atomic_files import plain
from finetune.tracking.wandb_mirror import has_key

PROJECT = "finetune"
INIT_SECONDS, FINISH_SECONDS = 20.0, 60.0


def log_prediction(
    folder: Path, mode: str, config: Mapping[str, Any], figures: Mapping[str, Any], say: Callable[[str], None]
) -> None:
    """Record a run in `folder`/wandb; online if there is a key and a server can be reached, otherwise offline.

    mode: as in tracking.wandb of a recipe. Never fails: the journal of the prediction has the same figures.
    """
    if mode == "off" or os.environ.get("WANDB_MODE") == "disabled":
        return
    try:
        _log(folder, mode, config, figures, say)
    except Exception as error:
        say(f"W&B is disabled ({str(mask(f'{type(error).__name__}: {error}')).splitlines()[0]})")


def _log(
    folder: Path, mode: str, config: Mapping[str, Any], figures: Mapping[str, Any], say: Callable[[str], None]
) -> None:
    import wandb

    settings = wandb.Settings(
        silent=True, console="off", init_timeout=INIT_SECONDS, finish_timeout=FINISH_SECONDS, disable_git=True
    )
    asked = os.environ.get("WANDB_MODE", "online")
    online = mode != "offline" and asked == "online" and has_key(wandb)
    wandb.setup(wandb.Settings(silent=True))  # otherwise it prints the account in use
    common: dict[str, Any] = {
        "dir": str(folder),
        "project": PROJECT,
        "job_type": "predict",
        "config": mask(plain(dict(config))),
        "settings": settings,
    }
    try:
        run = wandb.init(mode="online" if online else "offline", **common)
    except Exception as error:
        if not online:
            raise
        say(f"W&B cannot be reached ({str(mask(str(error))).splitlines()[0]}); recording offline")
        wandb.teardown()
        run = wandb.init(mode="offline", **common)
    run.log(mask(plain(dict(figures))))
    place = run.url if online and not run.offline else f"offline; to upload it later: wandb sync {Path(run.dir).parent}"
    run.finish()
    say(f"W&B: {place}")
