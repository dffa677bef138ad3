"""An error that each rank of a foreign launcher meets is shown by one of them. No torch here.

Before the ranks have found each other, they read the same recipe, data and model, and fail by the same error. The ranks of one
launch on one machine are children of one process (torchrun's agent, slurmstepd, mpirun's daemon): whoever comes first claims
the text with a file in the temporary folder. In doubt, an error is shown.
"""

from __future__ import annotations

import hashlib
import os
import tempfile
import time
from contextlib import suppress
from pathlib import Path

from finetune.distributed.env import from_environ
from finetune.errors import FinetuneError

# Their ranks are children of one process.
LAUNCHERS = ("accelerate", "deepspeed", "torchrun", "srun", "mpirun", "mpiexec")
SECONDS = 600  # after which a claim says nothing any more, and is removed by a later one


def said_by_another(text: str) -> bool:
    """Whether another rank of this launch, on this machine, shows this text. False outside of a launch of several ranks, where
    each start of a user's own loop is asked, and where no claim can be made.
    """
    launch = _launch()
    if not launch:
        return False
    prefix = f"finetune-said-{os.getuid()}-"
    home = Path(tempfile.gettempdir())
    _remove_old(home, prefix)
    digest = hashlib.sha256(f"{launch}\n{text}".encode(errors="replace")).hexdigest()
    claim = home / f"{prefix}{digest[:32]}"
    try:
        os.close(os.open(claim, os.O_CREAT | os.O_EXCL | os.O_WRONLY, 0o600))
    except FileExistsError:
        return _is_own(claim)
    except OSError:
        pass
    return False


def _launch() -> str:
    """What the ranks of this launch have in common, and no other launch; "" for a process that is alone."""
    try:
        env = from_environ()
        if env is None or env.launcher not in LAUNCHERS or env.world_size == 1:
            return ""
        parent = os.getppid()
        started = (
            Path(f"/proc/{parent}/stat").read_text(encoding="utf-8", errors="replace").rpartition(")")[2].split()[19]
        )
    except (FinetuneError, OSError, IndexError):
        return ""
    return f"{parent} {started} {os.environ.get('TORCHELASTIC_RESTART_COUNT', '')}"


def _is_own(claim: Path) -> bool:
    """Another user may have put a file of this name there, to keep an error from being shown."""
    try:
        return claim.lstat().st_uid == os.getuid()
    except OSError:
        return False


def _remove_old(home: Path, prefix: str) -> None:
    for claim in home.glob(f"{prefix}*"):
        with suppress(OSError):
            if claim.lstat().st_uid == os.getuid() and time.time() - claim.lstat().st_mtime > SECONDS:
                claim.unlink()
