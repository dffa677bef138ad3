"""Where ranks put temporary files: into a folder that somebody removes when they are gone. No torch here.

A rank that is killed, or that fails, removes nothing of its own, such as W&B's copies of tables. The folder of ranks that
`finetune` starts is that of their launch (rendezvous.py), which the supervising process removes; a rank of another launcher has
one of its own, and removes it as it ends. Where SIGKILL leaves one, a later start removes it (held_folder.py).
"""

from __future__ import annotations

import getpass
import os
import re
import shutil
import signal
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from finetune.distributed.held_folder import PREFIX, make_folder
from finetune.ending import ended_by, ending

VARIABLE, COMPILED = "TMPDIR", "TORCHINDUCTOR_CACHE_DIR"
MOST_BYTES = 66  # of the folder's name: that of a socket has 107, to which multiprocessing adds 32 and W&B's service 41
ENDS = (signal.SIGTERM, signal.SIGUSR1, signal.SIGHUP)


def temporary_variables(folder: Path) -> dict[str, str]:
    """Variables by which a process puts its temporary files into `folder`, except for what torch has compiled, which the next
    training takes again. {} for a folder with a name that is too long for sockets in it.
    """
    if len(os.fsencode(folder)) > MOST_BYTES:
        return {}
    try:
        user = re.sub(r'[\\/:*?"<>|]', "_", getpass.getuser())
    except (KeyError, OSError):
        user = f"uid_{os.getuid()}"
    kept = os.environ.get(COMPILED) or str(Path(tempfile.gettempdir()) / f"torchinductor_{user}")  # torch's own choice
    return {VARIABLE: str(folder), COMPILED: kept}


@contextmanager
def own_temporary_folder() -> Iterator[None]:
    """Inside, the temporary files of this process are in a folder of its own, which goes with the block or the process."""
    before = {name: os.environ.get(name) for name in (VARIABLE, COMPILED)}
    try:
        folder, held = make_folder(PREFIX)
    except OSError:  # no folder can be written: libraries say so if they need one
        yield
        return
    with ended_by(*ENDS), ending(lambda: shutil.rmtree(folder, ignore_errors=True)):
        os.environ.update(temporary_variables(folder))
        tempfile.tempdir = None  # read anew
        try:
            yield
        finally:
            os.environ.update({name: value for name, value in before.items() if value is not None})
            for name in (name for name, value in before.items() if value is None):
                os.environ.pop(name, None)
            tempfile.tempdir = None
            os.close(held)


def remove_shared_memory(address: str, port: int | str, rank: int | str = "*") -> None:
    """Of DeepSpeed's collectives on CPU, of one rank or all ranks of a launch: the names of what they have in /dev/shm."""
    for path in Path("/dev/shm").glob(f"deepspeed_allreduce_buffer_{os.getuid()}_{address}_{port}_{rank}"):
        path.unlink(missing_ok=True)
