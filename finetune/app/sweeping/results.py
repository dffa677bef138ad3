"""What came of a sweep: a table of its trials, the best one with its command, and a page."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from finetune.app.sweeping.halving import Decision, Observation, rank
from finetune.app.sweeping.state import State
from finetune.app.sweeping.trials import Measure, steps_of
from finetune.errors import FinetuneError
from finetune.terminal import print_line, print_rows
from finetune.tracking.console import figure
from finetune.tracking.run import Run

PAGE = "sweep.html"
MAX_COMPARED = 6  # trials on the page


def best_of(observations: Sequence[Observation], decision: Decision) -> int | None:
    """The best trial that finished; None if there is none."""
    return next((one for one in rank(observations, decision) if observations[one].finished), None)


def print_results(
    state: State, observations: Sequence[Observation], decision: Decision, measure: Measure, sets: Sequence[str]
) -> None:
    """The table, the best trial, and the page. Failures are listed with their reasons."""
    order = rank(observations, decision)
    keys = list(state.trials[0].values)
    short = [key.rpartition(".")[2] for key in keys]
    heads = keys if len(set(short)) < len(short) else short
    rows = []
    for number in order:
        trial, seen = state.trials[number], observations[number]
        status = "failed" if seen.failed else "done" if seen.finished else "paused" if seen.evaluations else "waiting"
        value = measure.value(seen.score_at(1)) if seen.evaluations else None
        done = steps_of(state.path(trial))
        steps = f"{done:,}/{seen.total_steps:,}" if seen.total_steps else ""
        shown = figure(value) if value is not None else ""
        rows.append((trial.name, *(trial.values[key] for key in keys), status, steps, shown))
    print_rows(("trial", *heads, "status", "steps", f"best {measure.metric}"), rows, titled=True)
    for trial in state.trials:
        if trial.name in state.failures:
            print_line(f"failed  {trial.name}: {state.failures[trial.name]}")
    _print_steps(state, observations)
    best = best_of(observations, decision)
    if best is None:
        return
    trial = state.trials[best]
    value = measure.value(observations[best].score_at(1))
    print_line(
        f"best    {trial.name}: {measure.metric} {figure(value) if value is not None else '?'} ({trial.describe()})"
    )
    print_line(f"run     {state.path(trial)}")
    print_line(f"model   {Run(state.path(trial)).model}")
    print_line(f"command {trial.command(state.recipe, sets)}")
    _write_page(state, [number for number in order if observations[number].evaluations])


def _print_steps(state: State, observations: Sequence[Observation]) -> None:
    """Of all schedules, where they are known."""
    totals = [one.total_steps for one in observations if one.total_steps]
    if totals:
        done = sum(steps_of(state.path(trial)) for trial in state.trials)
        whole = sum(totals) * len(observations) / len(totals)  # those that never began are taken as the others
        print_line(f"steps   {done:,}, {done / whole:.0%} of what all trials take in full")


def _write_page(state: State, order: Sequence[int]) -> None:
    """Of the best trials; a page that cannot be made is reported, and the sweep has succeeded."""
    if len(order) < 2:
        return
    from finetune.tracking.comparison import compare_runs  # numpy, for the page alone
    from finetune.tracking.report.comparing import write_comparison

    compared = [state.path(state.trials[number]) for number in order[:MAX_COMPARED]]
    try:
        page: Path = write_comparison(compare_runs(compared), state.folder / PAGE)
    except (FinetuneError, OSError, ValueError, KeyError) as error:
        print_line(f"note: {PAGE} could not be written: {str(error).splitlines()[0]}")
        return
    more = f" (the best {len(compared)} of {len(order)} trials)" if len(order) > len(compared) else ""
    print_line(f"page    {page}{more}")
