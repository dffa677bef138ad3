"""Proves that YAML is read safely, with lines, with 1e-5 as a number, and that what is dumped reads back the same."""

from __future__ import annotations

import math

import pytest
import yaml
from hypothesis import given, settings
from hypothesis import strategies as st

from finetune.errors import UserError
from finetune.recipe.yaml import parse_document, parse_value, read_document
from finetune.recipe.yaml_dialect import dump, one_line

TEXT = """\
# a comment
rate: 1e-5
wandb: off
base: &base {x: 1, y: 2}
deep:
  <<: *base
  y: 3
list:
  - a: 1
  - 2024-01-01
"""


def test_values_follow_yaml_1_2() -> None:
    document = parse_document(TEXT, "r.yaml")
    assert document.values == {
        "rate": 1e-5,
        "wandb": "off",
        "base": {"x": 1, "y": 2},
        "deep": {"x": 1, "y": 3},
        "list": [{"a": 1}, "2024-01-01"],
    }
    assert isinstance(document.values["rate"], float)
    assert document.faults == []


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("1e-5", 1e-5),
        ("5E3", 5000.0),
        (".5", 0.5),
        ("1_000", 1000),
        ("010", 10),
        ("0x1f", 31),
        ("1:30", "1:30"),
        ("yes", "yes"),
        ("none", "none"),
        ("null", None),
        ("~", None),
        ("True", True),
        ("-.inf", -math.inf),
        ("1e", "1e"),
        ("'3'", "3"),
    ],
)
def test_plain_words(text: str, value: object) -> None:
    found = parse_value(text)
    assert found == value
    assert type(found) is type(value)


def test_every_key_knows_its_line() -> None:
    document = parse_document(TEXT, "r.yaml")
    assert document.place(("rate",)) == "r.yaml:2"
    assert document.place(("deep", "y")) == "r.yaml:7"
    assert document.place(("list", 1)) == "r.yaml:10"
    assert document.place(("deep", "absent")) == "r.yaml:5"
    assert document.place(("absent",)) == "r.yaml:2"  # the first key's line is the file's beginning


def test_duplicate_keys_are_reported_with_both_lines() -> None:
    faults = parse_document("a: 1\nb: {c: 1, c: 2}\na: 2\n", "r.yaml").faults
    assert [(fault.where, fault.key) for fault in faults] == [("r.yaml:2", "b.c"), ("r.yaml:3", "a")]
    assert "first on line 1" in faults[1].message


@pytest.mark.parametrize(
    ("text", "where", "words"),
    [
        ("a:\n\tb: 1", "r.yaml:2", "takes no tabs"),
        ("a: 1\nb: c: d", "r.yaml:2", "goes in quotes"),
        ("a: [1\n", "r.yaml:2", "expected ',' or ']'"),
        ("a: 1\n---\nb: 2", "r.yaml:2", "second document"),
        ("a: *nobody", "r.yaml:1", "undefined alias"),
        ("a: \x00", "r.yaml", "not YAML"),
    ],
)
def test_syntax_errors_are_reported_with_their_line(text: str, where: str, words: str) -> None:
    with pytest.raises(UserError) as caught:
        parse_document(text, "r.yaml")
    assert caught.value.where == where
    assert words in str(caught.value)


@pytest.mark.parametrize("text", ["!!python/object/apply:os.getcwd []", "!!python/name:os.system x", "!mine {a: 1}"])
def test_tags_that_would_make_objects_are_refused(text: str) -> None:
    document = parse_document(f"a: {text}", "r.yaml")
    assert document.values == {"a": None}
    assert "not allowed" in document.faults[0].message


def test_aliases_cannot_run_away() -> None:
    assert "itself" in parse_document("a: &x [*x]", "r.yaml").faults[0].message
    bomb = "a0: &a0 [x,x,x,x,x,x,x,x,x,x]\n" + "".join(
        f"a{n}: &a{n} [{','.join([f'*a{n - 1}'] * 10)}]\n" for n in range(1, 9)
    )
    with pytest.raises(UserError, match=r"more than 50,000 values, with those that aliases repeat"):
        parse_document(bomb, "r.yaml")


@pytest.mark.parametrize(
    "text", ["a: " + "[" * 50_000, "a: " + "{a: " * 50_000, "a:\n " + "- " * 5_000 + "x", "? " * 5_000]
)
def test_depth_is_limited_before_nodes_are_composed(text: str) -> None:
    with pytest.raises(UserError, match=r"r\.yaml:\d: .*nested more than 64 levels deep"):
        parse_document(text, "r.yaml")


def test_the_limit_of_newer_parsers_is_told_in_the_same_words(monkeypatch: pytest.MonkeyPatch) -> None:
    """That of PyYAML 6.0.4, in its words; the scanner is ahead of the events whose depth is looked at."""

    def scan(text: str, **options: object) -> None:
        mark = yaml.Mark("r.yaml", 0, 2, 3, None, 0)
        raise yaml.scanner.ScannerError("while increasing flow level", mark, "exceeded maximum nesting depth", mark)

    monkeypatch.setattr("yaml.parse", scan)
    with pytest.raises(UserError, match=r"^r\.yaml:3: nested more than 64 levels deep$"):
        parse_document("a: " + "[" * 50_000, "r.yaml")


@pytest.mark.parametrize("text", ["0x" + "f" * 200_000, "9" * 200_000, "0o" + "7" * 5_000, "1." + "0" * 200])
def test_numbers_are_of_bounded_length(text: str) -> None:
    (fault,) = parse_document(f"a: {text}", "r.yaml").faults
    assert "a number of" in fault.message and len(fault.value) < 200


def test_files_that_are_no_recipes(tmp_path, monkeypatch) -> None:
    monkeypatch.chdir(tmp_path)
    cases = {"empty.yaml": b"", "list.yaml": b"- 1\n", "latin.yaml": b"a: \xff\n", "big.yaml": b"#" * (2 << 20)}
    words = {"empty.yaml": "empty", "list.yaml": "a list", "latin.yaml": "UTF-8", "big.yaml": "too large"}
    for name, content in cases.items():
        (tmp_path / name).write_bytes(content)
        with pytest.raises(UserError, match=words[name]):
            read_document(tmp_path / name)
    with pytest.raises(UserError, match="No such file"):
        read_document(tmp_path / "absent.yaml")
    with pytest.raises(UserError, match="folder"):
        read_document(tmp_path)
    assert len(cases) == 4


def test_a_byte_order_mark_is_no_key(tmp_path) -> None:
    path = tmp_path / "bom.yaml"
    path.write_bytes(b"\xef\xbb\xbfname: x\r\nseed: 1\r\n")
    assert read_document(path).values == {"name": "x", "seed": 1}


SCALARS = st.one_of(
    st.none(),
    st.booleans(),
    st.integers(-(10**12), 10**12),
    st.floats(allow_nan=False),
    st.text(alphabet=st.characters(codec="utf-8", exclude_categories=("Cs", "Cc")), max_size=12),
    st.sampled_from(
        ["off", "1e-5", "<<", "2024-01-01", "1_0", "0x1", ".inf", "~", "", "a: b", "# x", "null", "yes", "-"]
    ),
)
KEYS = st.text(alphabet="abcdefghij_<~.-01", min_size=1, max_size=6)
TREES = st.recursive(SCALARS, lambda inner: st.lists(inner, max_size=3) | st.dictionaries(KEYS, inner, max_size=3))


@settings(max_examples=300, deadline=None)
@given(TREES)
def test_what_is_dumped_reads_back_the_same(tree: object) -> None:
    assert parse_document(dump({"tree": tree}), "dump").values == {"tree": tree}


@settings(max_examples=100, deadline=None)
@given(SCALARS)
def test_one_line_is_one_line(value: object) -> None:
    assert "\n" not in one_line([value, {"a": value}])


def test_a_recipe_of_unknown_keys_alone_is_refused_key_by_key(tmp_path):
    from finetune.errors import FinetuneError
    from finetune.recipe.load import load_recipe
    from finetune.tasks import CARDS

    path = tmp_path / "a.yaml"
    path.write_text("".join(f"a{i}: x\n" for i in range(40)))
    with pytest.raises(FinetuneError, match="a39: unknown key"):
        load_recipe(path, [], CARDS, here=False)
