"""Tests that datasets of the hub are read in place, and that an unreachable hub is reported with the remedy."""

import time

import pytest

from finetune.data.sources.tables import open_tables
from finetune.errors import UserError

datasets = pytest.importorskip("datasets")


def test_without_a_network_the_error_comes_at_once(make_recipe, text_card, monkeypatch):
    monkeypatch.setattr("finetune.data.sources.hub._hub_reachable", lambda: False)
    monkeypatch.setattr(datasets.config, "HF_HUB_OFFLINE", False)
    started = time.monotonic()
    with pytest.raises(
        UserError, match="owner/no-such-set is not in the local Hugging Face cache, and the hub cannot be reached"
    ) as error:
        open_tables(make_recipe(train="owner/no-such-set"), text_card)
    assert "local file" in error.value.remedy and "builtin:docstrings" in error.value.remedy
    assert time.monotonic() - started < 15  # `datasets` alone would retry for longer
    assert datasets.config.HF_HUB_OFFLINE is False


def test_a_misspelled_file_is_not_only_called_a_dataset(make_recipe, text_card, tmp_path, monkeypatch):
    monkeypatch.setattr("finetune.data.sources.hub._hub_reachable", lambda: False)
    monkeypatch.chdir(tmp_path)
    (tmp_path / "chat.jsonl").touch()
    with pytest.raises(UserError) as error:
        open_tables(make_recipe(train="chat.jsnl"), text_card)
    assert error.value.remedy.startswith("Did you mean chat.jsonl? ")


@pytest.fixture
def stored(tmp_path, monkeypatch):
    """A dataset as load_dataset stores it: Arrow files with class names in the schema. Only the download is replaced."""
    features = datasets.Features(
        {"sentence": datasets.Value("string"), "label": datasets.ClassLabel(names=["neg", "pos"])}
    )
    rows = [{"sentence": f"s{index}", "label": index % 2} for index in range(10)]
    datasets.Dataset.from_list(rows, features=features).save_to_disk(tmp_path / "set", num_shards=2)
    found = datasets.load_from_disk(str(tmp_path / "set"))
    asked = []

    def load_dataset(path, name, *, split, revision):
        asked.append((path, name, split, revision))
        if split == "validation":
            raise ValueError('Unknown split "validation". Should be one of ["train"].')
        return found.select(range(4)) if split.endswith("]") else found

    monkeypatch.setattr(datasets, "load_dataset", load_dataset)
    return asked


def test_a_hub_data_set(stored, make_recipe, text_card, cache):
    train = {"source": "owner/set", "subset": "sst2", "revision": "v1"}
    table = open_tables(make_recipe(train=train), text_card)["train"]
    assert stored == [("owner/set", "sst2", "train", "v1")]
    assert len(table) == 10 and table[3] == {"text": "s3", "label": "pos"} and table.classes["label"] == ["neg", "pos"]
    assert table.place(3) == "owner/set/train row 3" and table.columns["text"] == "sentence"
    assert not (cache / "tables").exists()  # read in place, not copied


def test_a_slice_of_a_hub_data_set(stored, make_recipe, text_card):
    table = open_tables(make_recipe(train={"source": "owner/set", "split": "train[:4]"}), text_card)["train"]
    assert [row["text"] for row in table] == ["s0", "s1", "s2", "s3"] and table.classes["label"] == ["neg", "pos"]


def test_an_unknown_split_names_the_existing_ones(stored, make_recipe, text_card):
    with pytest.raises(UserError, match=r'has no split .validation.*one of \["train"\]') as error:
        open_tables(make_recipe(train="owner/set", validation="owner/set"), text_card)
    assert "split:" in error.value.remedy
