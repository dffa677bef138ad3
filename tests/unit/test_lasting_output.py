"""Attacks what is printed: readers that go away, closed and full streams, secrets in errors."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from finetune.distributed.failure import describe_failure
from finetune.errors import UserError

PRELUDE = """
import sys
from pathlib import Path
from finetune.errors import UserError
from finetune.terminal import keep_output_in, lasting_streams, print_error, print_line, say
with lasting_streams():
    keep_output_in(Path({log!r}))
    {body}
    Path({done!r}).touch()
"""
PRINT = "[print_line(f'line {index} ' + 'x' * 200) for index in range(2000)]; say('the end')"


def run(tmp_path: Path, body: str, stdout: int, stderr: int | None = None, log: str = "out.log") -> int:
    done = tmp_path / "done"
    script = PRELUDE.format(log=str(tmp_path / log), done=str(done), body=body)
    ended = subprocess.run(
        [sys.executable, "-c", script], stdout=stdout, stderr=stderr if stderr is not None else stdout, check=False
    )
    assert done.exists(), "the work went on to its end"
    return ended.returncode


def test_a_reader_that_goes_away_ends_nothing_and_the_log_has_the_lines(tmp_path: Path) -> None:
    reader, writer = os.pipe()
    os.close(reader)
    assert run(tmp_path, PRINT, writer) == 0
    os.close(writer)
    lines = (tmp_path / "out.log").read_text().splitlines()
    assert [line.split()[1] for line in lines[:-1]] == list(map(str, range(2000))) and lines[-1] == "the end"


def test_a_full_disk_under_the_output_ends_nothing(tmp_path: Path) -> None:
    with Path("/dev/full").open("w") as full:
        assert run(tmp_path, PRINT, full.fileno()) == 0
        assert "line 1999" in (tmp_path / "out.log").read_text()
        assert run(tmp_path, PRINT, full.fileno(), log="no such folder/log") == 0


def test_a_command_whose_output_is_its_result_fails_where_it_cannot_be_written(tmp_path: Path) -> None:
    command = [sys.executable, "-m", "finetune", "recipes", "list"]
    with Path("/dev/full").open("w") as full:
        ended = subprocess.run(command, stdout=full, stderr=subprocess.PIPE, text=True, check=False)
    assert ended.returncode == 1, ended
    assert ended.stderr == "error: the output could not be written: No space left on device\n"
    reader, writer = os.pipe()
    os.close(reader)
    ended = subprocess.run(command, stdout=writer, stderr=subprocess.PIPE, text=True, check=False)
    os.close(writer)
    assert (ended.returncode, ended.stderr) == (0, ""), "a reader that goes away has what it wants"


def test_streams_that_are_closed_from_the_start_end_nothing(tmp_path: Path) -> None:
    body = PRINT + "; Path('other').write_text('intact')"
    script = PRELUDE.format(log=str(tmp_path / "log"), done=str(tmp_path / "done"), body=body)
    (tmp_path / "script.py").write_text(script)
    command = f"exec {sys.executable} script.py >&- 2>&- <&-"
    assert subprocess.run(["sh", "-c", command], cwd=tmp_path, check=False).returncode == 0
    assert (tmp_path / "done").exists() and (tmp_path / "other").read_text() == "intact"


SECRET = "https://hunter2@host/a?token=hunter2"


def test_errors_hide_credentials_in_addresses(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    body = (
        f"print_error(UserError('cannot open {SECRET}', where='{SECRET}', remedy='Look at {SECRET}')); say('{SECRET}')"
    )
    run(tmp_path, body, 2)
    told = capfd.readouterr().err
    assert told.count("https://***@host/a?token=***") == 4 and "hunter2" not in told
    for error in (UserError(SECRET, where=SECRET, remedy=SECRET), RuntimeError(f"403 for {SECRET}")):
        assert "hunter2" not in str(describe_failure(error, 0, tmp_path))


@pytest.mark.parametrize(
    "arguments",
    [
        ("train", SECRET),
        ("train", "quickstart", "--set", f"data.train={SECRET}"),
        ("train", "quickstart", "--set", f"model.source={SECRET}"),
        ("evaluate", SECRET),
        ("report", SECRET),
        ("recipes", "show", SECRET),
        ("train", "quickstart", "--set", "model.config={api_key: hunter2}"),
        ("train", "quickstart", "--set", f"tracking.lr={SECRET}"),
    ],
    ids=lambda arguments: " ".join(arguments)[:40].replace("/", "-"),
)
def test_no_command_shows_a_secret_of_its_command_line(
    arguments: tuple[str, ...], capfd, monkeypatch, tmp_path
) -> None:
    from finetune.cli import main

    monkeypatch.chdir(tmp_path)
    with pytest.raises(SystemExit) as ended:
        main(list(arguments))
    told = "".join(capfd.readouterr())
    assert ended.value.code == 2 and "hunter2" not in told and len(told) > 10, told
