"""Tiles hold the pixels that they should, are decoded once, and their answers become those of the image."""

from __future__ import annotations

import io
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from finetune.data.bad_rows import BadRow
from finetune.data.images import decode_image
from finetune.data.prepare.notices import KEY, Notices
from finetune.data.sources.streams import MemoryStream
from finetune.inference.answering import PIECE, Answered, Part, RowError
from finetune.inference.pieces import images
from finetune.inference.pieces.counts import CutRows
from finetune.inference.pieces.options import PieceOptions
from finetune.inference.pieces.splitter import make_splitter
from finetune.inference.prediction.feeder import Asked, encode_window, read_windows
from finetune.inference.whole_rows import WholeRows
from finetune.tasks.batch import RecordOptions
from tests.unit.inference.pieces.conftest import answer_with, equal_examples, split_and_load

OPTIONS = PieceOptions(tile=64, overlap=0.25)
UNKNOWN = {"objects": {"bbox": [[1, 2, 30, 40]], "category": ["2024"]}}


def picture(width: int, height: int, seed: int = 0) -> Image.Image:
    return Image.fromarray(np.random.default_rng(seed).integers(0, 256, (height, width, 3), np.uint8))


def stored(image: Image.Image, kind: str = "PNG", **how: Any) -> bytes:
    file = io.BytesIO()
    image.save(file, kind, **how)
    return file.getvalue()


def turned(image: Image.Image) -> bytes:
    """A JPEG whose EXIF data turns it upright."""
    exif = Image.Exif()
    exif[0x0112] = 6
    return stored(image, "JPEG", exif=exif, quality=95)


@pytest.fixture(params=["object_detection", "image_classification"])
def prepared(request: pytest.FixtureRequest, prepared_task: Any) -> Any:
    return prepared_task(request.param)


@pytest.mark.parametrize("splitter_options", [None, OPTIONS], ids=["whole", "tiles"])
def test_a_class_that_the_model_does_not_know_costs_no_answer(prepared: Any, splitter_options: Any) -> None:
    """Photos in folders by year have labels that no model has; the row is then asked without its target, and reported."""
    target = {"label": "2024"} if prepared.task.card.name == "image_classification" else UNKNOWN
    splitter = make_splitter(prepared.task, prepared.artifacts, splitter_options)
    stream = MemoryStream([{"image": stored(picture(150, 90)), **target}], prepared.task.card)
    asked, notices = Asked(stream, prepared.task.card, splitter, len, 10), Notices()
    ((rows, _),) = read_windows(asked)
    (examples,) = encode_window(asked, rows, notices)
    assert isinstance(examples, list) and len(examples) == (7 if splitter_options else 1)
    assert not any(isinstance(item, BadRow) for item in splitter.load(examples))
    told = "\n".join(notices.lines())
    assert "answered without its target, which cannot be used: " in told and "label '2024'" in told


MODES = {
    "rgb": lambda: stored(picture(150, 90)),
    "turned by EXIF": lambda: turned(picture(90, 150)),
    "gray": lambda: stored(picture(150, 90).convert("L")),
    "transparent": lambda: stored(Image.merge("RGBA", (*picture(150, 90).split(), picture(150, 90, 1).convert("L")))),
    "palette": lambda: stored(picture(150, 90).convert("P")),
    "one transparent color": lambda: stored(picture(150, 90), transparency=(1, 2, 3)),
    "16 bits": lambda: stored(
        Image.fromarray(np.random.default_rng(0).integers(0, 65536, (90, 150)).astype(np.uint16))
    ),
    "array": lambda: np.asarray(picture(150, 90)),
    "image": lambda: picture(150, 90),
}


@pytest.mark.parametrize("mode", MODES)
def test_tiles_are_crops_of_the_upright_image(prepared: Any, mode: str) -> None:
    value = MODES[mode]()
    (examples,) = split_and_load(make_splitter(prepared.task, prepared.artifacts, OPTIONS), [{"image": value}])
    whole = decode_image(value)
    assert whole.size == (150, 90) and len(examples) == 7
    windows = [example[PIECE]["window"] for example in examples]
    assert windows[0] == [0, 0, 150, 90] and windows[-1] == [86, 26, 150, 90]
    for example, window in zip(examples, windows, strict=True):
        part = Image.fromarray(np.asarray(whole)[window[1] : window[3], window[0] : window[2]])
        (expected,) = prepared.task.encode(prepared.artifacts, [{"image": part}], with_targets=False)
        assert np.array_equal(example["pixel_values"], expected["pixel_values"])
    (row,) = prepared.task.encode(prepared.artifacts, [{"image": value}], with_targets=False)
    assert np.array_equal(examples[0]["pixel_values"], row["pixel_values"]), "the whole image is as without tiles"


def test_images_no_larger_than_a_tile_stay_as_they_are(prepared: Any) -> None:
    rows = [{"image": stored(picture(64, 64))}, {"image": stored(picture(30, 64))}]
    ours = split_and_load(make_splitter(prepared.task, prepared.artifacts, OPTIONS), rows)
    usual = split_and_load(WholeRows(prepared.task, prepared.artifacts), rows)
    assert all(equal_examples(one, other) for (one,), (other,) in zip(ours, usual, strict=True))
    assert not any(PIECE in one for (one,) in ours)


def test_without_options_rows_are_whole(prepared: Any) -> None:
    assert isinstance(make_splitter(prepared.task, prepared.artifacts), WholeRows)
    assert isinstance(make_splitter(prepared.task, prepared.artifacts, PieceOptions()), WholeRows)


def test_an_image_is_decoded_once_for_all_its_tiles(
    prepared: Any, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    calls = []
    read = images.read_image
    monkeypatch.setattr(images, "read_image", lambda value, *rest: calls.append(value) or read(value, *rest))
    splitter = make_splitter(prepared.task, prepared.artifacts, OPTIONS)
    values: list[Any] = [stored(picture(150, 90)), str(tmp_path / "a.png"), {"bytes": stored(picture(150, 90, 2))}]
    picture(150, 90, 1).save(tmp_path / "a.png")
    for number, value in enumerate(values):
        (examples,) = splitter.split([{"image": value}], with_targets=False)
        assert len(examples) == 7 and len(calls) == number
        for example in examples:  # one chunk each, and as they come out of a file: equal, not the same
            copy = {**example, "row": {"image": bytes(bytearray(value)) if isinstance(value, bytes) else value}}
            splitter.load([{**copy, "id": number}])
    assert len(calls) == 3


def test_another_image_under_the_same_number_is_another(prepared: Any) -> None:
    splitter = make_splitter(prepared.task, prepared.artifacts, OPTIONS)
    pixels = [
        split_and_load(splitter, [{"image": stored(picture(150, 90, seed))}])[0][3]["pixel_values"] for seed in (1, 2)
    ]
    assert not np.array_equal(*pixels)


def test_a_broken_file_is_named_with_its_tile(prepared: Any) -> None:
    content = stored(picture(150, 90))
    splitter = make_splitter(prepared.task, prepared.artifacts, OPTIONS)
    (examples,) = split_and_load(splitter, [{"image": content[: len(content) // 2]}])
    assert all(isinstance(one, BadRow) for one in examples) and "broken image" in str(examples[0])
    (unreadable,) = splitter.split([{"image": b"nothing"}], with_targets=False)
    assert isinstance(unreadable, BadRow)


def test_a_failed_tile_is_named(prepared: Any) -> None:
    splitter = make_splitter(prepared.task, prepared.artifacts, OPTIONS)
    (examples,) = splitter.split([{"image": stored(picture(150, 90))}], with_targets=False)
    parts = [Part(example[PIECE], RowError("failed", "no answer")) for example in examples]
    assert splitter.merge(0, parts[::-1]) == RowError("failed", "the whole image: no answer (7 of 7 pieces failed)")
    (only,) = splitter.split([{"image": stored(picture(64, 128))}], with_targets=False)[:1]
    tile = Part(only[2][PIECE], RowError("out_of_memory", "too much"))
    rest = [Part(one[PIECE], Answered(SimpleNamespace(id=0))) for one in (only[0], only[1], only[3])]
    named = splitter.merge(0, [*rest, tile])
    assert named == RowError("out_of_memory", "tile 3 of 4 (left 0, top 48, 64 x 64 pixels): too much")


def test_scores_of_tiles_are_averaged_by_what_they_show(prepared_task: Any) -> None:
    prepared = prepared_task("image_classification")
    rng, names = np.random.default_rng(0), prepared.artifacts.labels
    row = {"image": stored(picture(150, 90)), "label": names[1]}
    for how in ("mean", "max"):
        splitter = make_splitter(prepared.task, prepared.artifacts, PieceOptions(64, 0.25, False, merge=how))
        (examples,) = split_and_load(splitter, [row], with_targets=True)
        logits = {one[PIECE]["index"]: torch.tensor(rng.normal(size=(1, len(names)))) for one in examples}
        parts = []
        for one in examples:
            outputs = SimpleNamespace(logits=logits[one[PIECE]["index"]])
            parts += answer_with(prepared, [one], outputs)
        merged = splitter.merge(0, parts)
        assert splitter.merge(0, [parts[i] for i in rng.permutation(6)]) == merged
        scores = np.stack([logits[i].softmax(-1)[0].float().numpy() for i in range(6)])
        cover = np.zeros((90, 150))
        for left, top, right, bottom in (one[PIECE]["window"] for one in examples):
            cover[top:bottom, left:right] += 1
        shares = [(1 / cover[t:b, left:r]).sum() for left, t, r, b in (one[PIECE]["window"] for one in examples)]
        highest = scores.max(axis=0)
        expected = np.average(scores, axis=0, weights=shares) if how == "mean" else highest / highest.sum()
        assert isinstance(merged, Answered) and merged.score is not None
        assert merged.answer.values["scores"] == pytest.approx(expected.tolist(), rel=1e-5)
        assert merged.answer.values["prediction"] == expected.argmax()
        assert merged.answer.shown["predicted"] == names[expected.argmax()]
        assert merged.score.reference == {"reference": 1} and merged.score.weight == 6


def test_detection_targets_are_cut_and_the_reference_is_the_image(prepared_task: Any) -> None:
    prepared = prepared_task("object_detection")
    names = prepared.artifacts.labels
    row = {
        "image": turned(picture(90, 150)),  # stored 90 x 150, upright 150 x 90
        "width": 150,
        "height": 90,
        "objects": {"bbox": [[100, 10, 40, 60], [4, 4, 20, 20]], "category": [names[1], names[0]]},
    }
    splitter = make_splitter(prepared.task, prepared.artifacts, OPTIONS)
    (examples,) = split_and_load(splitter, [row], with_targets=True)
    (usual,) = prepared.task.encode(prepared.artifacts, [row], with_targets=True)
    whole = {key: value for key, value in examples[0].items() if key not in ("id", PIECE)}
    assert equal_examples(whole, usual), "the whole image is as without tiles"
    for example in examples[1:]:
        left, top, right, bottom = example[PIECE]["window"]
        expected = []
        for (x, y, w, h), label in zip(row["objects"]["bbox"], (1, 0), strict=True):
            a, b, c, d = max(x, left), max(y, top), min(x + w, right), min(y + h, bottom)
            if c - a >= 1 and d - b >= 1 and (c - a) * (d - b) >= 0.25 * w * h:
                expected.append(
                    [label, ((a + c) / 2 - left) / 64, ((b + d) / 2 - top) / 64, (c - a) / 64, (d - b) / 64]
                )
        given = np.column_stack([example["class_labels"], example["boxes"]]).tolist()
        assert given == [pytest.approx(one, rel=1e-5) for one in expected]
        assert example["objects"] == usual["objects"] and example["size"] == [64, 64]
    assert any(len(example["class_labels"]) == 1 for example in examples[1:])


def test_boxes_of_tiles_come_back_into_the_image(prepared_task: Any) -> None:
    """A detector that answers every tile with what is planted there: once each, in the image's own pixels."""
    prepared = prepared_task("object_detection")
    planted = [[20, 10, 30, 30], [40, 30, 60, 40]]  # in one tile; over a border of tiles
    splitter = make_splitter(prepared.task, prepared.artifacts, OPTIONS)
    row = {"image": stored(picture(150, 90)), "objects": {"bbox": planted, "category": prepared.artifacts.labels[:2]}}
    (examples,) = split_and_load(splitter, [row])
    parts = []
    for example in examples:
        left, top, right, bottom = example[PIECE]["window"]
        boxes, labels = [], []
        for label, (x, y, w, h) in enumerate(planted):
            a, b, c, d = max(x, left), max(y, top), min(x + w, right), min(y + h, bottom)
            if c - a > 6 and d - b > 6:
                boxes.append([a - left, b - top, c - a, d - b])
                labels.append(label)
        found = {"boxes": boxes, "labels": labels, "scores": [0.9] * len(boxes)}
        (one,) = answer_with(prepared, [example], _no_boxes(prepared))
        assert isinstance(one.outcome, Answered)
        values = {"detections": found}
        answer = type(one.outcome.answer)(0, values, one.outcome.answer.shown)
        parts.append(Part(one.piece, Answered(answer)))
    merged = splitter.merge(0, parts[::-1])
    assert isinstance(merged, Answered) and splitter.merge(0, parts) == merged
    detections = merged.answer.values["detections"]
    assert sorted(zip(detections["labels"], detections["boxes"], strict=True)) == list(enumerate(planted))
    assert merged.answer.shown["predicted"].startswith("1 ")
    record = prepared.task.record(prepared.artifacts, merged.answer, RecordOptions())
    assert [one["box"] for one in record["boxes"]] == detections["boxes"]


def _no_boxes(prepared: Any) -> Any:
    """What a detector says that finds nothing."""
    logits = torch.full((1, 4, len(prepared.artifacts.labels)), -9.0)
    return SimpleNamespace(logits=logits, boxes=torch.full((1, 4, 4), 0.5), family=SimpleNamespace(softmax=False))


def test_what_was_cut_is_counted(prepared: Any) -> None:
    splitter, cut, notices = make_splitter(prepared.task, prepared.artifacts, OPTIONS), CutRows(), Notices()
    for size in ((64, 64), (150, 90), (65, 64)):
        (examples,) = splitter.split([{"image": stored(picture(*size))}], with_targets=False)
        cut.add(examples)
        notices.add(f"row {size}", [notice for example in examples for notice in example.get(KEY, ())])
    assert notices.lines() == [f"2 rows: {images.CUT} (row (150, 90), row (65, 64))"]
    assert cut.report() == ["2 rows were cut into 10 pieces (5.0 per row, at most 7)"]
    assert CutRows().report() == []
