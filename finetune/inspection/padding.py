"""How full the micro-batches of the first steps are: collated as training collates them, for one rank."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from finetune.inspection.split import InspectedSplit
from finetune.tasks.artifacts import TaskArtifacts

Steps = Sequence[Sequence[Sequence[int]]]  # steps -> micro-batches -> positions of examples


@dataclass(frozen=True)
class MicroBatch:
    """rows: (row id, tokens) of each example. borders: where examples begin and end in a concatenated batch; () if padded."""

    rows: tuple[tuple[int, int], ...]
    borders: tuple[int, ...]
    padding: int
    positions: int


@dataclass(frozen=True)
class Padding:
    """Over the first `steps` of `of_steps` per epoch: positions of all micro-batches, those that are padding, and the places
    that packs of `capacity` tokens leave free (0 if batches are padded). first: the micro-batches of the first step.
    """

    packing: str
    capacity: int
    steps: int
    of_steps: int
    micro_batches: int
    padding: int
    positions: int
    free: int
    first: tuple[MicroBatch, ...]

    @property
    def share(self) -> float:
        """Share of computed positions that hold nothing."""
        return self.padding / self.positions if self.positions else 0.0

    @property
    def filled(self) -> float:
        """Share of the packs' capacity that is used; 1 without packs."""
        used = self.positions - self.padding
        return used / (used + self.free) if used + self.free else 1.0


def measure_padding(
    task: Any, artifacts: TaskArtifacts, split: InspectedSplit, steps: Steps, of_steps: int, packing: str, capacity: int
) -> Padding:
    """Collates the micro-batches of `steps`."""
    first: list[MicroBatch] = []
    padding = positions = free = count = 0
    for number, step in enumerate(steps):
        for micro in step:
            batch = task.collate(artifacts, [split.examples[position] for position in micro])
            padding, positions, count = padding + batch.padding, positions + batch.positions, count + 1
            if packing == "packed":
                free += capacity - batch.positions
            if number == 0:
                borders = batch.inputs.get("cu_seq_lens_q")
                lengths = split.tokens.lengths if split.tokens is not None else split.examples.costs
                rows = tuple((int(split.row_ids[position]), int(lengths[position])) for position in micro)
                first.append(
                    MicroBatch(
                        rows, tuple(borders.tolist()) if borders is not None else (), batch.padding, batch.positions
                    )
                )
    return Padding(packing, capacity, len(steps), of_steps, count, padding, positions, free, tuple(first))


def describe_padding(padding: Padding) -> str:
    """One line: what the micro-batches of the first steps hold."""
    span = f"the first {padding.steps:,} of {padding.of_steps:,} steps per epoch, on one rank"
    count = "1 micro-batch" if padding.micro_batches == 1 else f"{padding.micro_batches:,} micro-batches"
    text = f"packing {padding.packing}: {count} in {span}; {padding.share:.1%} padding"
    return text + (f"; packs of {padding.capacity:,} tokens are {padding.filled:.1%} full" if padding.free else "")
