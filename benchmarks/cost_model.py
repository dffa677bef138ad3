"""The cost of a sequence from the model's shape compared to measured times: a Llama with 2.4M parameters, one CPU thread.

    python benchmarks/cost_model.py [--packs 60]      # results: packing.md

Packs of up to 2,048 tokens contain segments of one kind: dozens of short ones, or one long one. The forward and backward
pass of each pack is timed; the fastest of three counts. a and b fitted to the times (least squares, none below 0, with a
constant for the start of a micro-batch) are compared with those of `CostModel.from_config_shape`, which the assignment uses.
"""

from __future__ import annotations

import argparse
import sys
import time
from pathlib import Path

import numpy as np

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))
KINDS = ((10, 60), (100, 300), (500, 900), (2046, 2047))  # tokens of a segment
CAPACITY = 2048


def draw_packs(count: int, rng: np.random.Generator) -> list[list[int]]:
    packs = []
    for number in range(count):
        segments: list[int] = []
        while True:
            length = int(rng.integers(*KINDS[number % len(KINDS)]))
            if sum(segments) + length > CAPACITY:
                break
            segments.append(length)
        packs.append(segments[: int(rng.integers(1, len(segments) + 1))])
    return packs


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--packs", type=int, default=60)
    options = parser.parse_args()
    import torch
    from scipy.optimize import nnls
    from transformers import LlamaConfig, LlamaForCausalLM

    from benchmarks.sft_packing import SHAPE
    from finetune.models.segmented import use_segmented_attention
    from finetune.planning.shape import cost_model
    from finetune.tasks.text.padding_free import concatenate_rows

    torch.set_num_threads(1)
    config = LlamaConfig(**SHAPE)
    model = LlamaForCausalLM(config)
    use_segmented_attention(model)
    rng = np.random.default_rng(0)
    packs, seconds = draw_packs(options.packs, rng), []
    for segments in packs:
        inputs, _ = concatenate_rows([{"input_ids": rng.integers(0, 2000, size=length)} for length in segments])
        tries = []
        for _ in range(3):
            began = time.perf_counter()
            model(**inputs, use_cache=False).logits.sum().backward()
            tries.append(time.perf_counter() - began)
            model.zero_grad()
        seconds.append(min(tries))
    times = np.array(seconds)
    terms = np.array([[sum(pack), sum(n * n for n in pack), 1.0] for pack in packs])
    scale = terms.max(axis=0)
    measured = nnls(terms / scale, times)[0] / scale
    shape = cost_model(config)
    print(f"b / a: {shape.b / shape.a:.2e} from the shape, {measured[1] / measured[0]:.2e} measured")
    for name, costs in (
        ("the shape", np.array([shape.of(pack).sum() for pack in packs])),
        ("tokens only", terms[:, 0]),
        ("measured a and b", terms[:, :2] @ measured[:2]),
    ):
        told = times / (costs * times.sum() / costs.sum())
        print(f"seconds / cost by {name:24} spread (sd) {told.std():.3f}, from {told.min():.2f} to {told.max():.2f}")


if __name__ == "__main__":
    main()
