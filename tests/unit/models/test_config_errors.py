"""What a library raises for odd settings is a sentence, and its traceback is kept: the fault may be in this program."""

import pickle
from pathlib import Path

import pytest

from finetune.distributed.failure import describe_failure
from finetune.errors import UserError
from finetune.models.config import model_errors
from finetune.terminal import print_error


def broken_code() -> None:
    raise KeyError("secret-free name")


def caught() -> UserError:
    with (
        pytest.raises(UserError, match="the model some/model cannot be used: KeyError") as found,
        model_errors("some/model"),
    ):
        broken_code()
    return found.value


def test_the_traceback_is_kept_across_processes() -> None:
    error = caught()
    assert "in broken_code" in error.trace and "in broken_code" not in str(error)
    assert pickle.loads(pickle.dumps(error)).trace == error.trace


def test_the_message_names_the_file_with_the_traceback(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    monkeypatch.delenv("RANK", raising=False)
    print_error(caught())
    (file,) = tmp_path.glob("finetune-*.txt")
    assert "in broken_code" in file.read_text() and file.stat().st_mode & 0o077 == 0
    printed = capsys.readouterr().err
    assert f"the traceback is in {file}." in printed and "Traceback" not in printed


def test_a_rank_names_its_log(tmp_path: Path) -> None:
    failure = describe_failure(caught(), 1, tmp_path / "rank-1.log")
    remedy = failure.to_error().remedy
    assert remedy.endswith(f"The traceback is in {tmp_path}/rank-1.log.") and remedy.startswith("Its settings or files")


def test_an_error_of_the_user_has_none(tmp_path: Path) -> None:
    failure = describe_failure(UserError("a word is missing", remedy="Add it."), 1, tmp_path / "rank-1.log")
    assert failure.to_error().remedy == "Add it."
