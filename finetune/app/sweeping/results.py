"""What came of a sweep: a table of its trials, the best one with its command, and a page."""

from __future__ import annotations

from collections.abc import Sequence

from finetune.app.sweeping.halving import Decision, Observation, rank
from finetune.app.sweeping.state import State
from finetune.app.sweeping.trials import Measure, steps_of
from finetune.errors import FinetuneError
from finetune.terminal import print_line, print_rows
from finetune.tracking.run import Run
from finetune.units import format_figure

PAGE = "sweep.html"
MAX_COMPARED = 6  # trials on the page
MAX_TIES = 4  # trials as good as the best that are named


def best_of(observations: Sequence[Observation], decision: Decision) -> int | None:
    """The best trial that finished; None if there is none."""
    return next((one for one in rank(observations, decision) if observations[one].finished), None)


def print_results(
    state: State, observations: Sequence[Observation], decision: Decision, measure: Measure, sets: Sequence[str]
) -> None:
    """The table, the best trial, and the page. Failures are listed with their reasons."""
    order = rank(observations, decision)
    columns, rows = _table(state, observations, order, measure)
    print_rows(columns, rows, titled=True)
    failures = [f"{name}: {reason}" for name, reason in state.failures.items()]
    for failure in failures:
        print_line(f"failed  {failure}")
    share = _steps(state, observations)
    if share:
        print_line(f"steps   {share}")
    best = best_of(observations, decision)
    if best is None:
        return
    trial, lead = state.trials[best], _lead(state, observations, best, measure)
    print_line(f"best    {lead}")
    print_line(f"run     {state.path(trial)}")
    print_line(f"model   {Run(state.path(trial)).model}")
    print_line(f"command {trial.command(state.recipe, sets)}")
    notes = [*(f"{failure}." for failure in failures), *([f"Steps: {share}."] if share else [])]
    _write_page(state, [number for number in order if observations[number].evaluations], lead, columns, rows, notes)


def _table(
    state: State, observations: Sequence[Observation], order: Sequence[int], measure: Measure
) -> tuple[tuple[str, ...], list[tuple[str, ...]]]:
    """(columns, a row of each trial): its values, how far it came, its best figure."""
    keys = list(state.trials[0].values)
    short = [key.rpartition(".")[2] for key in keys]
    rows = []
    for number in order:
        trial, seen = state.trials[number], observations[number]
        status = "failed" if seen.failed else "done" if seen.finished else "paused" if seen.evaluations else "waiting"
        steps = f"{steps_of(state.path(trial)):,}/{seen.total_steps:,}" if seen.total_steps else ""
        best = _best_figure(seen, measure) if seen.evaluations else ""
        rows.append((trial.name, *(trial.values[key] for key in keys), status, steps, best))
    heads = keys if len(set(short)) < len(short) else short
    return ("trial", *heads, "status", "steps", f"best {measure.metric}"), rows


def _best_figure(seen: Observation, measure: Measure) -> str:
    value = measure.value(seen.score_at(1))
    return format_figure(value) if value is not None else "not finite"


def _lead(state: State, observations: Sequence[Observation], best: int, measure: Measure) -> str:
    """The best trial with its figure and values, and those that are as good."""
    trial, score = state.trials[best], observations[best].score_at(1)
    ties = [
        other.name
        for number, (other, seen) in enumerate(zip(state.trials, observations, strict=True))
        if number != best and seen.finished and seen.score_at(1) == score
    ]
    more = f" and {len(ties) - MAX_TIES} more" if len(ties) > MAX_TIES else ""
    equal = f"; as good: {', '.join(ties[:MAX_TIES])}{more}" if ties else ""
    return f"{trial.name}: {measure.metric} {_best_figure(observations[best], measure)} ({trial.describe()}){equal}"


def _steps(state: State, observations: Sequence[Observation]) -> str:
    """Of all trials, and their share of all schedules; "" where these are not known."""
    totals = [one.total_steps for one in observations if one.total_steps]
    if not totals:
        return ""
    done = sum(steps_of(state.path(trial)) for trial in state.trials)
    whole = sum(totals) * len(observations) / len(totals)  # those that never began are taken as the others
    return f"{done:,}, {done / whole:.0%} of what all trials take in full"


def _write_page(
    state: State,
    order: Sequence[int],
    lead: str,
    columns: tuple[str, ...],
    rows: Sequence[tuple[str, ...]],
    notes: Sequence[str],
) -> None:
    """All trials, and a comparison of the best ones. order: those that were evaluated, the best first. A page that cannot be
    made is reported, and the sweep has succeeded.
    """
    if not order:
        return
    from finetune.tracking.comparison import compare_runs  # numpy, for the page alone
    from finetune.tracking.report.comparing import Overview, write_comparison

    compared = [state.path(state.trials[number]) for number in order[:MAX_COMPARED]]
    left = len(order) - len(compared)
    more = [f"The best {len(compared)} of {len(order)} trials are compared below."] if left else []
    try:
        overview = Overview(
            title=f"Sweep of {Run(compared[0]).read().get('name', '')}",
            lead=f"Best: {lead}.",
            mark="good",
            columns=columns,
            rows=[(_linked(state, row[0]), *row[1:]) for row in rows],
            notes=(*more, *notes),
            what="Trials",
        )
        path = write_comparison(compare_runs(compared), state.folder / PAGE, overview)
    except (FinetuneError, OSError, ValueError, KeyError) as error:
        print_line(f"note: {PAGE} could not be written: {str(error).splitlines()[0]}")
        return
    print_line(f"page    {path}")


def _linked(state: State, name: str) -> str | tuple[str, str]:
    """The name of a trial, with the address of its report if it has one."""
    report = next(Run(state.path(trial)).report_file for trial in state.trials if trial.name == name)
    return (name, report.relative_to(state.folder).as_posix()) if report.is_file() else name
