"""Proves that every task keeps the same promises, whatever it learns: in one process, in plain PyTorch.

It learns what it is shown; a saved model gives the same answers when loaded; the loss does not depend on how a batch is
split; a dummy reaches every weight; every example is answered exactly once. A task without an example here fails the count.
"""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import nn
from torch._subclasses.fake_tensor import FakeTensor, FakeTensorMode

from finetune.data.prepare.added_columns import ExamplesWithColumns
from finetune.models.adapter_source import adapter_of
from finetune.models.adapters import save_adapter
from finetune.models.continuing import write_merged
from finetune.models.loss_head import install_loss_head
from finetune.tasks import CARDS
from finetune.tasks.batch import Batch, map_tensors
from finetune.tasks.task import reference_columns
from tests.contract.examples import EXAMPLES, TinyExample
from tests.prepared import Prepared, prepare

torch.set_num_threads(1)


def _build(ready: Prepared, like: Prepared | None = None) -> Any:
    """The model. If the task wants columns from the model at step 0, they are computed, or taken over from `like`:
    they belong to the run, not to its result.
    """
    model = ready.build()
    names = reference_columns(ready.task, ready.artifacts)
    if names and like is not None:
        columns = like.datasets["train"].columns  # type: ignore[attr-defined]
        ready.datasets["train"] = ExamplesWithColumns(ready.datasets["train"], columns)
    else:
        ready.add_reference(model)
    return model


def _train(ready: Prepared, model: Any, example: TinyExample, steps: int | None = None) -> list[float]:
    """Mean losses; AdamW on the whole set."""
    batch = ready.batch()
    trained = [weight for weight in model.parameters() if weight.requires_grad]
    optimizer = torch.optim.AdamW(trained, lr=example.learning_rate)
    model.train()
    losses = []
    for _ in range(steps or example.steps):
        loss = ready.loss_sum(model, batch) / ready.task.weight(batch)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    return losses


def _predict(ready: Prepared, model: Any) -> tuple[list[Any], list[Any]]:
    batch = ready.batch()
    model.eval()
    with torch.no_grad():
        outputs = ready.task.forward(model, batch)
        return ready.answers(outputs, batch), ready.scores(outputs, batch)


def _same(one: tuple[list[Any], list[Any]], other: tuple[list[Any], list[Any]], tolerance: float) -> None:
    for left, right in zip(one[0], other[0], strict=True):
        assert left.id == right.id and left.values.keys() == right.values.keys()
        assert left.values.get("prediction") == right.values.get("prediction")
    for left, right in zip(one[1], other[1], strict=True):
        assert (left.id, left.weight) == (right.id, right.weight)
        assert left.loss == pytest.approx(right.loss, rel=tolerance, abs=tolerance)


def test_every_task_has_an_example() -> None:
    assert {example.task for example in EXAMPLES} == set(CARDS)
    assert all(card.name == name for name, card in CARDS.items())


def test_learns_eight_examples_and_says_the_same_when_loaded(example: TinyExample, tmp_path: Path) -> None:
    values = example.recipe(tmp_path)
    ready = prepare(values)
    model = _build(ready)
    losses = _train(ready, model, example)
    assert losses[-1] < example.learnt < losses[0], f"first loss {losses[0]:.3f}, last {losses[-1]:.3f}"

    saved = tmp_path / "saved"
    model.save_pretrained(saved)
    ready.artifacts.processor.save_pretrained(saved)
    again = prepare(example.recipe(tmp_path, model={"source": str(saved)}))
    loaded = _build(again, ready)
    assert again.artifacts.labels == ready.artifacts.labels
    assert "new head" not in again.facts.values and "missing weights" not in again.facts.values
    _same(_predict(ready, model), _predict(again, loaded), 1e-5)

    chosen = [again.datasets["train"][index] for index in (0, 5)]
    shown = again.task.sample(again.artifacts, loaded, chosen, synced=False)
    assert [row["id"] for row in shown] == ["0", "5"]
    for row in shown:
        asked = {"input"} if "input" in row else {"chosen", "rejected"}
        assert {"id", "expected", "predicted"} | asked <= row.keys()
        assert row.keys() <= {"id", "expected", "predicted", "input", "turns", "chosen", "rejected", "reply"}
        if example.task == "sequence_regression":
            assert float(row["predicted"]) == pytest.approx(float(row["expected"]), abs=0.1)
        else:
            assert row["predicted"] == row["expected"]


def test_loss_does_not_depend_on_how_the_batch_is_split(example: TinyExample, tmp_path: Path) -> None:
    ready = prepare(example.recipe(tmp_path))
    model = _build(ready).eval()  # BatchNorm over a micro-batch alone is another function; evaluation is not
    sums = []
    for size in (8, 4, 3, 1):
        parts = [ready.batch(range(start, min(start + size, 8))) for start in range(0, 8, size)]
        losses = [ready.loss_sum(model, part) for part in parts]
        assert all(loss.dtype == torch.float32 and loss.shape == () for loss in losses)
        gradients = torch.autograd.grad(sum(losses), [weight for weight in model.parameters() if weight.requires_grad])
        norm = torch.stack([gradient.norm() for gradient in gradients]).norm().item()
        sums.append((sum(loss.item() for loss in losses), sum(ready.task.weight(part) for part in parts), norm))
    for loss, weight, norm in sums[1:]:
        assert loss == pytest.approx(sums[0][0], rel=1e-5)
        assert norm == pytest.approx(sums[0][2], rel=1e-4)
        assert weight == sums[0][1] > 0


def test_batches_without_padding_have_the_losses_and_the_answers_of_padded_ones(
    example: TinyExample, tmp_path: Path
) -> None:
    if "padding_free" not in CARDS[example.task].batches.packings:
        pytest.skip(f"{example.task} pads its batches")
    found = []
    for packing in ("none", "padding_free"):
        values = example.recipe(tmp_path)
        ready = prepare({**values, "data": {**values["data"], "packing": packing}})
        model = _build(ready).eval()
        batch = ready.batch()
        assert (batch.padding == 0) == (packing != "none")
        loss = ready.loss_sum(model, batch)
        trained = {name: weight for name, weight in model.named_parameters() if weight.requires_grad}
        gradients = torch.autograd.grad(loss, list(trained.values()))
        shown = ready.task.sample(
            ready.artifacts, model, [ready.datasets["train"][index] for index in (6, 1)], synced=False
        )
        found.append((loss.item(), gradients, _predict(ready, model), shown, batch, ready.task.weight(batch)))
    (loss, gradients, predicted, shown, batch, weight), free = found
    assert free[0] == pytest.approx(loss, rel=1e-6)
    norm = torch.stack([gradient.norm() for gradient in gradients]).norm()
    difference = torch.stack([(one - other).norm() for one, other in zip(gradients, free[1], strict=True)]).norm()
    assert difference < 1e-5 * norm
    _same(predicted, free[2], 1e-5)
    assert [answer.shown for answer in predicted[0]] == [answer.shown for answer in free[2][0]]
    assert [score.reference.keys() for score in predicted[1]] == [score.reference.keys() for score in free[2][1]]
    assert (shown, weight) == (free[3], free[5])
    shared = free[4].inputs.get("shared_again", torch.empty(2, 0)).shape[1]  # tokens that two sequences begin with
    assert free[4].positions == batch.positions - batch.padding - shared  # and nothing else


class _UnknownOutputs(nn.Module):
    """A model whose outputs have shapes but no values. The loss head itself: tests/unit/models/test_linear_loss.py."""

    def __init__(self, outputs: dict[str, torch.Tensor]) -> None:
        super().__init__()
        self.outputs = outputs
        self.weight = nn.Parameter(torch.zeros(1))

    def forward(self, **inputs: Any) -> Any:
        return SimpleNamespace(**self.outputs)

    def prepare_decoder_input_ids_from_labels(self, labels: torch.Tensor) -> torch.Tensor:
        return labels


def test_a_loss_asks_the_device_for_nothing(example: TinyExample, tmp_path: Path) -> None:
    """A GPU runs behind its host; whoever asks it for a value (a mask's size, an item) makes the host wait, and then the
    GPU has nothing to do. Tensors without values find out on a CPU.
    """
    if example.task == "object_detection":
        pytest.skip("boxes are matched on the CPU (scipy's linear_sum_assignment)")
    ready = prepare(example.recipe(tmp_path))
    model = _build(ready)
    batch = ready.batch()
    outputs, tensors = _forward(ready, model, batch)
    tensors = {name: tensor.detach() for name, tensor in tensors.items()}
    with FakeTensorMode() as mode:
        unknown = _UnknownOutputs({name: mode.from_tensor(tensor) for name, tensor in tensors.items()})
        if isinstance(outputs, dict):  # language models compute their loss in their forward pass
            install_loss_head(unknown)
        inputs, targets = (map_tensors(part, mode.from_tensor) for part in (batch.inputs, batch.targets))
        fake = replace(batch, inputs=inputs, targets=targets)
        loss = ready.task.loss_sum(ready.artifacts, ready.task.forward(unknown, fake), fake)
    assert isinstance(loss, FakeTensor) and loss.shape == () and loss.dtype == torch.float32


def test_predictions_add_up_to_the_loss_and_carry_each_id_once(example: TinyExample, tmp_path: Path) -> None:
    ready = prepare(example.recipe(tmp_path))
    model = _build(ready).eval()
    batch = ready.batch()
    with torch.no_grad():
        outputs = ready.task.forward(model, batch)
        loss = ready.task.loss_sum(ready.artifacts, outputs, batch).item()
        answers, scores = ready.answers(outputs, batch), ready.scores(outputs, batch)
        rounded = ready.scores(_forward(ready, model, batch, torch.bfloat16)[0], batch)
    assert [answer.id for answer in answers] == [score.id for score in scores] == list(range(8)) == list(batch.ids)
    assert sum(score.loss for score in scores) == pytest.approx(loss, rel=1e-5)
    assert sum(score.weight for score in scores) == ready.task.weight(batch)
    assert sum(score.loss for score in rounded) == pytest.approx(loss, rel=2e-2)


def _forward(
    ready: Prepared, model: Any, batch: Batch, dtype: torch.dtype | None = None
) -> tuple[Any, dict[str, torch.Tensor]]:
    """Outputs, and those of their tensors that the card names, rounded to `dtype`. A language model, whose loss never sees
    all of its logits, rounds what its head reads, and has logits of the same shape.
    """
    head = model.get_output_embeddings() if hasattr(model, "get_output_embeddings") else None
    if head is None:
        outputs = ready.task.forward(model, batch)
        names = [name for name in ready.task.card.model.outputs if hasattr(outputs, name)]
        assert names, "forward gives what the card names"
        for name in names if dtype is not None else ():
            setattr(outputs, name, getattr(outputs, name).to(dtype))
        return outputs, {name: getattr(outputs, name) for name in names}
    handle = (
        head.register_forward_pre_hook(lambda _, inputs: (inputs[0].to(dtype).to(inputs[0].dtype),)) if dtype else None
    )
    outputs = ready.task.forward(model, batch)
    if handle is not None:
        handle.remove()
    rows, columns = batch.targets["labels"].shape
    return outputs, {"logits": torch.zeros(rows, columns, model.config.vocab_size)}


def test_a_dummy_changes_nothing_but_reaches_every_weight(example: TinyExample, tmp_path: Path) -> None:
    ready = prepare(example.recipe(tmp_path))
    model = _build(ready)
    batch = ready.batch((0, 1))
    loss = ready.loss_sum(model, batch) * 0.0  # as the training step weighs it
    loss.backward()
    assert ready.task.weight(batch) > 0 and loss.item() == 0.0
    reached = [weight.grad for weight in model.parameters() if weight.requires_grad and weight.grad is not None]
    assert reached and all(not gradient.any() for gradient in reached)


def test_half_precision_weights_have_the_loss_of_float32_ones(example: TinyExample, tmp_path: Path) -> None:
    """As DistributedDataParallel runs them where it keeps float32 masters: under autocast."""
    if CARDS[example.task].batches.decodes:
        pytest.skip("models of images keep float32 weights")
    section = {"parallel": {"deepspeed": "none", "master_weights": True}}
    wide = prepare(example.recipe(tmp_path, training={"precision": "fp32"}))
    half = prepare(example.recipe(tmp_path, training={"precision": "bf16"}, **section))
    losses = []
    for ready, is_half in ((wide, False), (half, True)):
        model = _build(ready).eval()
        batch = ready.batch()
        with torch.autocast("cpu", torch.bfloat16, enabled=is_half):
            loss = ready.loss_sum(model, batch) / ready.task.weight(batch)
        loss.backward()
        gradients = [weight.grad for weight in model.parameters() if weight.grad is not None]
        losses.append(loss.item())
    assert len(gradients) > 5 and {gradient.dtype for gradient in gradients} == {torch.bfloat16}
    assert all(bool(gradient.isfinite().all()) for gradient in gradients)
    assert losses[1] == pytest.approx(losses[0], rel=3e-2)


def test_build_depends_on_the_seed_alone(example: TinyExample, tmp_path: Path) -> None:
    ready = prepare(example.recipe(tmp_path))
    torch.manual_seed(1)
    one = _build(ready).state_dict()
    torch.manual_seed(2)
    torch.rand(5)
    other = _build(ready).state_dict()
    assert all(torch.equal(one[key], other[key]) for key in one)
    reseeded = _build(prepare(example.recipe(tmp_path, seed=18))).state_dict()
    assert any(not torch.equal(one[key], reseeded[key]) for key in one)


def test_an_adapter_learns_merges_and_is_continued(example: TinyExample, tmp_path: Path) -> None:
    if example.adapter is None:
        pytest.skip(f"{example.task} takes no adapter")
    ready = prepare(example.recipe(tmp_path))
    base = tmp_path / "base"
    _build(ready).save_pretrained(base)
    ready.artifacts.processor.save_pretrained(base)

    values = example.recipe(tmp_path, model={"source": str(base), "batch_norm": "frozen"}, adapter=example.adapter)
    ready = prepare(values)
    model = _build(ready)
    before = {name: weight.clone() for name, weight in model.named_parameters() if not weight.requires_grad}
    losses = _train(ready, model, example)
    assert losses[-1] < 0.95 * losses[0]  # on a random, frozen base there is not much that it can do
    assert all(torch.equal(before[name], weight) for name, weight in model.named_parameters() if name in before)

    save_adapter(model, tmp_path / "adapter")
    ready.artifacts.processor.save_pretrained(tmp_path / "adapter")
    section = ready.plan.recipe.model.model_copy(update={"source": str(tmp_path / "adapter")})
    source = adapter_of(section)
    assert source is not None and source.base == str(base)
    write_merged(ready.task.card.model, section, source, tmp_path / "merged")
    merged = prepare(example.recipe(tmp_path, model={"source": str(tmp_path / "merged")}))
    _same(_predict(ready, model), _predict(merged, _build(merged, ready)), 1e-3)

    again = prepare(example.recipe(tmp_path, model={"source": str(tmp_path / "adapter")}, adapter=example.adapter))
    continued = _build(again, ready)
    _same(_predict(ready, model), _predict(again, continued), 1e-4)
    trained = [{name for name, weight in one.named_parameters() if weight.requires_grad} for one in (model, continued)]
    assert trained[0] == trained[1]
