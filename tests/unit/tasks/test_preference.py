"""Proves that every preference loss equals TRL's on the same batch (or its paper's formula by hand), that the reference is
what the model said at step 0, and how rows are read.
"""

from __future__ import annotations

import json
import math
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch

from finetune.data.prepare.added_columns import ExamplesWithColumns
from finetune.errors import UserError
from finetune.tasks.batch import Batch
from finetune.tasks.preference import losses as losses
from finetune.tasks.preference.losses import Replies
from finetune.tasks.task import reference_columns
from finetune.tasks.text.padding_free import split_values
from tests.prepared import Prepared, prepare

TINY = {"hidden_size": 16, "intermediate_size": 32, "num_hidden_layers": 1, "num_attention_heads": 2}
WHY = "TRL is a peer, not a dependency: pip install trl"
PAIRS = [
    {"prompt": "Name a fruit.", "chosen": "An apple.", "rejected": "A stone, perhaps, or a car."},
    {"prompt": "Hi", "chosen": "Good day to you, and well met!", "rejected": "No."},
    {"messages": [{"from": "human", "value": "2?"}], "chosen": {"from": "gpt", "value": "2."}, "rejected": "Three"},
]
SINGLE = [
    {"prompt": "Name a fruit.", "completion": "An apple.", "label": True},
    {"prompt": "Hi", "completion": "No.", "label": "false"},
    {"prompt": "2?", "completion": "2.", "label": 1},
]


def _read(folder: Path, rows: list[dict[str, Any]], seed: int = 1, packing: str = "auto", **options: Any) -> Prepared:
    path = folder / "train.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    model = {
        "source": "llama",
        "init": "config",
        "tokenizer": "train:300",
        "config": {**TINY, "initializer_range": 0.3},
    }
    return prepare(
        {
            "name": "x",
            "task": "preference",
            "seed": seed,
            "model": model,
            "data": {"train": str(path), "packing": packing},
            "options": options,
            "training": {"precision": "fp32"},
        }
    )


def _whole(prepared: Prepared) -> Batch:
    return prepared.task.collate(
        prepared.artifacts, [prepared.datasets["train"][index] for index in range(len(prepared.datasets["train"]))]
    )


def _with_reference(prepared: Prepared, model: Any) -> Batch:
    """The whole set, with what `model` says of it as reference."""
    batch = _whole(prepared)
    with torch.no_grad():
        rows = prepared.task.reference_values(prepared.artifacts, prepared.task.forward(model, batch), batch)
    columns = {
        name: np.array([row[name] for row in rows]) for name in reference_columns(prepared.task, prepared.artifacts)
    }
    prepared.datasets["train"] = ExamplesWithColumns(prepared.datasets["train"], columns)
    return _whole(prepared)


def _loss(prepared: Prepared, model: Any, batch: Batch) -> float:
    return prepared.loss_sum(model, batch).item() / prepared.task.weight(batch)


def _trl_inputs(batch: Batch) -> dict[str, torch.Tensor]:
    return {**batch.inputs, "completion_mask": (batch.targets["labels"] != -100).long()}


@pytest.mark.parametrize(("ours", "theirs", "beta"), [("dpo", "sigmoid", 0.3), ("ipo", "ipo", 0.2)])
def test_losses_with_a_reference_equal_trls(tmp_path: Path, ours: str, theirs: str, beta: float) -> None:
    pytest.importorskip("trl", reason=WHY)
    from datasets import Dataset
    from trl import DPOConfig, DPOTrainer

    prepared = _read(tmp_path, PAIRS, packing="none", loss=ours, beta=beta)  # TRL takes padded rows
    policy, reference = prepared.build().eval(), _read(tmp_path, PAIRS, seed=2, loss=ours).build().eval()
    batch = _with_reference(prepared, reference)
    trainer = DPOTrainer(
        policy,
        reference,
        args=DPOConfig(
            str(tmp_path / "trl"), loss_type=[theirs], beta=beta, report_to="none", use_cpu=True, bf16=False
        ),
        processing_class=prepared.artifacts.processor,
        train_dataset=Dataset.from_list([{"prompt": "a", "chosen": "b", "rejected": "c"}]),
    )
    expected = trainer._compute_loss(policy, _trl_inputs(batch), return_outputs=False)
    assert _loss(prepared, policy, batch) == pytest.approx(expected.item(), rel=1e-5)
    metrics = trainer._metrics["eval"]
    rewards = [score.reference for score in prepared.scores(prepared.task.forward(policy, batch), batch)]
    margin = np.mean([reward["chosen_reward"] - reward["rejected_reward"] for reward in rewards])
    if ours == "dpo":
        assert margin == pytest.approx(metrics["rewards/margins"][0], rel=1e-4)


def test_kto_equals_trls_with_the_same_reference_point(tmp_path: Path) -> None:
    pytest.importorskip("trl", reason=WHY)
    from datasets import Dataset
    from trl import KTOConfig, KTOTrainer

    options = {"loss": "kto", "beta": 0.3, "desirable_weight": 1.5, "undesirable_weight": 0.7}
    prepared = _read(tmp_path, SINGLE, packing="none", **options)
    policy, reference = prepared.build().eval(), _read(tmp_path, SINGLE, seed=2, loss="kto").build().eval()
    batch = _with_reference(prepared, reference)
    args = KTOConfig(
        str(tmp_path / "trl"), loss_type="apo_zero_unpaired", beta=0.3, desirable_weight=1.5, undesirable_weight=0.7,
        report_to="none", use_cpu=True, bf16=False,
    )  # fmt: skip
    row = {"prompt": "a", "completion": "b", "label": True}
    data = Dataset.from_list([row, {**row, "label": False}])
    trainer = KTOTrainer(
        policy, reference, args=args, processing_class=prepared.artifacts.processor, train_dataset=data
    )
    inputs = {**_trl_inputs(batch), "label": batch.targets["desirable"] > 0}
    expected = trainer._compute_loss(policy, inputs, return_outputs=False)
    assert _loss(prepared, policy, batch) == pytest.approx(expected.item(), rel=1e-5)


def _random_replies() -> tuple[Replies, Replies]:
    torch.manual_seed(0)
    tokens = torch.tensor([3.0, 7.0, 11.0, 2.0])
    return (
        Replies(-torch.rand(4) * 20, tokens, -torch.rand(4) * 20),
        Replies(-torch.rand(4) * 20, tokens + 1, -torch.rand(4) * 20),
    )


def test_losses_without_a_reference_equal_trls() -> None:
    pytest.importorskip("trl", reason=WHY)
    from trl.experimental.cpo import CPOTrainer
    from trl.experimental.orpo import ORPOTrainer

    chosen, rejected = _random_replies()
    here = SimpleNamespace(device="cpu")
    theirs: Any = SimpleNamespace(beta=0.4, accelerator=here)
    ratio, *rewards, _, _ = ORPOTrainer.odds_ratio_loss(theirs, chosen.mean, rejected.mean)
    loss, *own = losses.orpo(chosen, rejected, beta=0.4)
    assert torch.allclose(loss, -chosen.mean - ratio, rtol=1e-5)
    assert all(torch.allclose(one, other) for one, other in zip(own, rewards, strict=True))
    theirs = SimpleNamespace(
        beta=2.0, alpha=0.0, loss_type="simpo", simpo_gamma=0.8, label_smoothing=0.0, accelerator=here
    )
    expected, *rewards = CPOTrainer.cpo_loss(theirs, chosen.mean, rejected.mean)
    loss, *own = losses.simpo(chosen, rejected, beta=2.0, margin=0.8)
    assert torch.allclose(loss, expected, rtol=1e-5)
    assert all(torch.allclose(one, other) for one, other in zip(own, rewards, strict=True))


def test_the_formulas_by_hand() -> None:
    one = Replies(torch.tensor([-2.0]), torch.tensor([4.0]), torch.tensor([-3.0]))
    other = Replies(torch.tensor([-6.0]), torch.tensor([2.0]), torch.tensor([-5.0]))

    def sigmoid(x: float) -> float:
        return 1 / (1 + math.exp(-x))

    loss, chosen, rejected = losses.dpo(one, other, beta=0.5)
    assert (loss.item(), chosen.item(), rejected.item()) == pytest.approx((-math.log(sigmoid(1.0)), 0.5, -0.5))
    smoothed = losses.dpo(one, other, beta=0.5, label_smoothing=0.2)[0].item()
    assert smoothed == pytest.approx(-0.8 * math.log(sigmoid(1.0)) - 0.2 * math.log(sigmoid(-1.0)))
    assert losses.ipo(one, other, beta=0.5)[0].item() == pytest.approx((0.25 + 0.5 - 1.0) ** 2)
    odds = math.log(math.exp(-0.5) / (1 - math.exp(-0.5))) - math.log(math.exp(-3.0) / (1 - math.exp(-3.0)))
    assert losses.orpo(one, other, beta=0.1)[0].item() == pytest.approx(0.5 - 0.1 * math.log(sigmoid(odds)), rel=1e-5)
    simpo = losses.simpo(one, other, beta=2.0, margin=1.0)[0].item()
    assert simpo == pytest.approx(-math.log(sigmoid(2 * (3.0 - 0.5) - 1)), rel=1e-5)
    both = Replies(torch.tensor([-2.0, -6.0]), torch.tensor([4.0, 2.0]), torch.tensor([-3.0, -5.0]))
    loss, chosen, rejected = losses.kto(both, torch.tensor([True, False]), beta=0.5, reference_point=0.2)
    assert loss.tolist() == pytest.approx([1 - sigmoid(0.5 * 0.8), 1 - sigmoid(0.5 * (0.2 + 1.0))])
    assert chosen[0].item() == 0.5 and rejected[1].item() == -0.5 and chosen[1].isnan() and rejected[0].isnan()


def test_odds_of_a_reply_that_is_almost_certain_are_finite() -> None:
    sure = Replies(torch.tensor([-1e-9], requires_grad=True), torch.tensor([3.0]))
    loss, _, _ = losses.orpo(sure, Replies(torch.tensor([-50.0]), torch.tensor([3.0])), beta=0.1)
    loss.sum().backward()
    assert loss.isfinite().all()


def test_at_step_0_nothing_is_preferred(tmp_path: Path) -> None:
    prepared = _read(tmp_path, PAIRS)
    model = prepared.build().eval()
    batch = _with_reference(prepared, model)
    assert _loss(prepared, model, batch) == pytest.approx(math.log(2), abs=1e-5)
    for score in prepared.scores(prepared.task.forward(model, batch), batch):
        assert score.reference["chosen_reward"] == pytest.approx(0.0, abs=1e-5)
        assert score.weight == 1


def test_only_replies_are_scored(tmp_path: Path) -> None:
    prepared = _read(tmp_path, PAIRS)
    batch = _whole(prepared)
    rows = split_values(batch.targets["labels"], batch.inputs)
    shown = [prepared.artifacts.processor.decode(row[row >= 0]) for row in rows]
    assert batch.targets["reply_tokens"].tolist() == [int((row >= 0).sum()) for row in rows]
    assert shown[:2] == ["An apple.<|im_end|>", "Good day to you, and well met!<|im_end|>"]
    assert shown[3:5] == ["A stone, perhaps, or a car.<|im_end|>", "No.<|im_end|>"]


def test_bad_rows_are_reported_with_their_place(tmp_path: Path) -> None:
    rows = [*PAIRS, {"prompt": "Hi", "chosen": "a"}, {"prompt": "Hi", "chosen": "a", "rejected": " "}]
    with pytest.raises(UserError) as caught:
        _read(tmp_path, rows)
    assert "train.jsonl:4: no rejected" in str(caught.value)
    assert "train.jsonl:5: rejected is empty" in str(caught.value)
    with pytest.raises(UserError, match=r"train\.jsonl:4: no value in column chosen or completion"):
        _read(tmp_path, [*PAIRS, {"prompt": "Hi", "rejected": "a"}])
    with pytest.raises(UserError) as caught:
        _read(tmp_path, [*SINGLE, {**SINGLE[0], "label": "maybe"}, {"prompt": "a", "completion": "b"}], loss="kto")
    assert "train.jsonl:4: label 'maybe' is neither true nor false" in str(caught.value)
    assert "train.jsonl:5: no label: is the reply desirable?" in str(caught.value)


def test_long_replies_are_cut_left_out_or_reported(tmp_path: Path) -> None:
    rows = [*PAIRS[:2], {"prompt": "Hi", "chosen": "good " * 90, "rejected": "bad"}]
    prepared = _read(tmp_path, rows, max_length=64)
    assert len(prepared.datasets["train"][2]["input_ids"]) == 64
    cut = "1 row: only the first 64 tokens of the conversation were read (options.max_length)"
    assert f"train: {cut} ({tmp_path / 'train.jsonl'}:3)" in prepared.facts.notes, "also where the other reply is short"
    dropped = _read(tmp_path, rows, max_length=64, on_long="drop")
    assert list(dropped.datasets["train"].ids) == [0, 1]
    assert "train: 1 longer than 64 tokens left out" in dropped.facts.notes
    with pytest.raises(UserError, match=r"train\.jsonl:3: \d+ tokens, more than"):
        _read(tmp_path, rows, max_length=64, on_long="error")
    with pytest.raises(UserError, match="the prompt has"):
        _read(tmp_path, rows, max_length=16)


@pytest.mark.parametrize("loss", ["dpo", "orpo"])
def test_two_replies_behind_one_prompt_are_scored_as_two_sequences(tmp_path: Path, loss: str) -> None:
    prepared = _read(tmp_path, PAIRS, loss=loss)
    assert prepared.artifacts.settings["shared_prompts"]
    model = prepared.build().double()
    batch = _with_reference(prepared, model) if loss == "dpo" else _whole(prepared)
    prepared.artifacts.settings["shared_prompts"] = False
    apart = _whole(prepared)
    assert batch.positions < 0.8 * apart.positions
    found = []
    for each in (batch, apart):
        model.zero_grad()
        outputs = prepared.task.forward(model, each)
        prepared.task.loss_sum(prepared.artifacts, outputs, each).backward()
        answers = [answer.shown for answer in prepared.task.decode(prepared.artifacts, outputs, each)]
        scores = [score.loss for score in prepared.task.score(prepared.artifacts, outputs, each)]
        found.append((scores, answers, torch.cat([weight.grad.flatten() for weight in model.parameters()])))
    assert found[0][0] == pytest.approx(found[1][0], rel=1e-6) and found[0][1] == found[1][1]
    torch.testing.assert_close(found[0][2], found[1][2], rtol=1e-5, atol=1e-6)
