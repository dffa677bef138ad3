"""Tests that rows are encoded once and restored exactly, and that bad rows are reported again from the cache."""

import multiprocessing
import pickle
import time
from concurrent.futures import ProcessPoolExecutor

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from finetune.data.bad_rows import BadRow
from finetune.data.prepare import chunk_writer, pool
from finetune.data.prepare import encode as encode_module
from finetune.data.prepare.encode import LazyExamples, encode
from finetune.data.prepare.progress import Stage, entered
from finetune.data.prepare.record_codec import Packer, unpack
from finetune.errors import UserError
from tests.tables import MemoryTable

ROWS = [{"text": "ab" * index, "label": index % 3} for index in range(20)]


def letters(row):
    if len(row["text"]) == 8:
        raise BadRow("eight letters")
    return {"input_ids": [ord(c) for c in row["text"]], "label": row["label"], "note": {"text": row["text"]}}


def length(example):
    return len(example["input_ids"])


class each:  # noqa: N801 - used as a decorator is
    """A function of one row as one of many, as tasks have it; picklable if the function is."""

    def __init__(self, function):
        self.function = function

    def __call__(self, rows):
        encoded = []
        for row in rows:
            try:
                encoded.append(self.function(row))
            except BadRow as bad:
                encoded.append(bad)
        return encoded


def run(on_bad_row="skip", rows=ROWS, function=letters, key="letters", notify=None):
    table = MemoryTable("train", rows)
    return encode(table, each(function), key=key, on_bad_row=on_bad_row, cost=length, notify=notify)


def never(row):
    raise AssertionError("the cache was not used")


def test_examples_come_back_with_ids_and_costs():
    examples = run()
    kept = [index for index in range(20) if index != 4]
    assert len(examples) == 19
    assert examples.ids.dtype == examples.costs.dtype == np.int64
    assert examples.ids.tolist() == kept and examples.costs.tolist() == [2 * index for index in kept]
    example = examples[4]
    assert example["id"] == 5 and example["label"] == 2 and example["note"] == {"text": "ab" * 5}
    assert example["input_ids"].dtype == np.int64 and example["input_ids"].tolist() == [97, 98] * 5
    example["input_ids"][0] = -100  # an item is a copy that belongs to the caller
    assert examples[4]["input_ids"][0] == 97
    assert examples[-1]["id"] == 19
    with pytest.raises(IndexError):
        examples[19]


def test_rows_come_in_batches_and_keep_their_ids(monkeypatch):
    monkeypatch.setattr(encode_module, "ROWS", 8)
    sizes = []

    def function(rows):
        sizes.append(len(rows))
        return each(letters)(rows)

    examples = encode(MemoryTable("train", ROWS), function, key="batches", on_bad_row="skip", cost=length)
    assert sizes == [8, 8, 4]
    assert [example["id"] for example in examples] == [index for index in range(20) if index != 4]
    assert all(example["note"]["text"] == ROWS[example["id"]]["text"] for example in examples)


def test_the_second_run_reads_the_cache_and_reports_again():
    first, lines = run(), []
    again = run(function=never, notify=lines.append)
    assert [example["id"] for example in again] == first.ids.tolist()
    assert again.skipped == [("train row 4", "eight letters")] and again.skipped_count == 1
    assert "1 of 20 rows skipped" in lines[0] and "train row 4: eight letters" in lines[0]
    with pytest.raises(UserError, match="train row 4: eight letters"):
        run("error", function=never)


def test_another_key_or_row_is_encoded_again():
    run()
    with pytest.raises(AssertionError):
        run(function=never, key="other")
    with pytest.raises(AssertionError):
        run(function=never, rows=[*ROWS[:-1], {"text": "new", "label": 0}])


def test_a_function_that_fails_leaves_nothing_behind(cache):
    with pytest.raises(AssertionError):
        run(function=never)
    assert list((cache / "examples").iterdir()) == []
    assert len(run()) == 19


def test_examples_pickle_small_and_map_the_same_file():
    examples = run(rows=ROWS * 100)
    data = pickle.dumps(examples)
    assert len(data) < 1000
    assert pickle.loads(data)[100]["id"] == examples[100]["id"]


def test_no_rows_are_no_examples():
    examples = run(rows=[{"text": "a" * 8, "label": 0}])
    assert len(examples) == 0 and examples.ids.tolist() == [] and examples.costs.tolist() == []


def encode_slowly(_):
    def slowly(row):
        time.sleep(0.01)
        return letters(row)

    return [example["id"] for example in run(function=slowly)]


def test_processes_that_encode_at_the_same_time_agree(cache):
    with ProcessPoolExecutor(3, mp_context=multiprocessing.get_context("fork")) as pool:
        found = list(pool.map(encode_slowly, range(3)))
    assert found[0] == found[1] == found[2] and len(found[0]) == 19
    assert len(list((cache / "examples").iterdir())) == 1  # and no incomplete folder


class Shown:
    """Progress that is kept."""

    def __init__(self):
        self.lines, self.closed = [], 0

    def show(self, text, share):
        self.lines.append((text, share))

    def close(self):
        self.closed += 1


def test_progress_is_reported():
    shown = Shown()
    with entered(Stage(progress=shown)):
        run(rows=ROWS * 50)
    assert "encoding train: 256 of 1,000 rows, " in shown.lines[0][0] and "rows/s" in shown.lines[0][0]
    assert shown.lines[0][1] == 0.256 and shown.lines[-1][1] == 1.0 and shown.closed == 1


MANY = [{"text": "ab" * (index % 50), "label": index % 3} for index in range(5_000)]


def in_layouts(row):
    """Bad rows, and three layouts that alternate."""
    if row["label"] == 1 and len(row["text"]) % 7 == 0:
        raise BadRow(f"{len(row['text'])} letters")
    example = letters(row) if len(row["text"]) != 8 else {"input_ids": [1], "notices": ["eight letters"]}
    return {**example, "long": [2**40]} if len(row["text"]) > 60 else example


def files_of(folder):
    return {
        path.name: path.read_bytes()
        for path in folder.iterdir()
        if path.name not in ("about.json", ".in-use", ".checked")
    }


@pytest.mark.parametrize(("workers", "fork"), [(2, True), (3, True), (2, False)])
def test_any_number_of_workers_gives_the_same_bytes(workers, fork, monkeypatch, tmp_path):
    monkeypatch.setattr(pool, "_may_fork", lambda: fork)
    monkeypatch.setattr(encode_module, "ROWS", 64)
    alone = run(rows=MANY, function=in_layouts)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    with entered(Stage(workers=workers)):
        together = run(rows=MANY, function=in_layouts)
    assert together.folder != alone.folder and together.skipped_count == alone.skipped_count > 100
    assert files_of(together.folder) == files_of(alone.folder)


@pytest.mark.parametrize("after", [0, 1, 7, 30])
def test_an_interrupted_encoding_continues_with_the_same_result(after, monkeypatch, tmp_path, cache):
    monkeypatch.setattr(encode_module, "ROWS", 64)
    whole = files_of(run(rows=MANY, function=in_layouts).folder)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    monkeypatch.setattr(chunk_writer, "COMMIT_SECONDS", 0.0)
    seen = []

    def dies(row):
        if len(seen) >= after * 64:
            raise KeyboardInterrupt
        seen.append(row)
        return in_layouts(row)

    with pytest.raises(KeyboardInterrupt):
        run(rows=MANY, function=dies)
    (left,) = (tmp_path / "finetune" / "examples").iterdir()
    with (left / "rows.bin").open("ab") as file:  # written, but not in the journal any more
        file.write(b"half a record")
    with (left / "journal.jsonl").open("ab") as file:
        file.write(b'{"next": 99')
    again = []

    def counts(row):
        again.append(row)
        return in_layouts(row)

    assert files_of(run(rows=MANY, function=counts).folder) == whole
    assert len(again) == len(MANY) - after * 64
    assert [path.name for path in (tmp_path / "finetune" / "examples").iterdir()] == [
        again and left.name.partition(".")[0]
    ]


@pytest.mark.parametrize("damage", [lambda data: b"", lambda data: data[:999] + bytes(8) + data[1007:]])
def test_files_that_are_not_as_the_journal_says_are_written_anew(damage, monkeypatch, tmp_path):
    monkeypatch.setattr(encode_module, "ROWS", 64)
    monkeypatch.setattr(chunk_writer, "COMMIT_SECONDS", 0.0)
    whole = files_of(run(rows=MANY, function=in_layouts).folder)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    seen = []

    def dies(row):
        seen.append(row)
        if len(seen) > 640:
            raise KeyboardInterrupt
        return in_layouts(row)

    with pytest.raises(KeyboardInterrupt):
        run(rows=MANY, function=dies)
    (left,) = (tmp_path / "finetune" / "examples").iterdir()
    (left / "rows.bin").write_bytes(damage((left / "rows.bin").read_bytes()))
    assert files_of(run(rows=MANY, function=in_layouts).folder) == whole


def test_a_row_that_needs_all_memory_is_a_bad_row():
    def hungry(row):
        if row["text"] == "ab" * 3:
            raise MemoryError
        return letters(row)

    examples = run(function=hungry)
    assert examples.skipped == [
        ("train row 3", "encoding it needs more memory than there is"),
        ("train row 4", "eight letters"),
    ]


def test_speed():
    """100,000 short rows of a trivial function: a few seconds at most, also on a busy machine."""
    rows = [{"text": "abcdefgh "}] * 100_000
    table = MemoryTable("train", rows)
    table.fingerprint = "rows"  # otherwise it is computed row by row
    started = time.process_time()
    function = each(lambda row: {"input_ids": [1, 2, 3, 4]})
    examples = encode(table, function, key="k", on_bad_row="error", cost=length)
    total = sum(int(examples[index]["input_ids"][0]) for index in range(len(examples)))
    assert total == 100_000 and time.process_time() - started < 6


VALUE = st.one_of(
    st.lists(st.integers(-(2**63), 2**63 - 1)),
    st.lists(st.integers(-(2**31), 2**31 - 1)),
    st.integers(),
    st.text(st.characters()),
    st.none(),
    st.booleans(),
    st.lists(st.floats(allow_nan=False)),
    st.lists(st.lists(st.integers(0, 9), max_size=3), max_size=3),
    st.dictionaries(st.text(max_size=3), st.text(max_size=3), max_size=2),
)


@settings(max_examples=150, deadline=None)
@given(st.lists(st.dictionaries(st.text(max_size=4), VALUE, max_size=4), max_size=5))
def test_any_example_survives_packing(examples):
    packer = Packer()
    records = [np.frombuffer(packer.pack(example), np.uint8) for example in examples]
    for example, record in zip(examples, records, strict=True):
        assert len(record) % 8 == 0
        back = unpack(record, packer.layouts)
        assert {
            key: value.tolist() if isinstance(value, np.ndarray) else value for key, value in back.items()
        } == example


def test_arrays_survive_packing():
    packer = Packer()
    example = {
        "pixels": np.arange(6, dtype=np.float32).reshape(2, 3),
        "ids": np.array([1, -(2**40)]),
        "narrow": np.array([1, 2], np.int16),
        "one": np.float32(0.5),
    }
    back = unpack(np.frombuffer(packer.pack(example), np.uint8), packer.layouts)
    assert back["pixels"].dtype == np.float32 and np.array_equal(back["pixels"], example["pixels"])
    assert back["ids"].tolist() == [1, -(2**40)] and back["narrow"].tolist() == [1, 2] and back["one"] == 0.5


def test_lazy_examples_are_made_on_access():
    asked = []

    def function(row, row_id):
        asked.append(row_id)
        return {"text": row["text"], "drawn": len(asked)}

    examples = LazyExamples(MemoryTable("train", ROWS), [3, 7], function, [10, 20])
    assert len(examples) == 2 and asked == []
    assert examples[1] == {"id": 7, "text": "ab" * 7, "drawn": 1} and examples[1]["drawn"] == 2
    assert examples.ids.tolist() == [3, 7] and examples.costs.tolist() == [10, 20]
    with pytest.raises(ValueError, match="1 ids and 2 costs"):
        LazyExamples(MemoryTable("train", ROWS), [1], function, [1, 2])
