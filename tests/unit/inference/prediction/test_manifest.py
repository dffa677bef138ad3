"""Proves that an output goes on only with the command that began it, and that another one is refused with what differs."""

from __future__ import annotations

import os
import subprocess
import sys
from dataclasses import replace

import pytest

from finetune.errors import UserError
from finetune.inference.prediction.manifest import Manifest, begin_or_resume, check_output, only_one
from finetune.inference.prediction.parts import Parts, publish
from finetune.inference.prediction.state import State

ASKED = Manifest(["new.jsonl"], [["digest"]], "runs/a/1 (step-10)", "abc", {"top_k": 1, "keep": []}, 2048, 8192)


def begun(tmp_path, state=None):
    parts = Parts(tmp_path / "out.jsonl")
    assert begin_or_resume(parts, ASKED, resumable=True) == State()
    (state or State(windows=2, rows=16384, position=100)).save(parts.state)
    parts.output.write_text("x" * 100)
    return parts


def test_the_same_command_goes_on(tmp_path):
    moved = replace(ASKED, sources=["../there/new.jsonl"])
    assert begin_or_resume(begun(tmp_path), moved, resumable=True).rows == 16384
    Parts(tmp_path / "out.jsonl").output.unlink()
    Parts(tmp_path / "out.jsonl").state.unlink()
    assert begin_or_resume(begun(tmp_path), replace(ASKED), resumable=True).rows == 16384


@pytest.mark.parametrize(
    ("changed", "words"),
    [
        ({"sources": ["other.jsonl"], "identity": [["o"]]}, "the data is other.jsonl, and was new.jsonl"),
        ({"identity": [["other"]]}, "the content of new.jsonl has changed"),
        ({"digest": "abd"}, "the weights or settings of runs/a/1 (step-10) have changed"),
        ({"digest": "abd", "model": "b"}, "the model is b, and was runs/a/1 (step-10)"),
        ({"options": {"top_k": 3, "keep": []}}, "--top-k is 3, and was 1"),
        (
            {"options": {"top_k": 1, "keep": ["id"]}, "identity": [["kept"]]},
            "another command: --keep is ['id'], and was []",
        ),
        ({"options": {"top_k": 1, "keep": [], "tile": 640}}, "--tile is 640, and was None"),
        ({"budget": 10}, "the size of chunks is 10, and was 2048"),
        ({"version": "0"}, "finetune is 0"),
    ],
)
def test_another_command_is_told_what_differs(tmp_path, changed, words):
    parts = begun(tmp_path)
    with pytest.raises(UserError) as refused:
        begin_or_resume(parts, replace(ASKED, **changed), resumable=True)
    assert words in refused.value.what and str(parts.folder) in refused.value.remedy
    assert begin_or_resume(parts, ASKED, resumable=True).rows == 16384, "the refusal changed nothing"


def test_where_nothing_is_answered_yet_another_command_begins(tmp_path):
    parts = begun(tmp_path, State())
    parts.output.write_text("")
    (parts.window(0)).mkdir()
    assert begin_or_resume(parts, replace(ASKED, digest="new"), resumable=True) == State()
    assert parts.windows() == []
    parts.window(0).mkdir()
    publish(parts.answers((0, 3)), b"{}\n")
    with pytest.raises(UserError, match="begun by another command"):
        begin_or_resume(parts, ASKED, resumable=True)


def test_a_file_that_is_not_ours_is_never_touched(tmp_path):
    (tmp_path / "out.jsonl").write_text("mine")
    for call in (check_output, lambda parts: begin_or_resume(parts, ASKED, resumable=True)):
        with pytest.raises(UserError, match="exists already"):
            call(Parts(tmp_path / "out.jsonl"))
    assert (tmp_path / "out.jsonl").read_text() == "mine" and not Parts(tmp_path / "out.jsonl").manifest.exists()


@pytest.mark.parametrize("suffix", [".jsonl", ".csv", ".parquet"])
@pytest.mark.parametrize("answered", [False, True])
def test_a_file_that_was_put_there_before_the_first_row_was_written_is_not_touched(tmp_path, suffix, answered):
    parts = Parts(tmp_path / f"out{suffix}")
    begin_or_resume(parts, ASKED, resumable=True)
    if answered:
        parts.window(0).mkdir()
        publish(parts.answers((0, 3)), b"{}\n")
    parts.output.write_bytes(b"mine\n")
    for asked in (ASKED, *([] if answered else [replace(ASKED, digest="new")])):
        with pytest.raises(UserError, match="no prediction of ours has written"):
            begin_or_resume(parts, asked, resumable=True)
    assert parts.output.read_bytes() == b"mine\n"
    parts.output.write_bytes(b"")
    assert begin_or_resume(parts, ASKED, resumable=True) == State()


@pytest.mark.parametrize(("name", "rows"), [("out.jsonl", b'{"row": 0, "lab'), ("out.csv", b"row,label\n0,good\n1,b")])
def test_rows_that_a_killed_start_wrote_before_its_state_are_no_obstacle(tmp_path, name, rows):
    parts = Parts(tmp_path / name)
    begin_or_resume(parts, ASKED, resumable=True)
    parts.output.write_bytes(rows)
    with pytest.raises(UserError, match="no prediction of ours has written"):  # nothing was answered, so by whom?
        begin_or_resume(parts, ASKED, resumable=True)
    parts.window(0).mkdir()
    publish(parts.answers((0, 0)), b"{}\n")
    assert begin_or_resume(parts, ASKED, resumable=True) == State()
    header = Parts(tmp_path / "header.csv")
    begin_or_resume(header, ASKED, resumable=True)
    header.output.write_bytes(b"row,label,error_kind,error_message\n")
    assert begin_or_resume(header, replace(ASKED, digest="new"), resumable=True) == State()


def test_what_is_no_window_is_left_alone(tmp_path):
    parts = begun(tmp_path, State())
    strays = [parts.folder / name for name in ("window-x", "window-1", "window-00000001.bak")]
    for path in strays:
        path.mkdir()
        (path / "00000.answers").touch()
    (parts.folder / "window-00000007").write_text("a file")
    parts.window(3).mkdir()
    assert parts.windows() == [3] and not parts.has_answers()
    parts.output.write_text("")
    begin_or_resume(parts, ASKED, resumable=True)
    assert parts.windows() == [] and all(path.is_dir() for path in strays)


def test_an_output_that_was_removed_is_missed(tmp_path):
    parts = begun(tmp_path)
    parts.output.unlink()
    with pytest.raises(UserError, match="16,384 rows were written to it"):
        begin_or_resume(parts, ASKED, resumable=True)


@pytest.mark.parametrize("name", ["manifest", "state"])
def test_what_was_edited_is_not_believed(tmp_path, name):
    parts = begun(tmp_path)
    path = getattr(parts, name)
    path.write_text(path.read_text().replace("8192", "9192").replace("16384", "8192"))
    with pytest.raises(UserError, match="cannot be read: it was edited"):
        begin_or_resume(parts, ASKED, resumable=True)


def test_links_and_pipes_beside_the_output_are_not_followed(tmp_path):
    parts = begun(tmp_path)
    elsewhere = tmp_path / "elsewhere"
    elsewhere.mkdir()
    (parts.folder / "rows").symlink_to(elsewhere)
    for call in (check_output, lambda one: only_one(one).__enter__()):
        with pytest.raises(UserError, match="leads out of it"):
            call(parts)
    (parts.folder / "rows").unlink()
    os.mkfifo(parts.folder / "rows")
    with pytest.raises(UserError, match="neither a file nor a folder"):
        check_output(parts)
    assert list(elsewhere.iterdir()) == []


def test_standard_input_cannot_be_resumed(tmp_path):
    parts = begun(tmp_path)
    with pytest.raises(UserError, match="standard input was answered in part, and cannot be read again"):
        begin_or_resume(parts, ASKED, resumable=False)


@pytest.mark.parametrize("rows", [0, 16384])
def test_another_standard_input_is_not_taken_for_the_one_that_is_answered(tmp_path, rows):
    parts = begun(tmp_path, State(windows=2 if rows else 0, rows=rows, finished=True))
    before = parts.output.read_bytes()
    with pytest.raises(UserError, match="whether this is the same is not known: nothing is read") as refused:
        begin_or_resume(parts, ASKED, resumable=False)
    assert str(parts.folder) in refused.value.remedy and parts.output.read_bytes() == before


def test_one_process_writes_an_output(tmp_path):
    parts = Parts(tmp_path / "out.jsonl")
    with only_one(parts), pytest.raises(UserError, match="another process is writing it"), only_one(parts):
        pass
    with only_one(parts):
        pass


def test_the_process_that_starts_the_ranks_imports_no_heavy_library():
    """It is there before the ranks are, and ends within a second of Ctrl-C."""
    probe = (
        "import sys, finetune.app.predict; print([n for n in ('torch', 'transformers', 'numpy') if n in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", probe], capture_output=True, text=True, check=True)
    assert done.stdout == "[]\n"
