"""Opening a W&B run, the same way for trainings, evaluations and predictions: online where there is a key and a server, and
otherwise offline, in files that `wandb sync` uploads later.
"""

from __future__ import annotations

import os
import shutil
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from finetune.recipe.secrets import mask
from finetune.terminal import printable

# How long it may take until a server has answered, or else the run is recorded offline: with importing wandb and starting its
# service, which take long on a busy machine, but never leave the server less than half of it.
INIT_SECONDS = 8.0
FINISH_SECONDS = 60.0  # how long the end of a run waits for uploads at most
FULL_BELOW = 1 << 20  # bytes

Say = Callable[[str], None]


def is_off(mode: str) -> bool:
    """mode: tracking.wandb of a recipe. WANDB_MODE=disabled says the same as "off"."""
    return mode == "off" or os.environ.get("WANDB_MODE") == "disabled"


def open_run(folder: Path, mode: str, say: Say, **given: Any) -> Any:
    """A W&B run whose files are in `folder`/wandb. given: arguments of wandb.init.

    mode `auto`: online if there is an API key (environment, netrc); `online` says so where there is none. A server that does
    not answer, or refuses the key, is reported with its reason, and the run is recorded offline.
    """
    began = time.monotonic()
    if "wandb" not in sys.modules:
        os.environ.pop("WANDB_SERVICE", None)  # of the process that started this one; it may end first
    import wandb

    wandb.setup(wandb.Settings(silent=True))  # otherwise it prints the account in use
    online = mode in ("auto", "online") and os.environ.get("WANDB_MODE", "online") == "online"
    if online and not has_key(wandb):
        online = False
        if mode == "online":
            say("W&B: no API key in WANDB_API_KEY or netrc (`wandb login` stores one); recording offline")
    if online:
        try:
            return _init(wandb, folder, "online", given, INIT_SECONDS - min(time.monotonic() - began, INIT_SECONDS / 2))
        except Exception as error:
            say(f"W&B cannot be used online ({reason_of(error)}); recording offline")
            wandb.teardown()  # its service still has the run's id open
    return _init(wandb, folder, "offline", given, INIT_SECONDS)


def describe_place(run: Any, lacks: str = "") -> tuple[str, str]:
    """(address, line for the user) of an open run; the address of one that is recorded offline is "".

    lacks: what W&B cannot record offline.
    """
    address = "" if run.offline else (run.url or "")
    folder = Path(run.dir).parent
    without = f", without {lacks}" if lacks else ""
    return address, f"W&B: {address}" if address else f"W&B offline{without}; to upload it later: wandb sync {folder}"


def reason_of(error: Exception) -> str:
    """The first line of an exception, without secrets."""
    text = str(mask(str(error))).strip()
    return printable(text.splitlines()[0]) if text else type(error).__name__


def disk_is_full(folder: Path) -> bool:
    """Whether W&B may have failed to write there: wandb does not say so."""
    try:
        return shutil.disk_usage(folder).free < FULL_BELOW
    except OSError:
        return True


def has_key(wandb: Any) -> bool:
    """Whether there is an API key in the environment, or in netrc for the server that wandb is configured for."""
    if os.environ.get("WANDB_API_KEY"):
        return True
    from wandb.sdk.lib.wbauth import read_netrc_auth

    return bool(read_netrc_auth(host=wandb.setup().settings.base_url))


def _init(wandb: Any, folder: Path, mode: str, given: dict[str, Any], seconds: float) -> Any:
    settings = wandb.Settings(
        silent=True, console="off", init_timeout=seconds, finish_timeout=FINISH_SECONDS, disable_git=True
    )
    return wandb.init(dir=str(folder), mode=mode, reinit="create_new", settings=settings, **given)
