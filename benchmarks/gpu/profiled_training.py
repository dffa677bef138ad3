"""`finetune` in one process, with a profile of the two steps after `steps`. Used by --profile alone.

python -m benchmarks.gpu.profiled_training FILE STEPS train RECIPE ...

The peak of memory begins anew with the first step; what there was before (weights drawn in float32) is told in FILE.
"""

from __future__ import annotations

import math
import os
import socket
import sys
from pathlib import Path
from typing import Any

import torch


def main() -> None:
    """See the head of the file."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = str(free.getsockname()[1])
    ours = {"RANK": "0", "WORLD_SIZE": "1", "LOCAL_RANK": "0", "LOCAL_WORLD_SIZE": "1"}  # so that it starts no ranks
    os.environ.update(ours, MASTER_ADDR="127.0.0.1", MASTER_PORT=port)
    from finetune.cli import main as finetune
    from finetune.training import timing

    timing.FIRST_TRACE = math.inf  # type: ignore[assignment]  # two profilers at once would disturb each other
    _hook(Path(sys.argv[1]), int(sys.argv[2]))
    finetune(sys.argv[3:])


def _hook(path: Path, steps: int) -> None:
    """Let the loop call a train_step that counts and profiles."""
    from benchmarks.gpu.profiling import StepProfiles
    from finetune.training import loop

    plain, profiles, count = loop.train_step, StepProfiles(path), 0

    def train_step(*given: Any, **named: Any) -> Any:
        nonlocal count
        count += 1
        if count == 1 and torch.cuda.is_available():
            before = torch.cuda.max_memory_allocated() / 2**30
            profiles.heading = f"peak before the first step: {before:.2f} GiB"
            torch.cuda.reset_peak_memory_stats()
        if count <= steps or profiles.done:
            return plain(*given, **named)
        profiles.begin()
        result = plain(*given, **named)
        profiles.end()
        return result

    loop.train_step = train_step


if __name__ == "__main__":
    main()
