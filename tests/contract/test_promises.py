"""Proves that every task keeps the same promises, whatever it learns: in one process, in plain PyTorch.

It learns what it is shown; what is saved says the same when loaded; the loss does not depend on how a batch is split;
a dummy reaches every weight; every example is predicted exactly once. A task that has no example here fails the count.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from torch._subclasses.fake_tensor import FakeTensorMode

from finetune.app.workers.context import plan_alone
from finetune.data.prepare.added_columns import ExamplesWithColumns
from finetune.data.sources.tables import open_tables
from finetune.models.adapters import merge_adapter, save_adapter
from finetune.recipe.recipe import Recipe, recipe_type
from finetune.tasks import CARDS, TASKS
from finetune.tasks.task import Batch, Kit, each_tensor, reference_columns
from tests.contract.examples import EXAMPLES, TinyExample

torch.set_num_threads(1)


@pytest.fixture(autouse=True)
def _own_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))


@pytest.fixture(params=EXAMPLES, ids=lambda example: example.task)
def example(request: pytest.FixtureRequest) -> Iterator[TinyExample]:
    yield request.param


def _read(values: dict[str, Any]) -> tuple[Any, Kit]:
    card = CARDS[values["task"]]
    recipe: Recipe = recipe_type(card)(**values)
    task = TASKS[values["task"]]
    return task, task.read(plan_alone(recipe), open_tables(recipe, card))


def _build(task: Any, kit: Kit, like: Kit | None = None) -> Any:
    """The model; where the task wants columns from the model at step 0, they are computed, or taken over from `like`:
    they belong to the run, not to its result.
    """
    model = task.build(kit)
    names = reference_columns(task, kit)
    if names and like is not None:
        columns = like.examples["train"].columns  # type: ignore[attr-defined]
    elif names:
        batch, was_training = _whole(task, kit), model.training
        with torch.no_grad():
            rows = task.reference_values(kit, task.forward(model.eval(), batch), batch)
        model.train(was_training)
        columns = {name: np.asarray([row[name] for row in rows]) for name in names}
    if names:
        kit.examples["train"] = ExamplesWithColumns(kit.examples["train"], columns)
    return model


def _whole(task: Any, kit: Kit) -> Batch:
    examples = kit.examples["train"]
    return task.collate(kit, [examples[index] for index in range(len(examples))])


def _train(task: Any, kit: Kit, model: Any, example: TinyExample, steps: int | None = None) -> list[float]:
    """Mean losses; AdamW on the whole set."""
    batch = _whole(task, kit)
    trained = [weight for weight in model.parameters() if weight.requires_grad]
    optimizer = torch.optim.AdamW(trained, lr=example.learning_rate)
    model.train()
    losses = []
    for _ in range(steps or example.steps):
        loss = task.loss_sum(kit, task.forward(model, batch), batch) / task.weight(batch)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    return losses


def _predict(task: Any, kit: Kit, model: Any) -> list[Any]:
    batch = _whole(task, kit)
    model.eval()
    with torch.no_grad():
        return task.predict(kit, task.forward(model, batch), batch)


def _same(one: list[Any], other: list[Any], tolerance: float) -> None:
    assert [prediction.id for prediction in one] == [prediction.id for prediction in other]
    for left, right in zip(one, other, strict=True):
        assert left.values.keys() == right.values.keys()
        assert left.values.get("prediction") == right.values.get("prediction")
        assert left.weight == right.weight
        assert left.loss == pytest.approx(right.loss, rel=tolerance, abs=tolerance)


def test_every_task_has_an_example() -> None:
    assert {example.task for example in EXAMPLES} == set(TASKS) == set(CARDS)
    assert all(card.name == name for name, card in CARDS.items())


def test_learns_eight_examples_and_says_the_same_when_loaded(example: TinyExample, tmp_path: Path) -> None:
    values = example.recipe(tmp_path)
    task, kit = _read(values)
    model = _build(task, kit)
    losses = _train(task, kit, model, example)
    assert losses[-1] < example.learnt < losses[0], f"first loss {losses[0]:.3f}, last {losses[-1]:.3f}"

    saved = tmp_path / "saved"
    model.save_pretrained(saved)
    kit.processor.save_pretrained(saved)
    task, loaded_kit = _read(example.recipe(tmp_path, model={"source": str(saved)}))
    loaded = _build(task, loaded_kit, kit)
    assert loaded_kit.labels == kit.labels
    assert "new head" not in loaded_kit.facts and "missing weights" not in loaded_kit.facts
    _same(_predict(task, kit, model), _predict(task, loaded_kit, loaded), 1e-5)

    shown = task.sample(loaded_kit, loaded, [loaded_kit.examples["train"][index] for index in (0, 5)], synced=False)
    assert [row["id"] for row in shown] == ["0", "5"]
    for row in shown:
        assert row.keys() == {"id", "input", "expected", "predicted"}
        assert row["predicted"] == row["expected"]


def test_loss_does_not_depend_on_how_the_batch_is_split(example: TinyExample, tmp_path: Path) -> None:
    task, kit = _read(example.recipe(tmp_path))
    model = _build(task, kit).eval()  # BatchNorm over a micro-batch alone is another function; evaluation is not
    examples = [kit.examples["train"][index] for index in range(8)]
    sums = []
    for size in (8, 4, 3, 1):
        parts = [task.collate(kit, examples[start : start + size]) for start in range(0, 8, size)]
        losses = [task.loss_sum(kit, task.forward(model, part), part) for part in parts]
        assert all(loss.dtype == torch.float32 and loss.shape == () for loss in losses)
        gradients = torch.autograd.grad(sum(losses), [weight for weight in model.parameters() if weight.requires_grad])
        norm = torch.stack([gradient.norm() for gradient in gradients]).norm().item()
        sums.append((sum(loss.item() for loss in losses), sum(task.weight(part) for part in parts), norm))
    for loss, weight, norm in sums[1:]:
        assert loss == pytest.approx(sums[0][0], rel=1e-5)
        assert norm == pytest.approx(sums[0][2], rel=1e-4)
        assert weight == sums[0][1] > 0


def test_a_loss_asks_the_device_for_nothing(example: TinyExample, tmp_path: Path) -> None:
    """A GPU runs behind its host; whoever asks it for a value (a mask's size, an item) makes the host wait, and then the
    GPU has nothing to do. Tensors without values find out on a CPU.
    """
    if example.task == "object_detection":
        pytest.skip("boxes are matched on the CPU (scipy's linear_sum_assignment)")
    task, kit = _read(example.recipe(tmp_path))
    model = _build(task, kit)
    batch = _whole(task, kit)
    outputs = task.forward(model, batch)
    mode = FakeTensorMode()
    unknown = SimpleNamespace(logits=mode.from_tensor(outputs.logits.detach()))
    targets = each_tensor(batch.targets, mode.from_tensor)
    with mode:
        loss = task.loss_sum(kit, unknown, replace(batch, targets=targets))
    assert loss.shape == () and loss.dtype == torch.float32


def test_predictions_add_up_to_the_loss_and_carry_each_id_once(example: TinyExample, tmp_path: Path) -> None:
    task, kit = _read(example.recipe(tmp_path))
    model = _build(task, kit).eval()
    batch = _whole(task, kit)
    with torch.no_grad():
        outputs = task.forward(model, batch)
        loss = task.loss_sum(kit, outputs, batch).item()
        predictions = task.predict(kit, outputs, batch)
        outputs.logits = outputs.logits.bfloat16()
        rounded = task.predict(kit, outputs, batch)
    assert [prediction.id for prediction in predictions] == list(range(8)) == list(batch.ids)
    assert sum(prediction.loss for prediction in predictions) == pytest.approx(loss, rel=1e-5)
    assert sum(prediction.weight for prediction in predictions) == task.weight(batch)
    assert sum(prediction.loss for prediction in rounded) == pytest.approx(loss, rel=2e-2)


def test_a_dummy_changes_nothing_but_reaches_every_weight(example: TinyExample, tmp_path: Path) -> None:
    task, kit = _read(example.recipe(tmp_path))
    model = _build(task, kit)
    batch = task.collate(kit, [kit.examples["train"][0], kit.examples["train"][1]])
    loss = task.loss_sum(kit, task.forward(model, batch), batch) * 0.0  # as the training step weighs it
    loss.backward()
    assert task.weight(batch) > 0 and loss.item() == 0.0
    reached = [weight.grad for weight in model.parameters() if weight.requires_grad and weight.grad is not None]
    assert reached and all(not gradient.any() for gradient in reached)


def test_build_depends_on_the_seed_alone(example: TinyExample, tmp_path: Path) -> None:
    task, kit = _read(example.recipe(tmp_path))
    torch.manual_seed(1)
    one = _build(task, kit).state_dict()
    torch.manual_seed(2)
    torch.rand(5)
    other = _build(task, kit).state_dict()
    assert all(torch.equal(one[key], other[key]) for key in one)
    _, reseeded_kit = _read(example.recipe(tmp_path, seed=18))
    reseeded = _build(task, reseeded_kit).state_dict()
    assert any(not torch.equal(one[key], reseeded[key]) for key in one)


def test_an_adapter_learns_and_merges(example: TinyExample, tmp_path: Path) -> None:
    if example.adapter is None:
        pytest.skip(f"{example.task} takes no adapter")
    task, kit = _read(example.recipe(tmp_path))
    base = tmp_path / "base"
    _build(task, kit).save_pretrained(base)
    kit.processor.save_pretrained(base)

    values = example.recipe(tmp_path, model={"source": str(base), "batch_norm": "frozen"}, adapter=example.adapter)
    task, kit = _read(values)
    model = _build(task, kit)
    before = {name: weight.clone() for name, weight in model.named_parameters() if not weight.requires_grad}
    losses = _train(task, kit, model, example)
    assert losses[-1] < 0.95 * losses[0]  # on a random, frozen base there is not much that it can do
    assert all(torch.equal(before[name], weight) for name, weight in model.named_parameters() if name in before)

    save_adapter(model, tmp_path / "adapter")
    kit.processor.save_pretrained(tmp_path / "adapter")
    merge_adapter(tmp_path / "adapter", tmp_path / "merged")
    task, merged_kit = _read(example.recipe(tmp_path, model={"source": str(tmp_path / "merged")}))
    _same(_predict(task, kit, model), _predict(task, merged_kit, _build(task, merged_kit, kit)), 1e-3)
