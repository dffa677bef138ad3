"""Proves that --read takes what a source of a recipe takes, and refuses the rest by name."""

from __future__ import annotations

import pytest

from finetune.data.sources.read_options import asked_sources
from finetune.errors import UserError


def test_every_source_is_read_alike() -> None:
    one, other = asked_sources(["a.txt", "b.txt"], ["format=csv", "header=text, label", "limit=5", "encoding=cp1252"])
    assert (one.source, other.source) == ("a.txt", "b.txt")
    assert one.format == other.format == "csv" and one.header == ["text", "label"]
    assert one.limit == 5 and other.encoding == "cp1252"
    assert asked_sources(["-"], [])[0].source == "-"


@pytest.mark.parametrize(
    ("text", "problem"),
    [
        ("formt=csv", "did you mean format"),
        ("format", "not KEY=VALUE"),
        ("source=x", "no key 'source'"),
        ("format=exe", "format: "),
        ("encoding=klingon", "not the name of an encoding"),
        ("limit=0", "limit: "),
    ],
)
def test_what_is_no_option_is_refused(text: str, problem: str) -> None:
    with pytest.raises(UserError) as caught:
        asked_sources(["a"], [text])
    assert problem in str(caught.value) and "--read" in str(caught.value.where)


def test_twice_is_refused() -> None:
    with pytest.raises(UserError, match="split is given twice"):
        asked_sources(["a"], ["split=a", "split=b"])
