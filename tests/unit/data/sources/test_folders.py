"""Tests that training never reads files which a folder holds for another split, and that what is left out is reported."""

import json
import os
import subprocess
import sys
import textwrap
from pathlib import Path

import pytest
from PIL import Image

from finetune.data.sources.locate import locate
from finetune.data.sources.preflight import check_data
from finetune.data.sources.tables import open_tables
from finetune.errors import UserError
from finetune.recipe.data import SourceSection


def make(folder: Path, *names: str) -> Path:
    """Files whose one row says their name."""
    for name in names:
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        row = {"text": name, "label": "a"}
        if name.endswith(".parquet"):
            import pyarrow as pa
            import pyarrow.parquet as pq

            pq.write_table(pa.Table.from_pylist([row]), path)
        elif name.endswith((".png", ".jpg")):
            Image.new("RGB", (2, 2)).save(path)
        elif name.endswith(".csv"):
            path.write_text(f"text,label\n{name},a\n")
        else:
            path.write_text(json.dumps(row) + "\n")
    return folder


def found(folder: Path, key: str = "train", /, **options) -> list[str]:
    """Names of the files that are read, relative to the folder."""
    located = locate(SourceSection(source=str(folder), **options), key)
    return [str(path.relative_to(folder)) for path in located.files]


def notes(folder: Path, key: str = "train", /, **options) -> str:
    return "\n".join(locate(SourceSection(source=str(folder), **options), key).notes)


LAYOUTS = {
    "files": ("train.jsonl", "validation.jsonl", "test.jsonl"),
    "short": ("train.csv", "dev.csv", "test.csv"),
    "shards": ("train-00000-of-00001.parquet", "val-00000-of-00001.parquet", "test-00000-of-00001.parquet"),
    "hub": ("data/train-00000-of-00001.parquet", "data/validation-0.parquet", "data/test-0.parquet"),
    "folders": ("train/0.parquet", "valid/0.parquet", "test/0.parquet"),
    "in names": ("my_set.Training.v2.jsonl.gz", "my_set.eval.jsonl.gz", "my_set-testing.jsonl.gz"),
    "mixed formats": ("train.jsonl", "val.csv", "test.parquet"),
}


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("explicit", [False, True])
def test_each_split_has_its_own_files(tmp_path, layout, explicit):
    make(tmp_path, *LAYOUTS[layout])
    for split, name in zip(("train", "validation", "test"), LAYOUTS[layout], strict=True):
        assert found(tmp_path, "train" if explicit else split, split=split if explicit else "") == [name]
    said = notes(tmp_path)
    assert "is read" in said and "left to other splits" in said


def test_unnamed_files_are_training_data_beside_named_ones(tmp_path):
    make(tmp_path, "a.jsonl", "b.jsonl", "test.jsonl")
    assert found(tmp_path) == ["a.jsonl", "b.jsonl"] and "test.jsonl" in notes(tmp_path)
    assert found(tmp_path, "test") == ["test.jsonl"]
    with pytest.raises(UserError, match="has no files for validation"):
        found(tmp_path, "validation")
    make(tmp_path, "train.jsonl")
    assert found(tmp_path) == ["train.jsonl"] and "a.jsonl" in notes(tmp_path)
    assert found(tmp_path, split="b") == ["b.jsonl"]


def test_files_without_names_of_splits_are_read_together(tmp_path):
    make(tmp_path, "part-0.jsonl", "part-1.jsonl", "contest.jsonl", "restrained.jsonl")
    for split in ("train", "validation", "data"):
        assert len(found(tmp_path, split)) == 4
    assert "are read" in notes(tmp_path)


def test_no_choice_is_an_error(tmp_path):
    make(tmp_path, "validation.jsonl", "test.jsonl")
    with pytest.raises(UserError, match=r"no files for train, but test.jsonl, validation.jsonl") as error:
        found(tmp_path)
    assert "Set `split:`" in error.value.remedy
    with pytest.raises(UserError, match="several splits: test, validation"):
        found(tmp_path, "data")
    make(tmp_path, "dev.jsonl")
    assert found(tmp_path, "validation") == ["validation.jsonl"] and found(tmp_path, split="dev") == ["dev.jsonl"]
    (tmp_path / "validation.jsonl").rename(tmp_path / "val.jsonl")
    with pytest.raises(UserError, match="several splits for validation: dev, val"):
        found(tmp_path, "validation")


def test_a_name_with_the_words_of_two_splits_is_in_neither(tmp_path):
    make(tmp_path, "train.jsonl", "train-test-overlap.jsonl")
    assert found(tmp_path) == ["train.jsonl"] and "train-test-overlap.jsonl" in notes(tmp_path)
    with pytest.raises(UserError, match="no files for test"):
        found(tmp_path, "test")


@pytest.mark.parametrize("split", ["validatoin", "unknown"])
def test_a_split_that_is_not_there_is_an_error_with_the_nearest(tmp_path, split):
    make(tmp_path, "train.jsonl", "validation.jsonl")
    with pytest.raises(UserError, match=f"has no split '{split}'") as error:
        found(tmp_path, split=split)
    assert ("did you mean validation" in error.value.what) == (split == "validatoin")
    assert error.value.remedy == "It has train, validation."


def test_a_split_of_what_has_none_is_an_error(tmp_path):
    make(tmp_path, "a.jsonl", "b/1.png", "b/2.png")
    for source in (tmp_path / "a.jsonl", tmp_path / "*.jsonl"):
        with pytest.raises(UserError, match="`split: test` has no effect on files"):
            found(source, split="test")
    with pytest.raises(UserError, match="has no split 'test'"):
        found(tmp_path / "b", split="test")


def test_folders_of_images_and_of_exports_are_chosen_by_split(tmp_path):
    make(tmp_path / "images", "train/cat/1.png", "train/dog/1.png", "test/cat/2.png", "test/dog/2.png")
    located = locate(SourceSection(source=str(tmp_path / "images")), "train")
    assert (located.format, found(tmp_path / "images")) == ("imagefolder", ["train"])
    assert found(tmp_path / "images", "test") == ["test"] and "left to other splits: test" in notes(tmp_path / "images")
    make(tmp_path / "coco", "train/1.jpg", "valid/2.jpg", "README.dataset.txt")
    for split in ("train", "valid"):
        (tmp_path / "coco" / split / "_annotations.coco.json").write_text("{}")
    assert found(tmp_path / "coco", "validation") == ["valid/_annotations.coco.json"]
    make(tmp_path / "classes", "train/1.png", "bus/1.png", "notes.txt")  # a class of vehicles
    assert found(tmp_path / "classes") == ["."]


def test_what_datasets_saved_is_read_as_it_says(tmp_path):
    import datasets

    def saved(name):
        return datasets.Dataset.from_list([{"text": name, "label": "a"}])

    datasets.DatasetDict({"train": saved("a"), "test": saved("b"), "odd": saved("c")}).save_to_disk(tmp_path / "dict")
    assert found(tmp_path / "dict") == ["train/data-00000-of-00001.arrow"]
    assert found(tmp_path / "dict", split="odd") == ["odd/data-00000-of-00001.arrow"]
    with pytest.raises(UserError, match="no files for validation"):
        found(tmp_path / "dict", "validation")
    one = tmp_path / "one"
    saved("a").save_to_disk(one)
    (one / "cache-0123456789abcdef.arrow").write_bytes((one / "data-00000-of-00001.arrow").read_bytes())
    assert found(one) == ["data-00000-of-00001.arrow"] and "cache-0123456789abcdef.arrow" in notes(one)
    (one / "data-00000-of-00001.arrow").unlink()
    with pytest.raises(UserError, match="no such file"):
        found(one)


CARD = """---
license: mit
configs:
- config_name: {name}
  data_files:
  - split: train
    path: "raw/a*.jsonl"
  - split: held
    path: ["raw/b.jsonl"]
  - split: gone
    path: raw/c.jsonl
- config_name: other
  data_dir: raw
  data_files: b.jsonl
---
# A set
"""


def test_the_card_of_a_hub_set_names_its_files(tmp_path):
    make(tmp_path, "raw/a1.jsonl", "raw/a2.jsonl", "raw/b.jsonl")
    (tmp_path / "README.md").write_text(CARD.format(name="default"))
    assert found(tmp_path) == ["raw/a1.jsonl", "raw/a2.jsonl"] and "README.md names" in notes(tmp_path)
    assert found(tmp_path, split="held") == ["raw/b.jsonl"] and found(tmp_path, subset="other") == ["raw/b.jsonl"]
    with pytest.raises(UserError, match="none of them is there"):
        found(tmp_path, split="gone")
    with pytest.raises(UserError, match="no subset 'othr'; did you mean other"):
        found(tmp_path, subset="othr")
    (tmp_path / "README.md").write_text(CARD.format(name="first"))
    with pytest.raises(UserError, match="several subsets") as error:
        found(tmp_path)
    assert "first, other" in error.value.remedy
    (tmp_path / "README.md").write_text("---\n: [\n---\n")  # not YAML
    with pytest.raises(UserError, match="contains no data file") as error:
        found(tmp_path)
    assert "raw" in error.value.remedy


def test_a_subset_is_a_subfolder(tmp_path):
    make(tmp_path, "cola/train-0.parquet", "cola/test-0.parquet", "sst2/train-0.parquet")
    assert found(tmp_path, subset="cola") == ["cola/train-0.parquet"]
    with pytest.raises(UserError, match="no subset 'sst'; did you mean sst2"):
        found(tmp_path, subset="sst")
    with pytest.raises(UserError, match="contains no data file") as error:
        found(tmp_path)
    assert "cola, sst2" in error.value.remedy


def test_files_that_are_not_read_are_reported(tmp_path):
    make(
        tmp_path,
        "a.jsonl",
        "b.jsonl",
        "README.md",
        "LICENSE.txt",
        "notes.txt",
        "a.jsonl.md5",
        ".hidden.jsonl",
        "old/c.jsonl",
    )
    assert found(tmp_path) == ["a.jsonl", "b.jsonl"]
    said = notes(tmp_path)
    assert "a.jsonl, b.jsonl are read" in said and "not read: 6 files (LICENSE.txt ... 1 hidden)" in said
    make(tmp_path / "text", "1.txt", "README.txt")
    assert found(tmp_path / "text") == ["1.txt"] and "not read: README.txt" in notes(tmp_path / "text")


def test_files_that_are_links_to_each_other_are_read_once(tmp_path):
    make(tmp_path, "a.jsonl", "b.jsonl")
    (tmp_path / "c.jsonl").symlink_to("a.jsonl")
    (tmp_path / "d.jsonl").hardlink_to(tmp_path / "b.jsonl")
    for source in (tmp_path, tmp_path / "*.jsonl"):
        located = locate(SourceSection(source=str(source)), "train")
        assert [path.name for path in located.files] == ["a.jsonl", "b.jsonl"]
        assert sum("is the same file as" in note for note in located.notes) == 2


def test_links_are_read_by_the_name_that_was_given(tmp_path, make_recipe, text_card):
    make(tmp_path, "blobs/0a1b.csv")
    (tmp_path / "blobs" / "0a1b.csv").rename(tmp_path / "blobs" / "0a1b")
    (tmp_path / "my set.csv").symlink_to("blobs/0a1b")
    table = open_tables(make_recipe(train=str(tmp_path / "my set.csv")), text_card)["train"]
    assert len(table) == 1 and table.place(0).endswith("my set.csv:2")
    (tmp_path / "gone.csv").symlink_to("blobs/none")
    with pytest.raises(UserError, match="is a link to blobs/none, which is not there"):
        found(tmp_path / "gone.csv")


def test_a_pipe_is_refused(tmp_path, make_recipe, text_card):
    os.mkfifo(tmp_path / "x.jsonl")
    (fault,) = check_data(make_recipe(train=str(tmp_path / "x.jsonl")), text_card)
    assert "a pipe or a device" in fault.message


def test_a_pattern_that_takes_in_other_splits_is_reported(tmp_path):
    make(tmp_path, "train.jsonl", "test.jsonl")
    said = "\n".join(locate(SourceSection(source=str(tmp_path / "*.jsonl")), "train").notes)
    assert "train reads files that are named for another split: test.jsonl" in said


@pytest.mark.parametrize(
    "options",
    [
        {"header": ["a"]},
        {"images": "x"},
        {"encoding": "cp1252"},
        {"sheet": "x"},
        {"sample_by": "document"},
        {"revision": "x"},
    ],
)
def test_an_option_without_effect_is_an_error(tmp_path, options):
    make(tmp_path, "a.parquet")
    with pytest.raises(UserError, match=f"`{next(iter(options))}:` has no effect on parquet data"):
        found(tmp_path / "a.parquet", **options)


@pytest.mark.parametrize(
    ("name", "advice"),
    [("a.zip", "Unpack it."), ("a.parquet.gz", "decompress it"), ("a.xls", ".xlsx"), ("a.jsonl.lz4", "Decompress it")],
)
def test_the_remedy_for_an_unknown_format_can_help(tmp_path, name, advice):
    (tmp_path / name).write_bytes(b"x")
    with pytest.raises(UserError, match="cannot be inferred") as error:
        found(tmp_path / name)
    assert advice in error.value.remedy and "`format:`" not in error.value.remedy


def test_the_choice_is_reported_and_validation_data_is_offered(tmp_path, make_recipe, text_card):
    make(tmp_path, "train.jsonl", "validation.jsonl", "test.jsonl")
    said: list[str] = []
    tables = open_tables(make_recipe(train=str(tmp_path)), text_card, notify=said.append)
    assert [row["text"] for row in tables["train"]] == ["train.jsonl"] and list(tables) == ["train"]
    assert any("left to other splits: test.jsonl, validation.jsonl" in line for line in said)
    assert any(f"data.validation: {tmp_path}" in line for line in said)
    said.clear()
    tables = open_tables(make_recipe(train=str(tmp_path), validation=str(tmp_path)), text_card, notify=said.append)
    assert [row["text"] for row in tables["validation"]] == ["validation.jsonl"]
    assert not any("data.validation:" in line for line in said)


def test_the_same_files_in_two_splits_are_reported(tmp_path, make_recipe, text_card):
    make(tmp_path, "a.jsonl", "b.jsonl")
    said: list[str] = []
    sets = {"train": str(tmp_path), "validation": str(tmp_path / "b.jsonl")}
    open_tables(make_recipe(**sets), text_card, notify=said.append)
    assert any("validation reads files that train also reads" in line and "b.jsonl" in line for line in said)


def test_a_folder_of_many_files_needs_few_open_files(tmp_path):
    """600 files, with at most 100 open ones allowed."""
    for index in range(600):
        (tmp_path / f"part-{index:05d}.jsonl").write_text(json.dumps({"text": f"t {index}", "label": 1}) + "\n")
    script = """
        import resource, sys
        resource.setrlimit(resource.RLIMIT_NOFILE, (100, 100))
        from finetune.data.sources.tables import open_split
        from tests.unit.data.conftest import TEXT as card
        from finetune.recipe.data import SourceSection
        table = open_split("train", [SourceSection(source=sys.argv[1])], card, columns={}, on_bad_row="error")
        print(len(table), table[599]["text"])
    """
    command = [sys.executable, "-c", textwrap.dedent(script), str(tmp_path)]
    done = subprocess.run(command, capture_output=True, text=True, check=True, cwd=Path(__file__).parents[4])
    assert done.stdout == "600 t 599\n"
