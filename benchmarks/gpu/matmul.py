"""The matrix product's peak on this device, alone: what every share of peak is taken of.

python -m benchmarks.gpu.matmul SIZE SECONDS

flops: of a short burst, at full clock. sustained_flops: after SECONDS, when the limit of power holds the clock down, as in a
training.
"""

from __future__ import annotations

import sys
import time

import torch

from benchmarks.gpu.jobs import tell


def main() -> None:
    """See the head of the file."""
    size, lasting = int(sys.argv[1]), float(sys.argv[2])
    gpu = torch.cuda.is_available()
    one = torch.randn(size, size, device="cuda" if gpu else "cpu", dtype=torch.bfloat16)
    other = torch.randn_like(one)

    def seconds(repeats: int) -> float:
        if gpu:
            torch.cuda.synchronize()
        began = time.perf_counter()
        for _ in range(repeats):
            one @ other
        if gpu:
            torch.cuda.synchronize()
        return (time.perf_counter() - began) / repeats

    repeats = 50 if gpu else 3
    seconds(5)
    burst = seconds(repeats)
    ends, last = time.perf_counter() + lasting, burst
    while time.perf_counter() < ends:
        last = seconds(4 * repeats)
    tell(flops=2 * size**3 / burst, sustained_flops=2 * size**3 / last)


if __name__ == "__main__":
    main()
