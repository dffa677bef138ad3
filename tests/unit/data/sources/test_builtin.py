"""Tests that the built-in datasets are stable, split without overlap, and learnable."""

import io
import json
import subprocess
import sys
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from finetune.data.sources.builtin import BUILTINS
from finetune.data.sources.docstrings import AREAS, docstring_rows
from finetune.data.sources.tables import open_tables
from finetune.errors import UserError


def test_digits(make_recipe, image_card):
    for _ in range(2):
        tables = open_tables(make_recipe(train="builtin:digits", validation="builtin:digits"), image_card)
        train, validation = tables["train"], tables["validation"]
        assert len(train) + len(validation) == 1797 and 0.17 < len(validation) / 1797 < 0.23
        assert Counter(len(str(label)) for label in train.values("label")) == {1: len(train)}
        assert not {row["image"] for row in train} & {row["image"] for row in validation}
        assert train.place(3) == "builtin:digits/train row 3"
    image = Image.open(io.BytesIO(train[0]["image"]))
    assert image.size == (8, 8) and image.mode == "L" and 200 < np.asarray(image).max() <= 255


@pytest.fixture
def library(tmp_path):
    """A small library: two areas, a test, a site package, a file that is not Python, and one text twice."""
    files = {
        "json/__init__.py": '"""Encode and decode five words."""\nraise SystemExit("imported!")\n',
        "json/decoder.py": 'class A:\n  """One two three four five."""\n  def f():\n    "too short"\n    if 1:\n'
        "      def g():\n        '''Deep in an if   in a\n        function.'''\n",
        "socket.py": '"""ONE two three four five."""\nasync def h():\n  """' + "word " * 100 + '"""\n',
        "json/tests/test_x.py": '"""This is a test of json."""',
        "site-packages/json/x.py": '"""This is a site package here."""',
        "unknown.py": '"""This module has no area at all."""',
        "csv.py": "not python (",
    }
    for name, text in files.items():
        path = tmp_path / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
    return tmp_path


def test_docstrings_are_parsed_not_imported(library):
    rows = {row["name"]: row for split in ("train", "validation") for row in docstring_rows(split, library)}
    assert set(rows) == {"json", "json.decoder.A", "json.decoder.A.f.g", "socket.h"}
    assert rows["json.decoder.A.f.g"] == {
        "name": "json.decoder.A.f.g", "text": "Deep in an if in a function.", "label": "text",
    }  # fmt: skip
    assert len(rows["socket.h"]["text"].split()) == 60 and rows["socket.h"]["label"] == "internet"


def test_no_module_is_in_two_areas():
    modules = [module for names in AREAS.values() for module in names.split()]
    assert len(modules) == len(set(modules)) > 100 and 5 <= len(AREAS) <= 8


def test_docstrings_of_this_python_can_be_learned(tmp_path):
    """As the command writes them: thousands of rows, no text in both splits, and plain bag-of-words far above the majority."""
    from sklearn.feature_extraction.text import TfidfVectorizer
    from sklearn.linear_model import RidgeClassifier

    command = [sys.executable, "-m", "finetune.data.sources.docstrings", "--output", str(tmp_path)]
    subprocess.run(command, check=True, cwd=Path(__file__).parents[3], capture_output=True)
    train, validation = (
        [json.loads(line) for line in (tmp_path / f"{split}.jsonl").open()] for split in ("train", "validation")
    )
    assert len(train) + len(validation) > 4000 and 0.07 < len(validation) / (len(train) + len(validation)) < 0.13
    assert not {row["text"].casefold() for row in train} & {row["text"].casefold() for row in validation}
    assert {row["label"] for row in train} == {row["label"] for row in validation} == set(AREAS)
    assert len({row["label"] for row in train[:100]}) == len(AREAS)  # so that data.limit takes some of each
    words = TfidfVectorizer(sublinear_tf=True)
    model = RidgeClassifier().fit(words.fit_transform(r["text"] for r in train), [r["label"] for r in train])
    accuracy = model.score(words.transform(r["text"] for r in validation), [r["label"] for r in validation])
    majority = Counter(row["label"] for row in validation).most_common(1)[0][1] / len(validation)
    assert majority < 0.3 and accuracy > 2 * majority, (majority, accuracy)  # a distribution may leave out modules


def test_splits_and_columns_are_as_declared(make_recipe, image_card):
    for name, builtin in BUILTINS.items():
        rows = list(builtin.build("validation"))[:5] if name == "digits" else []
        assert all(tuple(row) == builtin.columns for row in rows)
    with pytest.raises(UserError, match="has no split 'test'"):
        open_tables(make_recipe(train="builtin:digits", test="builtin:digits"), image_card)
