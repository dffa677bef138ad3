"""Tests the reader of CoNLL files: sentences, columns, comments, and bad lines reported with their line numbers."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from finetune.data.bad_rows import BadRow
from finetune.data.formats.conll import read_conll
from finetune.data.formats.registry import format_of
from finetune.recipe.data import SourceSection


def _read(path: Path, content: bytes, **source: Any) -> list[tuple[int, Any]]:
    path.write_bytes(content)
    rows = read_conll(path, SourceSection(source=str(path), **source))
    return [(line, str(row) if isinstance(row, BadRow) else row) for line, row in rows]


def test_words_and_tags_between_blank_lines(tmp_path: Path) -> None:
    content = b"# a comment\nAnn\tB-per\nleft\tO\n\n\n#tag\tO\r\n \t\n\nRome\tB-loc"
    assert _read(tmp_path / "a.conll", content) == [
        (2, {"tokens": ["Ann", "left"], "tags": ["B-per", "O"]}),
        (6, {"tokens": ["#tag"], "tags": ["O"]}),
        (9, {"tokens": ["Rome"], "tags": ["B-loc"]}),
    ]


def test_columns_of_conll_2003(tmp_path: Path) -> None:
    content = b"-DOCSTART- -X- -X- O\n\nEU NNP B-NP B-ORG\nrejects VBZ B-VP O\n"
    path = tmp_path / "a.conll"
    assert _read(path, content) == [(3, {"tokens": ["EU", "rejects"], "tags": ["B-ORG", "O"]})]
    named = _read(path, content, header=["tokens", "tags", "chunk", "ner"])
    assert named == [
        (
            3,
            {
                "tokens": ["EU", "rejects"],
                "tags": ["NNP", "VBZ"],
                "chunk": ["B-NP", "B-VP"],
                "ner": ["B-ORG", "O"],
            },
        )
    ]


def test_columns_of_conll_u(tmp_path: Path) -> None:
    content = (
        b"# sent_id = 1\n# text = Don't go\n1-2\tDon't\t_\t_\t_\t_\t_\t_\t_\t_\n1\tDo\tdo\tAUX\tVBP\t_\t3\taux\t_\t_\n"
        b"2\tn't\tnot\tPART\tRB\t_\t3\tadvmod\t_\t_\n2.1\te\t_\t_\t_\t_\t_\t_\t_\t_\n3\tgo\tgo\tVERB\tVB\t_\t0\troot\t_\t_\n"
    )
    ((line, row),) = _read(tmp_path / "a.conllu", content)
    assert line == 4 and row["tokens"] == ["Do", "n't", "go"] and row["upos"] == ["AUX", "PART", "VERB"]
    assert list(row)[3:5] == ["upos", "xpos"] and format_of(tmp_path / "a.conllu") == "conll"


def test_a_bad_line_is_reported_and_only_its_sentence_left_out(tmp_path: Path) -> None:
    content = b"Ann\tO\n\nleft\tO\nRome\nnow\tO\n\n\xffx\tO\n\nback\tO\n"
    rows = _read(tmp_path / "a.conll", content)
    assert [line for line, _ in rows] == [1, 4, 7, 9]
    assert rows[1][1] == "expected 2 columns, but found 1: 'Rome'"
    assert "not UTF-8" in rows[2][1] and rows[3][1] == {"tokens": ["back"], "tags": ["O"]}


def test_words_without_tags(tmp_path: Path) -> None:
    assert _read(tmp_path / "a.conll", b"Ann\nleft\n") == [(1, {"tokens": ["Ann", "left"]})]
