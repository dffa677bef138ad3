"""Models that were not trained here: what their configuration tells, what is refused, and what they answer."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import (
    BertConfig,
    BertForMaskedLM,
    BertForSequenceClassification,
    BertForTokenClassification,
    BertModel,
    GPT2Config,
    GPT2LMHeadModel,
    PreTrainedTokenizerFast,
    ResNetConfig,
    ResNetForImageClassification,
    T5Config,
    T5ForConditionalGeneration,
    ViTImageProcessorPil,
    YolosConfig,
    YolosForObjectDetection,
    YolosImageProcessorPil,
)

from finetune.app.asked_model import AskedModel, load_found, open_model
from finetune.app.model_sources import MANIFEST, find_model
from finetune.errors import UserError
from finetune.inference.answering import Answered, Chunk
from finetune.inference.embedding import as_embedding
from finetune.models.tokenizer import load_tokenizer
from finetune.recipe.model import ModelSection

pytestmark = pytest.mark.usefixtures("own_cache")

torch.set_num_threads(1)
SHAPE = {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2, "num_attention_heads": 4}
TEXTS = ["a fine film", "cold and long", "the best of the year"]


@pytest.fixture(scope="module")
def tokenizer() -> Any:
    return load_tokenizer(ModelSection(source="bert", init="config", tokenizer="train:300"), lambda: iter(TEXTS))


def save(folder: Path, model: Any, processor: Any) -> Path:
    torch.manual_seed(1)
    for weight in model.parameters():
        torch.nn.init.normal_(weight, std=0.2)
    model.save_pretrained(folder)
    processor.save_pretrained(folder)
    return folder


def bert(kind: Any, folder: Path, tokenizer: Any, **settings: Any) -> Path:
    config = BertConfig(vocab_size=len(tokenizer), max_position_embeddings=64, **SHAPE, **settings)
    return save(folder, kind(config), tokenizer)


def answers(opened: AskedModel, rows: list[dict[str, Any]]) -> list[Any]:
    encoded = opened.task.encode(opened.artifacts, rows, with_targets=False)
    examples = [{"id": index, **row} for index, row in enumerate(encoded)]  # type: ignore[dict-item]
    ((_, outcomes),) = opened.batch_answerer().run([Chunk((0, 0), examples)])
    assert all(isinstance(one, Answered) for one in outcomes), outcomes
    return [one.answer for one in outcomes]  # type: ignore[union-attr]


def test_a_text_classifier(tmp_path: Path, tokenizer: Any) -> None:
    names = {0: "sour", 1: "sweet", 2: "salty"}
    folder = bert(BertForSequenceClassification, tmp_path / "model", tokenizer, id2label=names)
    notes: list[str] = []
    opened = open_model(folder, notify=notes.append)
    assert opened.artifacts.labels == ["sour", "sweet", "salty"] and opened.artifacts.settings["max_length"] == 64
    assert notes == [
        "task text_classification, by BertForSequenceClassification",
        "3 classes: sour, sweet, salty",
    ]
    scores = torch.tensor([one.values["scores"] for one in answers(opened, [{"text": text} for text in TEXTS])])
    model: Any = BertForSequenceClassification.from_pretrained(folder).eval()
    for text, row in zip(TEXTS, scores, strict=True):
        with torch.no_grad():
            expected = model(**tokenizer(text, return_tensors="pt")).logits.softmax(-1)[0]
        torch.testing.assert_close(row, expected)
    (long,) = opened.task.encode(opened.artifacts, [{"text": "film " * 99}], with_targets=False)
    assert long.kind == "too_long"  # type: ignore[union-attr]


@pytest.mark.parametrize(
    ("settings", "task", "note"),
    [
        ({}, "text_classification", "2 classes: LABEL_0, LABEL_1 (generated names"),
        ({"problem_type": "multi_label_classification"}, "text_classification", "any number of classes"),
        ({"num_labels": 1}, "sequence_regression", "--task may also be reward_model"),
        ({"problem_type": "regression", "id2label": {0: "stars"}}, "sequence_regression", ""),
    ],
)
def test_what_kind_of_classifier_it_is(
    tmp_path: Path, tokenizer: Any, settings: dict[str, Any], task: str, note: str
) -> None:
    folder = bert(BertForSequenceClassification, tmp_path / "model", tokenizer, **settings)
    notes: list[str] = []
    found = find_model(folder, notify=notes.append)
    assert found.recipe.name == tmp_path.name  # of x/model: x
    assert found.artifacts.task == task and note in "\n".join(notes)
    several = settings.get("problem_type") == "multi_label_classification"
    assert getattr(found.artifacts.options, "problem", "") in ("", "multi_label" if several else "single_label")
    if "num_labels" in settings and settings["num_labels"] == 1:
        assert find_model(folder, task="reward_model").artifacts.task == "reward_model"


def test_a_tagger_a_language_model_and_an_encoder_decoder(tmp_path: Path, tokenizer: Any) -> None:
    folder = bert(BertForTokenClassification, tmp_path / "tags", tokenizer, id2label={0: "O", 1: "B-x", 2: "I-x"})
    opened = open_model(folder)
    assert opened.artifacts.task == "token_classification" and opened.artifacts.labels == ["O", "B-x", "I-x"]
    (one,) = answers(opened, [{"tokens": ["a", "fine", "film"]}])
    assert len(one.values["tags"]) == 3

    config = GPT2Config(vocab_size=len(tokenizer), n_positions=48, n_embd=32, n_layer=2, n_head=4)
    plain = PreTrainedTokenizerFast(
        tokenizer_object=tokenizer.backend_tokenizer, pad_token="<|pad|>", eos_token="<|endoftext|>"
    )
    notes: list[str] = []
    folder = save(tmp_path / "gpt2", GPT2LMHeadModel(config), plain)
    opened = open_model(folder, notify=notes.append)
    assert opened.artifacts.task == "causal_lm" and opened.artifacts.settings["max_length"] == 48
    assert "no chat template" in notes[-1]
    (reply,) = answers(opened, [{"prompt": "a fine"}])
    model: Any = GPT2LMHeadModel.from_pretrained(folder).eval()
    inputs = plain("a fine", return_tensors="pt")
    made = model.generate(
        **{key: inputs[key] for key in ("input_ids", "attention_mask")},
        max_new_tokens=48 - inputs["input_ids"].shape[1],
        do_sample=False,
        eos_token_id=plain.eos_token_id,
        pad_token_id=plain.pad_token_id,
    )
    expected = plain.decode(made[0, inputs["input_ids"].shape[1] :], skip_special_tokens=True).strip()
    assert reply.values["text"] == expected

    shape = {"d_model": 32, "d_ff": 64, "d_kv": 8, "num_heads": 4, "num_layers": 2, "decoder_start_token_id": 0}
    prefixes = {"translation": {"prefix": "translate English to German: "}}
    notes.clear()
    folder = save(
        tmp_path / "t5",
        T5ForConditionalGeneration(T5Config(vocab_size=len(tokenizer), task_specific_params=prefixes, **shape)),
        tokenizer,
    )
    opened = open_model(folder, notify=notes.append)
    assert opened.artifacts.task == "seq2seq" and len(answers(opened, [{"source": "a fine film"}])) == 1
    assert any("'translate English to German: '" in note for note in notes)


def test_images(tmp_path: Path) -> None:
    from PIL import Image

    config = ResNetConfig(embedding_size=8, hidden_sizes=[8, 16], depths=[1, 1], layer_type="basic", num_labels=3)
    processor = ViTImageProcessorPil(size={"height": 20, "width": 24})
    folder = save(tmp_path / "resnet", ResNetForImageClassification(config), processor)
    opened = open_model(folder)
    picture = Image.effect_noise((40, 30), 80).convert("RGB")
    picture.save(tmp_path / "a.png")
    (one,) = answers(opened, [{"image": str(tmp_path / "a.png")}])
    with torch.no_grad():
        model: Any = ResNetForImageClassification.from_pretrained(folder).eval()
        expected = model(**processor(picture, return_tensors="pt")).logits.softmax(-1)[0]
    torch.testing.assert_close(torch.tensor(one.values["scores"]), expected)
    assert opened.artifacts.settings["image_size"] == [20, 24]

    yolos = YolosConfig(**SHAPE, image_size=[64, 64], num_detection_tokens=5, id2label={0: "N/A", 1: "cup", 2: "N/A"})
    keeps_ratio = YolosImageProcessorPil(size={"shortest_edge": 64, "longest_edge": 96})
    notes: list[str] = []
    folder = save(tmp_path / "yolos", YolosForObjectDetection(yolos), keeps_ratio)
    opened = open_model(folder, notify=notes.append)
    assert opened.artifacts.task == "object_detection" and opened.artifacts.labels == ["N/A", "cup", "N/A"]
    assert len(answers(opened, [{"image": str(tmp_path / "a.png")}])[0].values["detections"]["boxes"]) > 0
    assert any("2 classes of the model are called 'N/A'" in note for note in notes)
    assert any(
        "resized to 64 x 64 pixels; the model's own processor keeps their aspect ratio" in note for note in notes
    )


def test_a_folder_beside_a_run_is_refused_with_the_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    run = tmp_path / "runs" / "mine" / "1"
    checkpoint = run / "checkpoints" / "step-00000002"
    checkpoint.mkdir(parents=True)
    (run / "run.json").write_text("{}")
    (checkpoint / MANIFEST).write_text("{}")
    monkeypatch.chdir(tmp_path)
    for source, remedy in (
        ("runs/mine", "Did you mean runs/mine/1?"),
        ("runs", "Did you mean runs/mine/1?"),
        ("runs/mime", "Did you mean runs/mine?"),
        ("runs/mine/1/checkpoints/step-00000002", "--checkpoint step-00000002"),
        ("./nowhere", "Give the folder of a run"),
        ("runs/mine/2/model", "Give the folder of a run"),
    ):
        with pytest.raises(UserError) as caught:
            find_model(source)
        assert remedy in caught.value.remedy, source


def test_a_model_whose_task_is_not_known_is_refused(tmp_path: Path, tokenizer: Any) -> None:
    body = bert(BertForMaskedLM, tmp_path / "body", tokenizer)
    with pytest.raises(UserError, match="BertForMaskedLM answers none of our tasks"):
        open_model(body)
    head = bert(BertForSequenceClassification, tmp_path / "head", tokenizer)
    with pytest.raises(UserError, match="made for text_classification"):
        open_model(head, task="seq2seq")
    with pytest.raises(UserError, match="there is no task 'text-clasification'") as caught:
        open_model(head, task="text-clasification")
    assert "text_classification" in caught.value.remedy
    config = json.loads((body / "config.json").read_text())
    (body / "config.json").write_text(json.dumps({**config, "architectures": ["BertForSequenceClassification"]}))
    with pytest.raises(UserError, match="its answers would be random"):
        open_model(body)
    for change, said in (
        ({"model_type": "unheard-of"}, "unheard-of"),
        ({"model_type": "own", "auto_map": {"AutoConfig": "code.Config"}}, "brings Python code of its own"),
    ):
        (body / "code.py").write_text("raise SystemExit('it ran')\n")
        (body / "config.json").write_text(json.dumps({**config, **change}))
        with pytest.raises(UserError, match=said):
            open_model(body)
    with pytest.raises(UserError, match="has no config"):
        open_model(tmp_path)


def test_the_digest_names_the_files(tmp_path: Path, tokenizer: Any) -> None:
    folder = bert(BertForSequenceClassification, tmp_path / "a", tokenizer)
    digest = find_model(folder).digest
    assert find_model(folder).digest == digest
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps({**config, "id2label": {"0": "no", "1": "yes"}}))
    assert find_model(folder).digest != digest


def test_an_encoder_without_a_head_gives_embeddings_and_nothing_else(tmp_path: Path, tokenizer: Any) -> None:
    folder = bert(BertModel, tmp_path / "bert", tokenizer)
    with pytest.raises(UserError, match="answers none of our tasks"):
        find_model(folder)
    opened = load_found(find_model(folder, body=True))
    task = as_embedding(opened.task, normalize=False)
    encoded = task.encode(opened.artifacts, [{"text": text} for text in TEXTS], with_targets=False)
    batch = task.collate(opened.artifacts, [{**one, "id": id} for id, one in enumerate(encoded)])
    model: Any = BertModel.from_pretrained(folder).eval()
    with torch.inference_mode():
        found = task.decode(opened.artifacts, task.forward(opened.module, batch), batch)
        for text, answer in zip(TEXTS, found, strict=True):
            expected = model(**tokenizer(text, return_tensors="pt")).last_hidden_state.mean(dim=1)[0]
            torch.testing.assert_close(torch.tensor(answer.values["embedding"]), expected, rtol=1e-4, atol=1e-5)
