"""Runs in lists, their logs, and what differs between two of them."""

from __future__ import annotations

import json
import math
import threading
import time
from pathlib import Path

import numpy as np
import pytest

from finetune.app.compare import compare
from finetune.app.list_runs import list_runs
from finetune.app.report import report
from finetune.app.show_logs import show_logs
from finetune.app.sweeping.state import State
from finetune.app.sweeping.trials import Trial
from finetune.distributed.failure import Failure, write_failure
from finetune.errors import UserError
from finetune.tracking.comparison import compare_runs
from finetune.tracking.journal import Journal
from finetune.tracking.judgement.intervals import Interval
from finetune.tracking.judgement.paired import Difference
from finetune.tracking.report import write_report
from finetune.tracking.report.comparing import write_comparison
from finetune.tracking.run import Run
from finetune.tracking.run_summary import find_runs
from tests.unit.tracking.conftest import make_recipe


def trained(root: Path, *, rate: float, right: float, content: str = "abc", rows: int = 400) -> Run:
    """A finished run whose predictions are right for that share of the rows."""
    run = Run.create(make_recipe(training={"learning_rate": rate}), root)
    journal = Journal(run)
    journal.started(start_step=0, total_steps=10, steps_per_epoch=10, facts={"total_steps": 10})
    reference = [index % 2 for index in range(rows)]
    shuffled = np.random.default_rng(0).permutation(rows)
    with (run.predictions / "validation-step-00000010.jsonl").open("w", encoding="utf-8") as file:
        for index in range(rows):
            prediction = reference[index] if shuffled[index] < right * rows else 1 - reference[index]
            loss = 0.1 if prediction == reference[index] else 2.0
            row = {
                "id": rows - 1 - index,
                "prediction": prediction,
                "reference": reference[index],
                "loss": loss,
                "weight": 1,
            }
            file.write(json.dumps(row) + "\n")
    loss = 0.1 * right + 2.0 * (1 - right)
    journal.row({"step": 10, "epoch": 1.0, "split": "validation", "loss": loss, "accuracy": right, "time": 0.0})
    journal.finished(
        status="done", summary={"best_step": 10, "best_metric": "accuracy", "best_value": right, "steps": 10}
    )
    run.update(data={"validation": {"rows": rows, "content": content}})
    return run


def test_runs_are_listed_with_status_and_best_figure(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    good = trained(tmp_path, rate=1e-3, right=0.9)
    broken = tmp_path / "other" / "x"
    broken.mkdir(parents=True)
    (broken / "run.json").write_text("{", encoding="utf-8")
    found = {run.path: run for run in find_runs(tmp_path)}
    assert (found[good.path].status, found[good.path].metric, found[good.path].value) == ("done", "accuracy", 0.9)
    assert (found[good.path].step, found[good.path].total) == (10, 10) and found[broken].status == "damaged"
    list_runs(tmp_path, "done")
    lines = capsys.readouterr().out.splitlines()
    assert len(lines) == 2 and "accuracy 0.9000" in lines[1] and "10/10" in lines[1] and "just now" in lines[1]
    list_runs(tmp_path, "stopped")
    assert "no runs in" in capsys.readouterr().out


def failed(folder: Path, why: str) -> Run:
    """A run that a rank's error ended."""
    run = Run.create(make_recipe(), folder)
    Journal(run).finished(status="failed", summary={"failure": why})
    write_failure(run.logs, Failure(0, 1.0, why, "step 2", "Lower the learning rate.", 1, echo=False))
    return run


def test_runs_that_failed_say_why_in_list_logs_and_report(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """The logs of an error that has a remedy are empty: the reason is in files that nobody opens."""
    run = failed(tmp_path, "the loss is nan")
    run.update(data={"validation": {"rows": 4, "content": "abc"}})
    (run.logs / "rank-0.log").write_text("a\n", encoding="utf-8")
    for status in ("", "failed"):
        list_runs(tmp_path, status)
        assert f"failed  {run.path}: the loss is nan" in capsys.readouterr().out.splitlines()
    shown: list[str] = []
    show_logs(run.path, rank=None, lines=1, follow=True, write=shown.append)
    assert shown == ["a", "failed: rank 0, step 2: the loss is nan\n  Lower the learning rate."]
    page = write_report(run.path).read_text(encoding="utf-8")
    assert "Failed: the loss is nan" in page and "What next" not in page, (
        "it has validation data: no advice to add some"
    )
    run.update(status="running", process=None)
    list_runs(tmp_path, "")
    assert "the loss is nan" not in capsys.readouterr().out, "it was started again"


def test_trials_of_sweeps_are_pointed_to(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """A trial that failed before its run began is known to the sweep alone."""
    sweep = tmp_path / "runs/my-sweeps/20260101"
    trials = [Trial(f"trial-0{number}", {"seed": str(number)}) for number in (1, 2)]
    run = failed(tmp_path / "elsewhere", "the loss is nan")
    sweep.mkdir(parents=True)
    run.path.rename(sweep / "trial-01")
    failures = {"trial-01": "the loss is nan", "trial-02": "was killed\nby SIGKILL"}
    State(sweep, "my.yaml", {}, trials, "2026-01-01", failures).publish()
    for folder in (sweep, sweep.parent):
        list_runs(folder, "")
        told = [line for line in capsys.readouterr().out.splitlines() if line.startswith("failed")]
        assert told == [
            f"failed  {sweep}/trial-01: the loss is nan",
            f"failed  {sweep}/trial-02: was killed by SIGKILL",
        ]
    (sweep / "trial-02").mkdir()
    list_runs(sweep / "trial-02", "")
    assert f"failed  {sweep}/trial-02: was killed by SIGKILL" in capsys.readouterr().out
    list_runs(tmp_path / "runs", "")
    assert f"1 run deeper in {sweep.parent}: finetune runs {sweep.parent}" in capsys.readouterr().out


def test_a_run_that_lost_its_run_json_is_listed_as_damaged(tmp_path: Path) -> None:
    run = trained(tmp_path, rate=1e-3, right=0.9)
    run.recipe_file.write_text("name: x\n", encoding="utf-8")
    run.file.unlink()
    (tmp_path / "other").mkdir()
    (tmp_path / "other" / "metrics.jsonl").write_text("", encoding="utf-8")  # of another program
    (found,) = find_runs(tmp_path)
    assert (found.path, found.status) == (run.path, "damaged") and found.age < 600


def test_rows_that_cannot_be_read_are_counted(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """A cell left empty says nothing of why; a last line that a crash cut off is no damage."""
    whole, torn = trained(tmp_path, rate=1e-3, right=0.9), trained(tmp_path, rate=1e-3, right=0.9)
    row = whole.metrics_file.read_bytes()
    torn.metrics_file.write_bytes(b"\xff\n" + row + b'{"step": 1e99}\n[]\n{"st')
    assert compare_runs([whole.path, torn.path]).notes == (
        f"{torn.path.name}: 3 of 5 lines are no rows (the first is line 1) of metrics.jsonl, and left out",
    )
    torn.metrics_file.unlink()
    assert compare_runs([whole.path, torn.path]).notes == (f"{torn.path.name} has no metrics.jsonl",)
    whole.metrics_file.write_bytes(row + row.replace(b"{", b"", 1))
    report(whole.path)
    assert "note: 1 of 2 lines is no row (the first is line 2) of" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("name", "status", "what"),
    [
        ("nuns", "", "no such folder"),
        ("runs/file", "", "is not a folder"),
        ("runs", "finished", "there is no status 'finished'"),
    ],
)
def test_runs_of_what_is_no_folder_or_no_status_are_refused(tmp_path: Path, name: str, status: str, what: str) -> None:
    (tmp_path / "runs").mkdir()
    (tmp_path / "runs" / "file").touch()
    with pytest.raises(UserError) as refused:
        list_runs(tmp_path / name, status)
    assert refused.value.what == what
    assert name != "nuns" or str(tmp_path / "runs") in refused.value.remedy


def test_before_the_first_run_there_are_none(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    list_runs(Path("runs"), "")
    assert "no runs in runs" in capsys.readouterr().out


def test_the_logs_of_one_rank_and_of_all(tmp_path: Path) -> None:
    run = trained(tmp_path, rate=1e-3, right=0.9)
    (run.logs / "rank-0.log").write_text("a\nb\nc\n", encoding="utf-8")
    (run.logs / "rank-1.log").write_text("d\n", encoding="utf-8")
    shown: list[str] = []
    show_logs(run.path, rank=0, lines=2, follow=False, write=shown.append)
    assert shown == ["b", "c"]
    show_logs(run.path, rank=None, lines=1, follow=True, write=shown.append)  # it is done, so it ends
    assert shown[2:] == ["==> rank-0.log <==", "c", "==> rank-1.log <==", "d"]
    with pytest.raises(UserError, match="no log of rank 7") as error:
        show_logs(run.path, rank=7, lines=1, follow=False)
    assert "rank-0, rank-1" in str(error.value)


def test_an_empty_log_says_so(tmp_path: Path) -> None:
    run = trained(tmp_path, rate=1e-3, right=0.9)
    (run.logs / "rank-0.log").write_text("", encoding="utf-8")
    shown: list[str] = []
    show_logs(run.path, rank=None, lines=5, follow=True, write=shown.append)
    assert shown == ["rank-0.log is empty: nothing was printed there"]
    (run.logs / "rank-1.log").write_text("d\n", encoding="utf-8")
    show_logs(run.path, rank=None, lines=5, follow=False, write=shown.append)
    assert shown[1:] == ["==> rank-0.log <==", "(empty)", "==> rank-1.log <==", "d"]


def test_new_lines_of_a_running_run_are_followed_until_it_ends(tmp_path: Path) -> None:
    run = Run.create(make_recipe(), tmp_path)
    log = run.logs / "rank-0.log"
    log.write_text("first\n", encoding="utf-8")

    def work() -> None:
        time.sleep(0.4)
        with log.open("a", encoding="utf-8") as file:
            file.write("second\nhalf")
        time.sleep(0.4)
        run.update(status="done", process=None)

    worker = threading.Thread(target=work)
    worker.start()
    shown: list[str] = []
    show_logs(run.path, rank=0, lines=5, follow=True, write=shown.append)
    worker.join()
    assert shown == ["first", "second", "half"], "what was printed last is shown when the run has ended"


def test_what_differs_between_two_runs(tmp_path: Path) -> None:
    one, other = trained(tmp_path, rate=1e-3, right=0.8), trained(tmp_path, rate=3e-3, right=0.9)
    found = compare_runs([one.path, other.path])
    assert found.recipe == {"training.learning_rate": ("0.001", "0.003")} and not found.data
    assert found.figures["accuracy"] == (0.8, 0.9) and found.examples == 400
    accuracy = next(one for one in found.differences if one.metric == "accuracy")
    assert accuracy.value == pytest.approx(0.1) and accuracy.certain and accuracy.interval is not None
    half = 1.96 * math.sqrt(
        0.1 * 0.9 / 400
    )  # 1 of 10 examples changed: paired, so narrower than two intervals together
    assert accuracy.interval.high - accuracy.interval.low == pytest.approx(2 * half, rel=0.15)
    assert found.wins is not None and (found.wins.first, found.wins.second, found.wins.ties) == (0, 40, 360)
    assert len(found.wins.gains) == 10 and found.wins.gains[0][1:] == (2.0, 0.1) and not found.wins.setbacks
    page = write_comparison(found, tmp_path / "compared.html").read_text(encoding="utf-8")
    assert "training.learning_rate" in page and "2 runs compared" in page and "40" in page
    equal = compare_runs([one.path, one.path])
    assert not equal.recipe and {difference.describe() for difference in equal.differences} == {"no difference"}


@pytest.mark.parametrize(
    ("second", "interval", "said"),
    [
        (0.75, Interval(0.125, 0.375), "+0.25 (+0.125 to +0.375)"),
        (0.75, Interval(-0.125, 0.625), "+0.25 (-0.125 to +0.625), may be chance"),
        (0.75, None, "+0.25"),
        (0.5, Interval(-0.125, 0.125), "no difference (-0.125 to +0.125)"),
        (0.5, Interval(0.0, 0.0), "no difference"),
        (0.5, None, "no difference"),
    ],
)
def test_equal_figures_are_no_difference_and_no_chance(second: float, interval: Interval | None, said: str) -> None:
    assert Difference("accuracy", 0.5, second, interval).describe() == said


def test_what_cannot_be_compared_is_said(tmp_path: Path) -> None:
    one, other = trained(tmp_path, rate=1e-3, right=0.8), trained(tmp_path, rate=1e-3, right=0.9, content="other")
    found = compare_runs([one.path, other.path])
    assert found.data == {"validation content": ("abc", "other")} and found.wins is None
    assert "different data" in found.notes[0]
    with pytest.raises(UserError, match="at least two"):
        compare([one.path], None)


@pytest.mark.parametrize("odd", ["", None, 1.5, [1], 10**30])
def test_ids_that_are_none_are_said_to_be_unreadable(tmp_path: Path, odd: object) -> None:
    one, other = (trained(tmp_path, rate=1e-3, right=right, rows=4) for right in (0.5, 1.0))
    path = one.predictions / "validation-step-00000010.jsonl"
    first, *rest = path.read_text().splitlines()
    path.write_text("\n".join([json.dumps({**json.loads(first), "id": odd}), *rest]) + "\n")
    assert "cannot be read" in compare_runs([one.path, other.path]).notes[0]


def test_the_report_of_a_group_lists_its_runs_the_best_first(tmp_path: Path) -> None:
    runs = [trained(tmp_path, rate=rate, right=right) for rate, right in ((1e-3, 0.7), (1e-4, 0.9), (1e-5, 0.8))]
    write_report(runs[0].path)
    broken = tmp_path / "demo" / "broken"
    broken.mkdir()
    (broken / "run.json").write_text("{", encoding="utf-8")
    path = report(tmp_path / "demo")
    page = path.read_text(encoding="utf-8")
    assert path == tmp_path / "demo" / "report.html" and "demo: 4 runs" in page and "1 run cannot be read" in page
    order = [page.index(runs[number].path.name) for number in (1, 2, 0)]
    assert order == sorted(order) and f"Best: {runs[1].path.name}, accuracy 0.9000." in page
    assert f'<a href="{runs[0].path.name}/report.html">' in page and page.count("<a href") == 1
    assert "training.learning_rate" in page and page.count("<svg") == 2


def test_a_run_that_is_not_done_shows_its_best_evaluation_of_the_chosen_metric(tmp_path: Path) -> None:
    run = Run.create(make_recipe(evaluation={"best": "accuracy"}), tmp_path)
    journal = Journal(run)
    journal.started(start_step=0, total_steps=30, steps_per_epoch=10, facts={"total_steps": 30})
    for step, accuracy in ((0, 0.99), (10, 0.8), (20, 0.6)):  # step 0: before training (evaluation.at_start)
        figures = {"loss": 1.0, "accuracy": accuracy}
        journal.row({"step": step, "epoch": step / 10, "split": "validation", **figures, "time": 0.0})
    (found,) = find_runs(tmp_path)
    assert (found.metric, found.value, found.step) == ("accuracy", 0.8, 20)
    run.checkpoints.mkdir(exist_ok=True)
    for latest, step in (("step-00000023", 23), ("step-x", 20), ("step-" + "9" * 99, 20)):  # saved when it was stopped
        (run.checkpoints / "latest").write_text(latest)
        assert [one.step for one in find_runs(tmp_path)] == [step]


def test_runs_of_different_tasks_are_said_to_be_such(tmp_path: Path) -> None:
    one, other, third = (trained(tmp_path, rate=rate, right=0.8) for rate in (1e-3, 2e-3, 3e-3))
    recipe = other.recipe_file.read_text("utf-8")
    assert "task: text_classification" in recipe
    other.recipe_file.write_text(recipe.replace("task: text_classification", "task: sequence_regression"), "utf-8")
    found = compare_runs([one.path, other.path, third.path])
    (note,) = found.notes
    assert f"text_classification: {one.path.name}, {third.path.name}; sequence_regression: {other.path.name}" in note
    assert found.wins is None and not found.differences
    assert not any("tasks" in note for note in compare_runs([one.path, third.path]).notes)


def test_equal_runs_are_called_equal_and_in_what(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    one, other = trained(tmp_path, rate=1e-3, right=0.8), trained(tmp_path, rate=3e-3, right=0.8)
    names = f"{one.path.name} and {other.path.name} are equal"
    compare([one.path, other.path], tmp_path / "page.html")
    said = f"{names}, the loss of each example bit for bit"
    assert f"400 validation examples: {said}\n" in capsys.readouterr().out
    assert f"<p>{said}.</p>" in (tmp_path / "page.html").read_text(encoding="utf-8")
    file = other.predictions / "validation-step-00000010.jsonl"
    rows = [json.loads(line) for line in file.read_text(encoding="utf-8").splitlines()]
    rows[0]["loss"] += 5e-7  # as another number of ranks rounds
    file.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    compare([one.path, other.path], None)
    assert f"{names}: no loss differs by more than 1e-06 per unit, 399 are equal bit for bit" in capsys.readouterr().out
    rows[0]["loss"] += 1
    file.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    compare([one.path, other.path], None)
    assert f"{other.path.name} has the lower loss on 0, {one.path.name} on 1, equal on 399" in capsys.readouterr().out
