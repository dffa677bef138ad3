"""Proves that examples come back from the disk as they went there, and that answers to others are not taken for theirs."""

from __future__ import annotations

import numpy as np
from PIL import Image

from finetune.inference.prediction.spool import Spool, write_spool


def plain(example):
    return {key: value.tolist() if hasattr(value, "tolist") else value for key, value in example.items()}


def test_examples_come_back(tmp_path):
    texts = [{"id": number, "input_ids": list(range(number))} for number in range(5)]
    pieces = [
        {"id": 7, "input_ids": [1], "piece": {"index": 0, "count": 2, "box": [0, 0.5]}, "words": ["\u00e4", "\ud800"]}
    ]
    rows = [{"id": 9, "row": {"image": {"bytes": b"\x00\xff", "path": "a.png"}, "sizes": [1.5, None]}}]
    written = write_spool(tmp_path / "w", [texts, pieces, rows])
    spool = Spool(tmp_path / "w")
    assert [[plain(example) for example in spool.read(index)] for index in range(3)] == [texts, pieces, rows]
    assert spool.chunks == written and [chunk.examples for chunk in written] == [5, 1, 1]


def test_images_and_arrays_become_what_a_task_can_read(tmp_path):
    image = Image.new("RGB", (3, 2), "red")
    pixels = np.arange(6, dtype=np.float32).reshape(2, 3)
    write_spool(tmp_path, [[{"id": 0, "row": {"image": image, "mask": pixels}, "pixels": pixels}]])
    (example,) = Spool(tmp_path).read(0)
    assert example["row"]["image"].startswith(b"\x89PNG") and example["row"]["mask"] == pixels.tolist()
    assert example["pixels"].dtype == np.float32 and (example["pixels"] == pixels).all()


def test_bytes_of_a_row_are_stored_once_however_many_examples_it_has(tmp_path):
    contents = [bytes([number]) * 50_000 for number in range(2)]
    picture = Image.fromarray(np.random.default_rng(0).integers(0, 256, (90, 90, 3), np.uint8))
    values = [contents[0], {"bytes": contents[1], "path": None}, picture]
    examples = [
        {"id": row, "row": {"image": value}, "piece": {"index": index}}
        for row, value in enumerate(values)
        for index in range(40)
    ]
    write_spool(tmp_path, [examples[:50], examples[50:]])
    spool = Spool(tmp_path)
    read = [*spool.read(1), *spool.read(0)]
    assert {example["row"]["image"] for example in read if example["id"] == 0} == {contents[0]}
    assert all(example["row"]["image"] == values[1] for example in read if example["id"] == 1)
    assert len({example["row"]["image"] for example in read if example["id"] == 2}) == 1
    assert sum(path.stat().st_size for path in tmp_path.iterdir()) < 200_000
    (first, _), (second, _) = (
        write_spool(tmp_path, [[{"id": 1, "row": {"image": content}}], []]) for content in contents
    )
    assert first.digest != second.digest


def test_a_digest_is_of_the_examples(tmp_path):
    (one, other), (same, _) = (
        write_spool(tmp_path, [[{"id": 1, "input_ids": [5]}], [{"id": 1, "input_ids": [last]}]]) for last in (6, 5)
    )
    assert one.digest == same.digest != other.digest


def test_an_empty_window(tmp_path):
    assert write_spool(tmp_path, []) == [] and Spool(tmp_path).chunks == []
