"""Attacks entries of the cache: bits flipped in every file (times put back), files cut, emptied and removed.

Whatever is damaged must be reported in one line and made again: the rows are those of the undamaged entry.
"""

import json
import os
import random
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from finetune.app import starting
from finetune.data.prepare import checksums
from finetune.data.prepare.cache import publish
from finetune.data.prepare.encode import encode
from finetune.data.prepare.progress import SilentProgress, Stage, entered
from finetune.data.sources.tables import open_tables
from finetune.inference import reference_logprobs
from finetune.tasks.prepared_task import PreparedTask

DRAW = random.Random(5)


def flip(path):
    """One bit, and the modification time put back, as a disk that rots or a program that hides its traces would."""
    stat, content = path.stat(), bytearray(path.read_bytes())
    content[DRAW.randrange(len(content))] ^= 1 << DRAW.randrange(8)
    path.write_bytes(content)
    os.utime(path, ns=(stat.st_atime_ns, stat.st_mtime_ns))


def cut(path):
    os.truncate(path, path.stat().st_size - 1)


def empty(path):
    os.truncate(path, 0)


def remove(path):
    path.unlink()


def overwrite(path):
    path.write_bytes(b"\xff\x00" * (path.stat().st_size // 2) + b"\x01" * (path.stat().st_size % 2))


ATTACKS = (flip, flip, flip, cut, empty, remove, overwrite)


def encode_rows(rows):
    return [{"input_ids": [ord(letter) for letter in row["text"]]} for row in rows]


def open_everything(path, make_recipe, card):
    """Rows, the held-out split and the examples: what a training reads of the cache; and the lines that it printed."""
    lines = []
    with entered(Stage(1, SilentProgress(), lines.append)):
        tables = open_tables(make_recipe(train=str(path), validation_fraction=0.3), card)
        examples = encode(tables["train"], encode_rows, key="k", on_bad_row="error", cost=lambda one: 1)
        return [list(tables[name]) for name in tables], list(map(str, examples)), lines


@pytest.mark.parametrize("extension", ["jsonl", "csv", "parquet"])
def test_whatever_is_damaged_is_reported_and_made_again(extension, cache, make_recipe, text_card, tmp_path):
    path, rows = tmp_path / f"train.{extension}", [{"text": f"row {i}", "label": i % 3} for i in range(40)]
    if extension == "parquet":
        pq.write_table(pa.Table.from_pylist(rows), path)
    elif extension == "csv":
        path.write_text("text,label\n" + "".join(f"{row['text']},{row['label']}\n" for row in rows))
    else:
        path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    *whole, lines = open_everything(path, make_recipe, text_card)
    assert not lines
    kinds, attacked = set(), 0
    for kind in ("rows", "tables", "splits", "examples", "labels"):
        for entry in sorted((cache / kind).iterdir()) if (cache / kind).is_dir() else ():
            for name in sorted(path.name for path in entry.iterdir()):
                if name in (".in-use", "about.json", checksums.CHECKED):
                    continue
                for attack in ATTACKS:
                    if not (entry / name).stat().st_size and attack is not remove:
                        continue
                    attack(entry / name)
                    *found, lines = open_everything(path, make_recipe, text_card)
                    assert found == whole, (kind, name, attack)
                    silent = attack is remove and name == checksums.FILE  # as of an earlier version
                    assert len(lines) == (0 if silent else 1), (kind, name, attack, lines)
                    assert silent or ("is damaged" in lines[0] and kind in lines[0] and "made again" in lines[0])
                    kinds.add(kind)
                    attacked += 1
    assert {"splits", "examples"} < kinds and attacked >= 60, (kinds, attacked)


def in_vain(attack, name):
    """Whether an attack leaves no trace but that the entry is gone, as one of an earlier version."""
    return attack is remove and name == checksums.FILE


@pytest.mark.parametrize("name", ["values.npy", checksums.FILE])
def test_damaged_reference_log_probabilities_are_computed_again(name, cache, monkeypatch):
    values, computed, lines = np.arange(8.0).reshape(4, 2), [], []
    session = SimpleNamespace(is_main=True, broadcast=lambda value: value)
    plan = SimpleNamespace(batch=SimpleNamespace(micro_batch=1), recipe=SimpleNamespace(name="r"))
    monkeypatch.setattr(reference_logprobs, "reference_columns", lambda *of: ("chosen", "rejected"))
    monkeypatch.setattr(reference_logprobs, "BatchRunner", lambda *of: None)
    monkeypatch.setattr(reference_logprobs, "_key", lambda *of: "key")
    monkeypatch.setattr(reference_logprobs, "_compute", lambda *of: computed.append(1) or values)

    def add():
        lines.clear()
        datasets = {"train": [{"id": index} for index in range(4)]}
        engine = SimpleNamespace(session=session)
        prepared = PreparedTask(None, plan, None, datasets)
        reference_logprobs.add_reference_logprobs(prepared, engine, notify=lines.append)
        return [(one["chosen"], one["rejected"]) for one in datasets["train"]]

    whole = add()
    assert add() == whole == [tuple(row) for row in values] and computed == [1] and not lines
    for attack in ATTACKS:
        attack(cache / reference_logprobs.KIND / "key" / name)
        assert add() == whole
        assert any("reference/key" in line and "is damaged" in line for line in lines) != in_vain(attack, name), lines
    assert len(computed) == 1 + len(ATTACKS)


@pytest.mark.parametrize("name", ["model.safetensors", checksums.FILE])
def test_a_damaged_merged_adapter_is_merged_again(name, cache, monkeypatch, make_recipe, capsys):
    merged = []

    def write_merged(card, model, source, folder):
        merged.append(1)
        (folder / "model.safetensors").write_bytes(bytes(range(200)))

    source = SimpleNamespace(base="base", folder="an-adapter")
    monkeypatch.setattr(starting, "adapter_of", lambda model: source)
    monkeypatch.setattr(starting, "source_files", lambda model: "files")
    monkeypatch.setattr("finetune.models.continuing.write_merged", write_merged)
    recipe = make_recipe(train="a.jsonl").model_copy(update={"task": "causal_lm"})
    folder = Path(starting.start_model(recipe)[0].model.source)
    starting.start_model(recipe)
    assert merged == [1] and folder.parent.name == starting.KIND and "damaged" not in capsys.readouterr().out
    for attack in ATTACKS:
        attack(folder / name)
        assert Path(starting.start_model(recipe)[0].model.source) == folder
        assert (folder / "model.safetensors").read_bytes() == bytes(range(200))
        assert ("(an-adapter) in the cache is damaged" in capsys.readouterr().out) != in_vain(attack, name)
    assert len(merged) == 1 + len(ATTACKS)


def test_a_large_file_is_compared_in_sections(cache, monkeypatch):
    monkeypatch.setattr(checksums, "SECTION_BYTES", 1_000)
    monkeypatch.setattr(checksums, "READ_BYTES", 300)
    content = bytes(DRAW.randrange(256) for _ in range(10_500))
    entry = publish("kind", "key", lambda folder: (folder / "x").write_bytes(content))
    assert len(json.loads((entry / checksums.FILE).read_text())["x"][1]) == 11
    (entry / checksums.CHECKED).unlink()
    assert checksums.find_damage(entry) == ""
    for position in (0, 999, 1_000, 5_432, 10_499):
        damaged = bytearray(content)
        damaged[position] ^= 4
        (entry / "x").write_bytes(damaged)
        assert checksums.find_damage(entry) == "x: other content than when it was written"
    (entry / "x").write_bytes(content)
    assert checksums.find_damage(entry) == ""


def test_an_entry_is_read_again_after_an_hour_and_after_a_start_of_the_system(cache, monkeypatch):
    entry = publish("kind", "key", lambda folder: (folder / "x").write_text("x" * 100))
    read = []
    monkeypatch.setattr(checksums, "_crc", lambda section: read.append(section[0].name) or 0)
    assert checksums.find_damage(entry) == "" and read == []
    later = checksums.time.time() + checksums.AGAIN_SECONDS + 1
    with monkeypatch.context() as patch:
        patch.setattr(checksums.time, "time", lambda: later)
        assert "other content" in checksums.find_damage(entry) and "x" in read
    read.clear()
    monkeypatch.setattr(checksums, "_boot", lambda: "another start")
    assert "other content" in checksums.find_damage(entry) and "x" in read
