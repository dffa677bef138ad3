"""Batches without padding beside padded ones: units per second of the same steps of two recipes, on one core.

    python -m benchmarks.padding_free [--steps 12] --wnut DIR --dpo FILE        # results: README.md

Both sides train the same examples in the same steps, in turn: forward and backward passes and the update, in one process,
from batches that were collated before the clock starts, which is that of the processor: other load matters less. Their
losses are compared before that, without dropout.
--wnut: a folder with train.conll. --dpo: a file of pairs.
"""

from __future__ import annotations

import argparse
import statistics
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch

from finetune.app.machine import plan_alone
from finetune.app.opening import open_recipe
from finetune.data.prepare.added_columns import ExamplesWithColumns
from finetune.data.sources.tables import open_tables
from finetune.planning.shape import cost_model
from finetune.tasks import CARDS, load_task
from finetune.tasks.facts import Facts
from finetune.tasks.task import reference_columns
from finetune.training.microbatch_planner import MicroBatchPlanner, flat
from finetune.training.parameter_groups import make_optimizer

ROOT = Path(__file__).resolve().parent.parent


@dataclass
class Side:
    """One way of making batches. batches: of each step. seconds: of each step, once it ran."""

    task: Any
    artifacts: Any
    model: torch.nn.Module
    optimizer: Any
    batches: list[list[Any]]
    seconds: list[float]

    def run(self, step: int) -> tuple[float, int]:
        """(loss sum, units) of a step."""
        start = time.process_time()
        units = sum(self.task.weight(batch) for batch in self.batches[step])
        total = 0.0
        for batch in self.batches[step]:
            loss = self.task.loss_sum(self.artifacts, self.task.forward(self.model, batch), batch) / units
            loss.backward()
            total += loss.item()
        self.optimizer.step()
        self.optimizer.zero_grad()
        self.seconds.append(time.process_time() - start)
        return total, units


def make_side(recipe_name: str, packing: str, changes: list[str], steps: int) -> Side:
    settings = [*changes, f"data.packing={packing}", "parallel.deepspeed=none", "training.precision=fp32"]
    recipe = open_recipe(str(ROOT / "recipes" / recipe_name), settings).recipe
    card = CARDS[recipe.task]
    plan, task, facts, tables = plan_alone(recipe), load_task(card.name), Facts(), open_tables(recipe, card)
    artifacts = task.prepare(plan, tables, facts)
    examples = task.dataset(plan, artifacts, tables["train"], facts)
    names = reference_columns(task, artifacts)
    if names:  # any numbers: they are added to those of the model
        examples = ExamplesWithColumns(examples, {name: np.full(len(examples), -50.0) for name in names})
    model: Any = task.build(plan, artifacts, facts)
    planner = MicroBatchPlanner(
        examples.costs,
        cost_model(model.config),
        ranks=1,
        micro_batch=plan.batch.micro_batch,
        packing=plan.training.packing,
        capacity=artifacts.settings["capacity"],
    )
    schedule = planner.schedule(recipe, plan.training.balance_window)
    batches = []
    for number in range(steps):
        step = schedule.step(number)
        chosen = flat(step)
        micro_batches = planner.assign(step, None).ranks[0]
        batches.append(
            [task.collate(artifacts, [examples[chosen[item]] for item in micro]) for micro in micro_batches if micro]
        )
    return Side(task, artifacts, model, make_optimizer(model, recipe.training, "adamw"), batches, [])


def compare(name: str, unit: str, recipe: str, changes: list[str], steps: int) -> None:
    sides = {packing: make_side(recipe, packing, changes, steps) for packing in ("none", "padding_free")}
    worst = 0.0
    for step in range(2):  # warms up, and shows that the numbers are the same: without dropout and before any update
        losses = []
        for side in sides.values():
            side.model.eval()
            units = sum(side.task.weight(batch) for batch in side.batches[step])
            with torch.no_grad():
                parts = [
                    side.task.loss_sum(side.artifacts, side.task.forward(side.model, batch), batch).item()
                    for batch in side.batches[step]
                ]
            losses.append(sum(parts) / units)
        worst = max(worst, abs(losses[0] - losses[1]) / losses[0])
    units = []
    for step in range(steps):
        for side in sides.values():
            side.model.train()
            _, count = side.run(step)
        units.append(count)
    speeds = {
        packing: statistics.median(count / seconds for count, seconds in zip(units, side.seconds, strict=True))
        for packing, side in sides.items()
    }
    padded = [batch for micro in sides["none"].batches for batch in micro]
    share = sum(batch.padding for batch in padded) / sum(batch.positions for batch in padded)
    print(f"| {name} | {share:.1%} | {speeds['none']:,.1f} | {speeds['padding_free']:,.1f} ", end="")
    ratios = [one / other for one, other in zip(sides["none"].seconds, sides["padding_free"].seconds, strict=True)]
    print(f"| {statistics.median(ratios):.2f} | {worst:.1e} | {unit}", flush=True)


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--steps", type=int, default=12)
    parser.add_argument(
        "--layers", type=int, default=2, help="of the Llama that DPO trains; with more, its head is a smaller part"
    )
    parser.add_argument("--max-length", type=int, default=512, help="tokens of a reply with its prompt")
    parser.add_argument("--wnut", type=Path)
    parser.add_argument("--dpo", type=Path)
    asked = parser.parse_args()
    torch.set_num_threads(1)
    print("| work | padding | padded, per second | without padding | ratio | losses differ by | unit")
    print("|---|---|---|---|---|---|---|")
    if asked.wnut:
        files = [f"data.train={asked.wnut / 'train.conll'}", "data.validation=[]"]
        compare("WNUT-17, MiniLM", "word", "token_classification/minilm-wnut17.yaml", files, asked.steps)
    if asked.dpo:
        files = [
            f"data.train={asked.dpo}",
            "data.validation_fraction=0",
            f"options.max_length={asked.max_length}",
            f"model.config.max_position_embeddings={asked.max_length}",
            f"model.config.num_hidden_layers={asked.layers}",
        ]
        name = f"DPO, Llama of {asked.layers} layers, {asked.max_length} tokens"
        compare(name, "pair", "preference/tiny-llama-dpo.yaml", files, asked.steps)


if __name__ == "__main__":
    main()
