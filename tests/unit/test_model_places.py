"""Proves that a model or data that is nowhere is named before torch is imported, and that what is there is let through."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from finetune.app.model_places import check_export, check_places
from finetune.errors import UserError
from finetune.tracking.run import Run

SCRIPT = """
import sys
from finetune.errors import UserError
from finetune.app.predict import predict
from finetune.app.predict_options import PredictOptions
from pathlib import Path
try:
    predict(options=PredictOptions("owner/name", ("there.jsonl", "absent.jsonl"), Path("answers.jsonl")))
except UserError as error:
    print(error.where, error.what, sorted({"torch", "transformers"} & set(sys.modules)))
"""


@pytest.fixture
def there(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "there.jsonl").write_text('{"text": "a"}\n')
    (tmp_path / "pictures").mkdir()
    (tmp_path / "one.jpg").touch()
    (tmp_path / "a[1].csv").touch()
    return tmp_path


def test_predict_names_absent_data_without_torch(there: Path) -> None:
    root = str(Path(__file__).resolve().parents[2])
    done = subprocess.run([sys.executable, "-c", SCRIPT], env={"PYTHONPATH": root}, capture_output=True, text=True)
    assert done.stdout == "absent.jsonl no such file []\n", done.stderr
    assert not list(there.glob("answers*"))


def test_predict_names_an_output_of_no_known_format_without_torch(there: Path) -> None:
    root = str(Path(__file__).resolve().parents[2])
    script = SCRIPT.replace("absent.jsonl", "there.jsonl").replace("answers.jsonl", "answers.txt")
    done = subprocess.run([sys.executable, "-c", script], env={"PYTHONPATH": root}, capture_output=True, text=True)
    what = "the extension '.txt' says no format that answers are written in"
    assert done.stdout == f"--output answers.txt {what} []\n", done.stderr
    assert not list(there.glob("answers*"))


@pytest.mark.parametrize(
    ("model", "data", "what"),
    [
        ("owner/name", ["absent/a.csv"], "no such file, and its folder does not exist"),
        ("owner/name", ["absent*.csv"], "no file matches"),
        ("./absent", ["there.jsonl"], "no such folder"),
        ("there.jsonl", ["there.jsonl"], "is a file, not the folder of a model"),
        ("package:absent/model", ["there.jsonl"], "the package absent is not installed (package:absent/model)"),
    ],
)
def test_what_is_nowhere_is_refused(there: Path, model: str, data: list[str], what: str) -> None:
    with pytest.raises(UserError) as refused:
        check_places(model, data)
    assert refused.value.what == what


def test_what_is_there_or_may_be_elsewhere_is_let_through(there: Path) -> None:
    names = [
        "-",
        "there.jsonl",
        "there*",
        "pictures",
        "one.jpg",
        "*.jpg",
        "a[1].csv",
        "builtin:digits",
        "owner/dataset",
    ]
    check_places("owner/name", names)


VERBS = {
    "serve": ["serve", "{}"],
    "predict": ["predict", "{}", "--data", "there.jsonl", "--output", "answers.jsonl"],
    "chat": ["chat", "{}"],
    "evaluate": ["evaluate", "{}"],
    "export": ["export", "{}", "--output", "out"],
    "report": ["report", "{}"],
    "logs": ["logs", "{}"],
    "compare": ["compare", "{}", "{}"],
}
CALL = """
import sys
from finetune import cli
try:
    cli.main(sys.argv[1:])
finally:
    print(sorted({"torch", "transformers"} & set(sys.modules)))
"""


@pytest.mark.parametrize("verb", VERBS)
def test_a_folder_of_something_else_is_described_without_torch(there: Path, verb: str) -> None:
    root = str(Path(__file__).resolve().parents[2])
    (there / "empty").mkdir()
    (there / "notes").mkdir()
    for number in range(10):
        (there / "notes" / f"{number}.txt").touch()
    expected = "config.json" if verb in ("serve", "predict", "chat") else "run.json"
    for folder, holds in (("empty", "It is empty."), ("notes", "It holds 0.txt, 1.txt, 2.txt,")):
        words = [word.format(folder) for word in VERBS[verb]]
        environment = {"PYTHONPATH": root, "PATH": "/usr/bin:/bin"}
        done = subprocess.run([sys.executable, "-c", CALL, *words], env=environment, capture_output=True, text=True)
        assert done.returncode == 2, done.stderr
        assert done.stdout == "[]\n", "torch was imported"
        assert f"error: {folder}: " in done.stderr and expected in done.stderr and holds in done.stderr, done.stderr
        assert folder == "empty" or "7.txt and 2 more. " in done.stderr


def test_the_folder_of_an_adapter_is_let_through(there: Path) -> None:
    (there / "adapter").mkdir()
    (there / "adapter" / "adapter_config.json").write_text("{}")
    check_places("adapter")
    with pytest.raises(UserError, match=r"no config\.json") as refused:
        check_places(str(there))
    assert refused.value.remedy == "Did you mean the folder adapter inside it?"


def test_an_export_into_a_file_is_refused(there: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Run, "open", lambda run: None)
    check_export(there, there / "new" / "folder")
    check_export(there, Path("pictures"))
    for output in ("there.jsonl", "there.jsonl/model"):
        with pytest.raises(UserError) as refused:
            check_export(there, Path(output))
        assert str(refused.value) == "there.jsonl: is not a folder\n  Give a new folder as --output."
