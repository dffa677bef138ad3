"""What came of a sweep: a table of its trials, the best one with its command, and a page."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from finetune.app.sweeping.halving import Decision, Observation, rank
from finetune.app.sweeping.state import State
from finetune.app.sweeping.trials import Measure, steps_of
from finetune.errors import FinetuneError
from finetune.terminal import print_line, print_rows
from finetune.tracking.console import figure
from finetune.tracking.run import Run

PAGE = "sweep.html"
MAX_COMPARED = 6  # trials on the page


@dataclass(frozen=True)
class Page:
    """What the page says of all trials. lead: a sentence on the best one. rows: as in the terminal."""

    title: str
    lead: str
    columns: tuple[str, ...]
    rows: Sequence[Sequence[object]]
    notes: Sequence[str]


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
    columns = ("trial", *heads, "status", "steps", f"best {measure.metric}")
    print_rows(columns, rows, titled=True)
    for trial in state.trials:
        if trial.name in state.failures:
            print_line(f"failed  {trial.name}: {state.failures[trial.name]}")
    share = _steps(state, observations)
    if share:
        print_line(f"steps   {share}")
    best = best_of(observations, decision)
    if best is None:
        return
    trial = state.trials[best]
    value = measure.value(observations[best].score_at(1))
    lead = f"{trial.name}: {measure.metric} {figure(value) if value is not None else '?'} ({trial.describe()})"
    print_line(f"best    {lead}")
    print_line(f"run     {state.path(trial)}")
    print_line(f"model   {Run(state.path(trial)).model}")
    print_line(f"command {trial.command(state.recipe, sets)}")
    notes = [f"{name} failed: {reason}" for name, reason in state.failures.items()]
    notes += [f"{share}."] if share else []
    page = Page(f"Sweep of {Run(state.path(trial)).read().get('name', '')}", f"Best: {lead}.", columns, rows, notes)
    _write_page(state, [number for number in order if observations[number].evaluations], page)


def _steps(state: State, observations: Sequence[Observation]) -> str:
    """Of all trials, and their share of all schedules; "" where these are not known."""
    totals = [one.total_steps for one in observations if one.total_steps]
    if not totals:
        return ""
    done = sum(steps_of(state.path(trial)) for trial in state.trials)
    whole = sum(totals) * len(observations) / len(totals)  # those that never began are taken as the others
    return f"{done:,}, {done / whole:.0%} of what all trials take in full"


def _write_page(state: State, order: Sequence[int], page: Page) -> None:
    """All trials, and a comparison of the best ones; a page that cannot be made is reported, and the sweep has succeeded."""
    if len(order) < 2:
        return
    from finetune.tracking.comparison import compare_runs  # numpy, for the page alone
    from finetune.tracking.report.comparing import Overview, write_comparison

    compared = [state.path(state.trials[number]) for number in order[:MAX_COMPARED]]
    more = (
        [f"The best {len(compared)} of {len(order)} trials are compared below."] if len(order) > len(compared) else []
    )
    rows = [(_linked(state, str(row[0])), *map(str, row[1:])) for row in page.rows]
    overview = Overview(page.title, page.lead, "good", page.columns, rows, (*more, *page.notes))
    try:
        path = write_comparison(compare_runs(compared), state.folder / PAGE, overview)
    except (FinetuneError, OSError, ValueError, KeyError) as error:
        print_line(f"note: {PAGE} could not be written: {str(error).splitlines()[0]}")
        return
    print_line(f"page    {path}")


def _linked(state: State, name: str) -> str | tuple[str, str]:
    """The name of a trial, with the address of its report if it has one."""
    report = next(Run(state.path(trial)).report_file for trial in state.trials if trial.name == name)
    return (name, report.relative_to(state.folder).as_posix()) if report.is_file() else name
