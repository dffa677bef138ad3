"""Tokens per second of padding-free micro-batches, by their size: the probe of `data.capacity: auto`, for any recipe.

    python -m benchmarks.capacity RECIPE [--set KEY=VALUE ...] [--first 128] [--limit 16384]    # results: README.md

One process on this machine's device, a CPU included, whose trainings do not use the probe.
"""

from __future__ import annotations

import argparse

import torch

from finetune.app.machine import plan_here
from finetune.app.opening import open_recipe
from finetune.app.workers.context import open_session, set_up
from finetune.app.workers.describe import forecast_bytes
from finetune.app.workers.preparing import ready
from finetune.planning import capacity
from finetune.training.capacity_probe import CapacityProbe


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("recipe")
    parser.add_argument("--set", action="append", default=[], dest="sets")
    parser.add_argument("--first", type=int, default=0, help="tokens; 0: what the training plan says")
    parser.add_argument("--limit", type=int, default=16_384)
    parser.add_argument("--seconds", type=float, default=capacity.SECONDS, help="that it may take")
    asked = parser.parse_args()
    capacity.SECONDS = asked.seconds
    torch.set_num_threads(1)
    recipe = open_recipe(asked.recipe, asked.sets).recipe
    plan = plan_here(recipe, 1)
    session = open_session(plan)
    context = set_up(session, plan, ready(recipe), print)
    probe = CapacityProbe(
        context.task,
        context.artifacts,
        context.engine,
        context.datasets["train"],
        seed=recipe.seed,
        global_batch=recipe.training.global_batch,
        state_bytes=forecast_bytes(context).on_device,
    )
    choice = probe.choose(first=asked.first or context.artifacts.settings["capacity"], limit=asked.limit)
    print(f"| micro-batch | tokens in it | seconds | tokens/s |\n|---|---|---|---|   {recipe.name}")
    for one in choice.measured:
        print(f"| {one.capacity:,} | {one.tokens:,} | {one.seconds:.4f} | {one.rate:,.0f} |")
    print(choice.in_words())
    session.close()


if __name__ == "__main__":
    main()
