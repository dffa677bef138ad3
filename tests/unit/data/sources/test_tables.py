"""Proves that every form of source becomes the same table, that roles, limits and places hold, and that bad rows are
message or skipped, also from the cache.
"""

import datetime
import decimal
import json
import pickle
import subprocess
import sys
import textwrap
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from PIL import Image

from finetune.data.sources.preflight import check_data
from finetune.data.sources.tables import open_split, open_tables
from finetune.errors import UserError
from finetune.recipe.data import SourceSection

ROWS = [{"text": f"text {index}", "label": "ab"[index % 2]} for index in range(10)]


def write_jsonl(path: Path, rows=ROWS) -> str:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return str(path)


def write_as(form: str, folder: Path) -> dict:
    """ROWS in a file of one format, as a source."""
    path = folder / f"data.{form}"
    if form == "jsonl":
        write_jsonl(path)
    elif form == "json":
        path.write_text(json.dumps({"data": ROWS}))
    elif form in ("csv", "tsv"):
        mark = "," if form == "csv" else "\t"
        path.write_text("".join(mark.join(row) + "\n" for row in [("text", "label"), *(r.values() for r in ROWS)]))
    elif form == "parquet":
        pq.write_table(pa.Table.from_pylist(ROWS), path, row_group_size=3)
    elif form == "arrow":
        table = pa.Table.from_pylist(ROWS)
        with pa.OSFile(str(path), "wb") as file, pa.ipc.new_stream(file, table.schema) as writer:
            writer.write_table(table, max_chunksize=4)
    return {"source": str(path)}


@pytest.mark.parametrize("form", ["jsonl", "json", "csv", "tsv", "parquet", "arrow"])
def test_every_format_gives_the_same_rows(form, tmp_path, make_recipe, text_card):
    for _ in range(2):  # the second time from the cache
        table = open_tables(make_recipe(train=write_as(form, tmp_path)), text_card)["train"]
        assert list(table) == ROWS and len(table) == 10 and table[-1] == ROWS[-1]
        assert table.columns == {"text": "text", "label": "label"}
        assert list(table.values("label")) == [row["label"] for row in ROWS]
        again = pickle.loads(pickle.dumps(table))
        assert list(again) == ROWS and again.place(4) == table.place(4)
        with pytest.raises(IndexError):
            table[10]
    place = {"jsonl": ":5", "csv": ":6", "tsv": ":6"}.get(form, " row 4")
    assert table.place(4).endswith(f"data.{form}{place}")


def test_places_are_relative_to_the_current_folder(tmp_path, make_recipe, text_card, monkeypatch):
    write_jsonl(tmp_path / "a.jsonl")
    monkeypatch.chdir(tmp_path)
    assert open_tables(make_recipe(train="a.jsonl"), text_card)["train"].place(1) == "a.jsonl:2"


def test_sources_are_joined_in_order_with_limits(tmp_path, make_recipe, text_card):
    one, two = write_jsonl(tmp_path / "1.jsonl"), write_as("parquet", tmp_path)["source"]
    train = [{"source": one, "limit": 3}, {"source": two}]
    table = open_tables(make_recipe(train=train), text_card)["train"]
    assert list(table) == [*ROWS[:3], *ROWS]
    assert table.place(2).endswith("1.jsonl:3") and table.place(3).endswith("parquet row 0")
    table = open_tables(make_recipe(train=train, limit=5), text_card)["train"]
    assert list(table) == [*ROWS[:3], *ROWS[:2]] and list(table.values("label")) == ["a", "b", "a", "a", "b"]


def test_a_subset_of_a_subset(tmp_path, make_recipe, text_card):
    table = open_tables(make_recipe(train=write_jsonl(tmp_path / "a.jsonl")), text_card)["train"]
    odd = table.choose("odd", np.array([1, 3, 5, 7, 9]), "odd")
    two = odd.choose("two", np.array([1, 4]), "two")
    assert list(two) == [ROWS[3], ROWS[9]] and list(two.values("text")) == ["text 3", "text 9"]
    assert two.place(1).endswith(":10") and len({table.fingerprint, odd.fingerprint, two.fingerprint}) == 3


def test_globs_and_folders_of_files(tmp_path, make_recipe, text_card):
    for name, part in (("b", ROWS[5:]), ("a", ROWS[:5])):
        write_jsonl(tmp_path / f"{name}.jsonl", part)
    for source in (str(tmp_path), str(tmp_path / "*.jsonl")):
        assert list(open_tables(make_recipe(train=source), text_card)["train"]) == ROWS
    table = open_tables(make_recipe(train={"source": str(tmp_path), "limit": 7}), text_card)["train"]
    assert list(table) == ROWS[:7]
    write_as("csv", tmp_path)
    with pytest.raises(UserError, match="several formats: csv, jsonl"):
        open_tables(make_recipe(train=str(tmp_path)), text_card)


def test_roles_by_recipe_by_source_and_by_alias(tmp_path, make_recipe, text_card):
    row = {"sentence": "s", "body": "b", "class": 1, "extra": [1], "none": None}
    path = write_jsonl(tmp_path / "a.jsonl", [row])
    table = open_tables(make_recipe(train=path), text_card)["train"]
    assert table[0] == {"text": "s", "label": 1, "body": "b", "extra": [1]}
    table = open_tables(make_recipe(train=path, columns={"text": "body"}), text_card)["train"]
    assert table[0] == {"text": "b", "label": 1, "sentence": "s", "extra": [1]}
    train = {"source": path, "columns": {"text": "class", "label": "body"}}
    table = open_tables(make_recipe(train=train, columns={"text": "body"}), text_card)["train"]
    assert table[0] == {"text": 1, "label": "b", "sentence": "s", "extra": [1]}


def test_a_missing_column_is_reported_with_the_nearest(tmp_path, make_recipe, text_card):
    path = write_jsonl(tmp_path / "a.jsonl", [{"sentense": "s", "label": 1}])
    with pytest.raises(UserError, match=r"no column 'sentence'.*did you mean sentense") as error:
        open_tables(make_recipe(train=path, columns={"text": "sentence"}), text_card)
    assert "sentense, label" in error.value.remedy
    with pytest.raises(UserError, match="no column for text"):
        open_tables(make_recipe(train=path), text_card)


def test_one_of_several_roles_is_enough(tmp_path, make_recipe, reply_card):
    path = write_jsonl(tmp_path / "a.jsonl", [{"text": "t"}, {"prompt": "p", "completion": "c"}, {"prompt": "p"}])
    table = open_tables(make_recipe(train=path, on_bad_row="skip"), reply_card)["train"]
    assert list(table) == [{"text": "t"}, {"prompt": "p", "completion": "c"}]
    assert table.skipped == [(f"{path}:3", "no value in column text or completion; the row has prompt")]


def test_a_row_without_any_of_the_roles_is_told_with_the_names_of_its_columns(tmp_path, make_recipe, reply_card):
    path = write_jsonl(tmp_path / "a.jsonl", [{"question": "p", "reply": "c"}, {"question": "p", "note": 1}])
    columns = {"prompt": "question", "completion": "reply"}
    table = open_tables(make_recipe(train=path, on_bad_row="skip", columns=columns), reply_card)["train"]
    assert table.skipped == [(f"{path}:2", "no value in column text or reply; the row has question, note")]


BAD = '{"text": "a", "label": 0}\n{"text": "b"}\n{"text": "c", "label": 0}\noops\n{"text": null, "label": 1}\n'


def test_bad_rows_are_reported_with_their_locations_or_skipped_and_listed(tmp_path, make_recipe, text_card):
    path = tmp_path / "a.jsonl"
    path.write_text(BAD)
    for _ in range(2):
        with pytest.raises(UserError) as error:
            open_tables(make_recipe(train=str(path)), text_card)
        message = str(error.value)
        assert "3 rows cannot be used" in message and "on_bad_row: skip" in message
        assert all(
            f"{path}:{line}: {why}" in message for line, why in [(2, "no value"), (4, "not JSON"), (5, "no value")]
        )
        lines: list[str] = []
        table = open_tables(make_recipe(train=str(path), on_bad_row="skip"), text_card, notify=lines.append)["train"]
        assert [row["text"] for row in table] == ["a", "c"] and table.place(1) == f"{path}:3"
        assert table.skipped_count == 3 and "3 rows skipped, 2 kept" in lines[0] and f"{path}:4" in lines[0]


def test_only_twenty_bad_rows_are_shown_but_all_are_counted(tmp_path, make_recipe, text_card):
    path = write_jsonl(tmp_path / "a.jsonl", [{"text": "a"}] * 50 + ROWS)
    with pytest.raises(UserError, match="50 rows") as error:
        open_tables(make_recipe(train=path), text_card)
    assert str(error.value).count("no value") == 20 and "and 30 more" in str(error.value)


def test_nulls_and_unlabelled_rows_of_arrow_data_are_bad_rows(tmp_path, make_recipe, text_card):
    import datasets

    features = datasets.Features({"text": datasets.Value("string"), "label": datasets.ClassLabel(names=["no", "yes"])})
    rows = [
        {"text": "a", "label": 1},
        {"text": None, "label": 0},
        {"text": "c", "label": -1},
        {"text": "d", "label": 0},
    ]
    made = datasets.Dataset.from_list(rows, features=features)
    made.to_parquet(tmp_path / "a.parquet")
    made.save_to_disk(tmp_path / "saved")
    for source in (tmp_path / "a.parquet", tmp_path / "saved"):
        table = open_tables(make_recipe(train=str(source), on_bad_row="skip"), text_card)["train"]
        assert list(table) == [{"text": "a", "label": "yes"}, {"text": "d", "label": "no"}]
        assert table.classes == {"label": ["no", "yes"]} and list(table.values("label")) == ["yes", "no"]
        assert [place.split(" row ")[1] for place, _ in table.skipped] == ["1", "2"]
        assert table.place(1).endswith("row 3")
        limited = open_tables(make_recipe(train=str(source), on_bad_row="skip", limit=1), text_card)["train"]
        assert list(limited) == [{"text": "a", "label": "yes"}]


def test_an_image_folder(tmp_path, make_recipe, image_card):
    for name in ("cat/2.png", "cat/1.png", "dog/deep/x.JPG", "dog/notes.txt", "dog/.hidden.png"):
        path = tmp_path / "photos" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.new("RGB", (2, 2)).save(path) if path.suffix != ".txt" else path.write_text("x")
    root = tmp_path / "photos"
    table = open_tables(make_recipe(train=str(root)), image_card)["train"]
    expected = [("cat/1.png", "cat"), ("cat/2.png", "cat"), ("dog/deep/x.JPG", "dog")]
    assert [(row["image"], row["label"]) for row in table] == [(str(root / name), label) for name, label in expected]
    assert table.place(2) == str(root / "dog/deep/x.JPG")
    Image.new("RGB", (2, 2)).save(root / "dog" / "new.png")  # one more file, so the cached listing is not used
    assert len(open_tables(make_recipe(train=str(root)), image_card)["train"]) == 4
    Image.new("RGB", (2, 2)).save(root / "lost.png")
    with pytest.raises(UserError, match=r"lost.png: no value in column label: the image lies in no folder of a class"):
        open_tables(make_recipe(train=str(root)), image_card)


def test_folders_that_are_not_image_folders(tmp_path, make_recipe, image_card):
    (tmp_path / "train" / "cat").mkdir(parents=True)
    for source in (str(tmp_path), {"source": str(tmp_path), "split": "train"}):
        with pytest.raises(UserError, match="no images"):
            open_tables(make_recipe(train=source), image_card)


def test_image_paths_are_relative_to_the_file_that_names_them(tmp_path, make_recipe, image_card):
    path = write_jsonl(tmp_path / "a.jsonl", [{"image": "photos/a.png", "label": 0}, {"image": "/b.png", "label": 1}])
    rows = list(open_tables(make_recipe(train=path), image_card)["train"])
    assert [row["image"] for row in rows] == [str(tmp_path / "photos/a.png"), "/b.png"]


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("a.jsonl", b"", "is empty"),
        ("a.jsonl", b"\n \n", "is empty"),
        ("a.csv", b"text,label\n", "is empty"),
        ("a.json", b"[]", "is empty"),
        ("a.parquet", b"PAR1 or not", "cannot be read"),
        ("a.arrow", b"ARROW1 or not", "cannot be read"),
        ("a.jsonl", b"text,label\na,b\n", "none of the first rows"),
        ("a.docx", b"x", "cannot be inferred from the extension"),
    ],
)
def test_files_that_cannot_be_data(tmp_path, make_recipe, text_card, name, content, message):
    (tmp_path / name).write_bytes(content)
    with pytest.raises(UserError, match=message) as error:
        open_tables(make_recipe(train=str(tmp_path / name)), text_card)
    assert name in error.value.where and error.value.remedy


def test_missing_files_and_unknown_sets(tmp_path, make_recipe, text_card):
    write_jsonl(tmp_path / "train.jsonl")
    with pytest.raises(UserError, match="no such file") as error:
        open_tables(make_recipe(train=str(tmp_path / "trian.jsonl")), text_card)
    assert "train.jsonl" in error.value.remedy
    with pytest.raises(UserError, match=r"did you mean docstrings"):
        open_tables(make_recipe(train="builtin:docstring"), text_card)
    with pytest.raises(UserError, match="no file matches"):
        open_tables(make_recipe(train=str(tmp_path / "*.csv")), text_card)


def test_a_file_that_fails_while_it_is_read(make_recipe, text_card):
    train = {"source": "/proc/self/mem", "format": "jsonl"}  # can be opened, but its first page cannot be read
    with pytest.raises(UserError, match="cannot be read: Input/output error"):
        open_tables(make_recipe(train=train), text_card)


def test_prediction_needs_no_labels(tmp_path, text_card):
    path = write_jsonl(tmp_path / "a.jsonl", [{"text": "t"}])
    sources = [SourceSection(source=path)]
    table = open_split("input", sources, text_card, columns={}, on_bad_row="error", required=(("text",),))
    assert list(table) == [{"text": "t"}] and table.name == "input"


def test_a_changed_file_is_read_again_and_columns_are_part_of_the_key(tmp_path, make_recipe, text_card):
    path = write_jsonl(tmp_path / "a.jsonl")
    before = open_tables(make_recipe(train=path), text_card)["train"]
    write_jsonl(tmp_path / "a.jsonl", [*ROWS, {"text": "new", "label": "a"}])
    after = open_tables(make_recipe(train=path), text_card)["train"]
    assert len(after) == 11 and after.fingerprint != before.fingerprint
    swapped = open_tables(make_recipe(train=path, columns={"text": "label", "label": "text"}), text_card)["train"]
    assert swapped[0] == {"text": "a", "label": "text 0"}
    assert list(before) == ROWS  # an open table stays complete


def test_memory_stays_flat(tmp_path):
    """200,000 rows, 60 MB: a process opens and walks them and grows by far less than the file."""
    path = tmp_path / "big.jsonl"
    filler = "x" * 280
    with path.open("w") as file:
        file.writelines(f'{{"text": "{index} {filler}", "label": {index % 2}}}\n' for index in range(200_000))
    script = """
        import resource, sys
        from tests.unit.data.conftest import TEXT as card
        from finetune.recipe.data import SourceSection
        from finetune.data.sources.tables import open_split
        peak = lambda: resource.getrusage(resource.RUSAGE_SELF).ru_maxrss // 1024
        before = peak()
        table = open_split("train", [SourceSection(source=sys.argv[1])], card, columns={}, on_bad_row="error")
        converted = peak()
        last = table[199_999]
        print(before, converted, len(table), last["text"].split()[0])
    """
    command = [sys.executable, "-c", textwrap.dedent(script), str(path)]
    done = subprocess.run(command, capture_output=True, text=True, check=True, cwd=Path(__file__).parents[4])
    before, converted, count, last = done.stdout.split()
    assert (count, last) == ("200000", "199999")
    assert path.stat().st_size > 58_000_000
    assert int(converted) - int(before) < 25, f"{before} MiB before, {converted} MiB after"


def test_real_sets(shared_data, make_recipe, text_card, image_card):
    def sst2(name):
        return {"source": str(shared_data / "sst2" / name), "header": ["text", "label"]}

    tables = open_tables(make_recipe(train=sst2("train.tsv"), validation=sst2("dev.tsv")), text_card)
    assert [len(table) for table in tables.values()] == [6920, 872]
    assert {row["label"] for row in tables["validation"]} == {"0", "1"}
    tables = open_tables(make_recipe(train=str(shared_data / "cifar10" / "train.parquet")), image_card)
    assert len(tables["train"]) == 8000 and len(set(tables["train"].values("label"))) == 10


@pytest.mark.parametrize("form", ["jsonl", "json", "parquet"])
def test_values_inside_of_columns_have_dotted_names(tmp_path, make_recipe, text_card, form):
    rows = [{"translation": {"en": {"x": "a"}, "de": "b"}, "label": "c"}, {"translation": {"de": "d"}, "label": "c"}]
    path = tmp_path / f"a.{form}"
    if form == "parquet":
        pq.write_table(pa.Table.from_pylist([*rows, {"label": "c"}]), path)
    else:
        text = (
            json.dumps([*rows, {"label": "c"}])
            if form == "json"
            else "\n".join(map(json.dumps, [*rows, {"label": "c"}]))
        )
        path.write_text(text)
    recipe = make_recipe(train=str(path), columns={"text": "translation.en.x"}, on_bad_row="skip")
    assert check_data(recipe, text_card) == []
    table = open_tables(recipe, text_card)["train"]
    assert [(row["text"], row["label"]) for row in table] == [("a", "c")] and list(table.values("text")) == ["a"]
    assert [reason for _, reason in table.skipped] == ["no value in column translation.en.x"] * 2
    with pytest.raises(UserError, match=r"no column 'translation.dee'.*did you mean translation.de"):
        open_tables(make_recipe(train=str(path), columns={"text": "translation.dee"}), text_card)
    (fault,) = check_data(make_recipe(train=str(path), columns={"text": "translation.dee"}), text_card)
    assert fault.nearest == "translation.de" and "translation.en.x" in fault.allowed


def test_a_dot_in_the_name_of_a_column_is_part_of_it(tmp_path, make_recipe, text_card):
    (tmp_path / "a.csv").write_text("my.text,label\na,1\n")
    recipe = make_recipe(train=str(tmp_path / "a.csv"), columns={"text": "my.text"})
    assert open_tables(recipe, text_card)["train"][0] == {"text": "a", "label": "1"}


def test_typed_values_are_plain(tmp_path, make_recipe, text_card):
    when = datetime.datetime(2024, 2, 3, 4, 5, 6)
    columns = {
        "text": pa.array(["a"], pa.large_string()),
        "label": pa.array(["good"]).dictionary_encode(),
        "price": pa.array([decimal.Decimal("4.50")]),
        "count": pa.array([decimal.Decimal("4.00")]),
        "time": pa.array([when], pa.timestamp("ns")),
        "day": pa.array([when.date()]),
        "span": pa.array([datetime.timedelta(seconds=90)]),
        "map": pa.array([[("k", when.date())]], pa.map_(pa.string(), pa.date32())),
        "list": pa.array([[{"d": when.date()}]]),
    }
    pq.write_table(pa.table(columns), tmp_path / "a.parquet")
    row = open_tables(make_recipe(train=str(tmp_path / "a.parquet")), text_card)["train"][0]
    assert json.loads(json.dumps(row)) == row == {
        "text": "a", "label": "good", "price": 4.5, "count": 4, "time": "2024-02-03 04:05:06", "day": "2024-02-03",
        "span": "0:01:30", "map": {"k": "2024-02-03"}, "list": [{"d": "2024-02-03"}],
    }  # fmt: skip


def test_notes_on_files_are_counted(tmp_path, make_recipe, text_card):
    for name in "ab":
        (tmp_path / f"{name}.csv").write_text("text;label\na;1\n")
    said: list[str] = []
    open_tables(make_recipe(train=str(tmp_path)), text_card, notify=said.append)
    assert any(line.endswith("a.csv and 1 more: cells are separated by semicolons") for line in said)


def test_a_first_line_that_is_a_row_and_a_list_named_jsonl(tmp_path, make_recipe, text_card):
    (tmp_path / "a.csv").write_text("a film,1\nb film,0\n")
    faults = check_data(make_recipe(train=str(tmp_path / "a.csv")), text_card)
    assert len(faults) == 2 and all("header: [text, label]" in fault.message for fault in faults)
    with pytest.raises(UserError, match="no column for text") as error:
        open_tables(make_recipe(train=str(tmp_path / "a.csv")), text_card)
    assert "header: [text, label]" in error.value.remedy
    for content in ('[\n{"text": "a", "label": 1},\n{"text": "b", "label": 1}]', '{\n"text": "a",\n"label": 1}'):
        (tmp_path / "a.jsonl").write_text(content)
        (fault,) = check_data(make_recipe(train={"source": str(tmp_path / "a.jsonl"), "limit": 1}), text_card)
        assert "set `format: json`" in fault.message


def test_times_that_python_does_not_have_are_missing_and_counted(tmp_path, text_card):
    for kind in (pa.timestamp("us"), pa.duration("s"), pa.date64()):
        days = pa.array([86_400_000, 2**62 // 86_400_000 * 86_400_000, 86_400_000] * 2, kind)
        pq.write_table(pa.table({"text": ["a", "b", "c"] * 2, "label": days}), tmp_path / "a.parquet")
        said: list[str] = []
        source = SourceSection(source=str(tmp_path / "a.parquet"))
        table = open_split("train", [source], text_card, columns={}, on_bad_row="skip", notify=said.append)
        assert len(table) == 4, kind
        assert "2 values are beyond the times that Python has, read as missing" in " ".join(said), kind


@pytest.mark.parametrize("form", ["parquet", "arrow"])
def test_columns_and_fields_of_the_same_name_are_refused(form, tmp_path, make_recipe, text_card):
    texts = pa.array(["a", "b"])
    twice = pa.StructArray.from_arrays([texts, texts], names=["x", "x"])
    for columns, names, says in (
        ([texts, texts, texts], ["text", "text", "label"], "two columns are named 'text'"),
        ([texts, texts, twice], ["text", "label", "more"], "two fields of more are named 'x'"),
    ):
        table, path = pa.Table.from_arrays(columns, names=names), tmp_path / f"{len(names[0])}{names[1]}.{form}"
        if form == "parquet":
            pq.write_table(table, path)
        else:
            with pa.OSFile(str(path), "wb") as file, pa.ipc.new_file(file, table.schema) as writer:
                writer.write_table(table)
        with pytest.raises(UserError, match=says):
            open_tables(make_recipe(train=str(path)), text_card)


def test_a_parquet_text_that_is_no_text_is_refused(tmp_path, make_recipe, text_card):
    odd = pa.array([b"\xff\xfe", b"fine"]).view(pa.string())
    pq.write_table(pa.table({"text": odd, "label": ["x", "y"]}), tmp_path / "a.parquet")
    with pytest.raises(UserError, match=r"a\.parquet: cannot be read: .*[Ii]nvalid UTF"):
        open_tables(make_recipe(train=str(tmp_path / "a.parquet")), text_card)
