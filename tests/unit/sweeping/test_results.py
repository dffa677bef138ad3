"""What a sweep says at its end: a table, the best trial and those that are as good, and a page, also of one trial alone."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import pytest

from finetune.app.sweeping.halving import Decision, Observation, decide, rungs_of
from finetune.app.sweeping.results import MAX_TIES, PAGE, print_results
from finetune.app.sweeping.state import State
from finetune.app.sweeping.trials import Measure, Trial, observe
from finetune.recipe.recipe import Recipe
from finetune.tracking.journal import Journal
from finetune.tracking.run import Run

MEASURE = Measure("accuracy", "max")


def swept(folder: Path, accuracies: Sequence[float | None]) -> tuple[State, list[Observation], Decision]:
    """A sweep without halving whose trials end with these figures; None: it failed before its first step."""
    trials = [Trial(f"trial-{number:02d}", {"seed": str(number)}) for number in range(1, len(accuracies) + 1)]
    state = State(folder, "demo.yaml", {}, trials, "2026-01-01")
    for trial, accuracy in zip(trials, accuracies, strict=True):
        if accuracy is None:
            state.failures[trial.name] = "was killed by SIGKILL, perhaps for lack of memory"
            continue
        values = {"name": "demo", "task": "text_classification", "model": {"source": "m"}, "data": {"train": "t"}}
        run = Run.create(Recipe.model_validate(values), folder, path=state.path(trial))
        journal = Journal(run)
        journal.started(start_step=0, total_steps=4, steps_per_epoch=4, facts={"total_steps": 4})
        journal.row({"step": 4, "epoch": 1.0, "split": "validation", "loss": 0.5, "accuracy": accuracy})
        journal.finished(status="done", summary={"best_step": 4, "best_metric": "accuracy", "best_value": accuracy})
    seen = [observe(state.path(one), MEASURE, failed=one.name in state.failures) for one in trials]
    return state, seen, decide(seen, rungs_of(len(trials), halving=False))


def test_a_sweep_of_which_one_trial_was_evaluated_has_a_page(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    state, seen, decision = swept(tmp_path, [None, 0.75, None])
    print_results(state, seen, decision, MEASURE, [])
    said = capsys.readouterr().out
    assert "failed  trial-01: was killed by SIGKILL, perhaps for lack of memory" in said
    assert "best    trial-02: accuracy 0.7500 (seed=2)\n" in said and f"page    {tmp_path / PAGE}" in said
    page = (tmp_path / PAGE).read_text(encoding="utf-8")
    assert "Best: trial-02: accuracy 0.7500" in page and ">Trials<" in page
    assert page.count("was killed by SIGKILL") == 2 and page.count(">failed<") == 2
    assert "Equal in all of these runs" not in page and "examples are not compared" not in page


def test_trials_that_are_as_good_are_named(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    state, seen, decision = swept(tmp_path, [0.5, 0.9, 0.9, 0.8, 0.9])
    print_results(state, seen, decision, MEASURE, [])
    assert "best    trial-02: accuracy 0.9000 (seed=2); as good: trial-03, trial-05\n" in capsys.readouterr().out


def test_many_ties_are_counted(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    state, seen, decision = swept(tmp_path, [0.9] * (MAX_TIES + 3))
    print_results(state, seen, decision, MEASURE, [])
    assert "trial-05 and 2 more\n" in capsys.readouterr().out


def test_without_a_finished_trial_there_is_no_best_one(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    state, seen, decision = swept(tmp_path, [None, None])
    print_results(state, seen, decision, MEASURE, [])
    said = capsys.readouterr().out
    assert said.count("failed  trial-") == 2 and "best" not in said.replace("best accuracy", "")
    assert not (tmp_path / PAGE).exists()
