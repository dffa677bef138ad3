"""The Task protocol: how one kind of learning works, without knowing how many ranks there are."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol, cast

from finetune.data.table import Examples, Table
from finetune.recipe.card import TaskCard
from finetune.recipe.recipe import Recipe

if TYPE_CHECKING:
    import torch
    from torch import nn


@dataclass
class Batch:
    """One micro-batch. ids: example ids, [batch]. inputs: what the model's forward takes, tensors [batch, ...].

    targets: what only the loss or the metrics need.
    padding: positions that hold padding; positions: all positions (tokens or pixels), for the padding share.
    """

    ids: tuple[int, ...]
    inputs: dict[str, Any]
    targets: dict[str, Any] = field(default_factory=dict)
    padding: int = 0
    positions: int = 0

    def to(self, device: torch.device) -> Batch:
        """The same batch on a device; lists of tensors and dicts of tensors move too."""
        return self._with(lambda tensor: tensor.to(device, non_blocking=True))

    def pin_memory(self) -> Batch:
        """The same batch in memory that a GPU copies from while the host goes on. torch's DataLoader calls it."""
        return self._with(lambda tensor: tensor.pin_memory())

    def _with(self, change: Callable[[Any], Any]) -> Batch:
        return replace(self, inputs=each_tensor(self.inputs, change), targets=each_tensor(self.targets, change))


def each_tensor(value: Any, change: Callable[[Any], Any]) -> Any:
    """`change` of every tensor inside dicts, lists and tuples; everything else stays."""
    if hasattr(value, "to") and hasattr(value, "device"):
        return change(value)
    if isinstance(value, dict):
        return {key: each_tensor(item, change) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return type(value)(each_tensor(item, change) for item in value)
    return value


@dataclass(frozen=True)
class Prediction:
    """What the model said of one example; plain Python values only, so that it can be gathered and written as JSON.

    values: the fields that the task's metrics take (such as prediction, reference, scores). loss: this example's summed
    loss, weight: its units. shown: extra fields for predictions/ and the report (such as the label's name, the text).
    """

    id: int
    values: Mapping[str, Any]
    loss: float = 0.0
    weight: int = 0
    shown: Mapping[str, Any] = field(default_factory=dict)


@dataclass
class Kit:
    """What a task made of the data: everything but the weights. examples: split name -> encoded examples.

    processor: tokenizer or image processor, saved beside the model. facts: for people (counts, skipped rows, lengths).
    notes: lines to be told before the first step, such as of examples that were cut.
    labels: class names in order of their index, if the task has classes. metric_options: keyword arguments of MetricSet.
    packing: none, padding_free or packed; capacity: tokens of a micro-batch then. pictures: the folder in which `sample`
    may write pictures, named in its rows under "picture"; None on ranks that write nothing.
    class_weights: of each class in the training loss.
    """

    recipe: Recipe
    processor: Any
    examples: dict[str, Examples]
    tables: dict[str, Table]
    labels: list[str] | None = None
    facts: dict[str, Any] = field(default_factory=dict)
    notes: list[str] = field(default_factory=list)
    metric_options: dict[str, Any] = field(default_factory=dict)
    packing: str = "none"
    capacity: int = 0
    pictures: Path | None = None
    class_weights: list[float] | None = None


def zero_settings(task: Task, config: Any) -> dict[str, Any]:
    """What DeepSpeed's `zero_optimization` must say for the model of `config`, whatever its file says; {} for most.

    A task that knows such models has a method `zero_settings(config)`.
    """
    asked = getattr(task, "zero_settings", None)
    return asked(config) if asked is not None else {}


def reference_columns(task: Task, kit: Kit) -> tuple[str, ...]:
    """Columns that the model at step 0 adds to every example before training; () for most tasks.

    A task that wants them has two methods: `reference_columns(kit) -> (names)` and `reference_values(kit, outputs, batch)
    -> [{name: number}]`, an entry an example, from the outputs of `forward`. `collate` then finds the numbers in the
    examples; it must do without them while they are being computed.
    """
    columns = getattr(task, "reference_columns", None)
    return columns(kit) if columns is not None else ()


class Task(Protocol):
    card: TaskCard

    def read(self, recipe: Recipe, tables: dict[str, Table]) -> Kit:
        """Tokenizer or processor, labels, encoded examples. No weights, no ranks; may be called on one rank first, and
        must then find its own result in the cache on the others.

        Raises: UserError naming file and row for a bad row where data.on_bad_row is error.
        """
        ...

    def build(self, kit: Kit) -> nn.Module:
        """The model, adapters included. All ranks call it, after the process group is open (ZeRO-3 shards at load)."""
        ...

    def collate(self, kit: Kit, examples: Sequence[dict[str, Any]]) -> Batch:
        """Encoded examples -> one padded micro-batch, on the CPU."""
        ...

    def weight(self, batch: Batch) -> int:
        """Units of loss in the batch (supervised tokens, examples, images)."""
        ...

    def forward(self, model: nn.Module, batch: Batch) -> Any:
        """The model's outputs. Every rank calls it equally often: under ZeRO-3 it communicates."""
        ...

    def loss_sum(self, kit: Kit, outputs: Any, batch: Batch) -> torch.Tensor:
        """Loss summed (not averaged) over the units of the batch: float32 scalar."""
        ...

    def predict(self, kit: Kit, outputs: Any, batch: Batch) -> list[Prediction]:
        """One prediction an example, in the order of batch.ids."""
        ...

    def sample(
        self, kit: Kit, model: nn.Module, examples: Sequence[dict[str, Any]], *, synced: bool
    ) -> list[dict[str, str]]:
        """A few examples in full, for the report: [{"id", "input", "expected", "predicted"}]. All ranks call it with the
        same examples; synced: generate in lockstep (ZeRO-3).
        """
        ...


class WritingTask(Task, Protocol):
    """A task whose card has metrics of generated texts."""

    def generate(self, kit: Kit, model: nn.Module, batch: Batch, *, synced: bool) -> list[Mapping[str, str]]:
        """What the model writes for each example: [{"text", "reference_text"}], in the order of batch.ids. Called at
        evaluation, in eval mode and without gradients, if a metric of the recipe judges texts. synced: every rank calls
        it equally often, in lockstep (ZeRO-3).
        """
        ...


def as_writer(task: Task) -> WritingTask:
    """The task, which has metrics of generated texts on its card and so must generate them."""
    assert hasattr(task, "generate"), f"{task.card.name} has metrics of texts on its card, but writes none"
    return cast(WritingTask, task)
