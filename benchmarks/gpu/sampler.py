"""Clock, temperature and power of the GPU while jobs run, by nvidia-smi once a second."""

from __future__ import annotations

import contextlib
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

QUERY = "clocks.sm,temperature.gpu,power.draw,utilization.gpu"
BUSY = 50.0  # percent: samples below it are of a job that starts


@contextmanager
def sampling(path: Path) -> Iterator[None]:
    """Lines of QUERY in `path` meanwhile; none where there is no nvidia-smi."""
    command = ["nvidia-smi", f"--query-gpu={QUERY}", "--format=csv,noheader,nounits", "--loop-ms=1000"]
    with path.open("wb") as file, contextlib.ExitStack() as stack:
        with contextlib.suppress(OSError):
            process = subprocess.Popen(command, stdout=file, stderr=subprocess.DEVNULL)
            stack.callback(process.wait)
            stack.callback(process.kill)
        yield


def summary(path: Path, since: int) -> dict[str, float]:
    """Of the samples after byte `since` in which the GPU was at work: median clock in MHz, hottest in degrees Celsius, median
    watts. {} if there are none.
    """
    with path.open("rb") as file:
        file.seek(since)
        lines = file.read().decode(errors="replace").splitlines()
    samples = []
    for line in lines:
        with contextlib.suppress(ValueError):  # partly written, or a figure that this GPU does not tell
            clock, degrees, watts, share = map(float, line.split(","))
            if share >= BUSY:
                samples.append((clock, degrees, watts))
    if not samples:
        return {}
    clocks, degrees, watts = (sorted(one) for one in zip(*samples, strict=True))
    middle = len(samples) // 2
    return {"sm_mhz": clocks[middle], "celsius": degrees[-1], "watts": watts[middle]}
