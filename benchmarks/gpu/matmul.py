"""The matrix product's peak on this device, alone: what every share of peak is taken of."""

from __future__ import annotations

import sys
import time

import torch

from benchmarks.gpu.jobs import tell


def main() -> None:
    """Prints TFLOP/s of a square product in bf16. Argument: its size."""
    size, repeats = int(sys.argv[1]), 50 if torch.cuda.is_available() else 3
    device = "cuda" if torch.cuda.is_available() else "cpu"
    one = torch.randn(size, size, device=device, dtype=torch.bfloat16)
    other = torch.randn_like(one)
    for _ in range(5):
        one @ other
    if device == "cuda":
        torch.cuda.synchronize()
    began = time.perf_counter()
    for _ in range(repeats):
        one @ other
    if device == "cuda":
        torch.cuda.synchronize()
    seconds = (time.perf_counter() - began) / repeats
    tell(flops=2 * size**3 / seconds)


if __name__ == "__main__":
    main()
