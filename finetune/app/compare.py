"""`finetune compare`: what differs between runs, in the terminal and as one HTML page."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from finetune.errors import UserError
from finetune.terminal import print_line, print_rows
from finetune.tracking.atomic_files import PAGE, check_file
from finetune.tracking.comparison import Compared, compare_runs
from finetune.units import format_figure, format_number


def compare(runs: Sequence[Path], html: Path | None) -> None:
    """Print what differs between the runs; html: also write it as a page.

    Raises: UserError for fewer than two runs, and for a folder that is none.
    """
    if len(runs) < 2:
        raise UserError("at least two runs are compared", remedy="Give several run folders: finetune compare RUN RUN.")
    if html is not None:
        check_file(html, PAGE)
    found = compare_runs(runs)
    names = tuple(_names(found))
    for title, rows in (
        ("recipe", found.recipe),
        ("data", found.data),
        ("versions", found.versions),
        ("machine", found.machine),
    ):
        if rows:
            print_line(title)
            print_rows((title, *names), [(key, *values) for key, values in rows.items()], titled=True)
        else:
            print_line(f"{title}: equal")
    _print_figures(found, names)
    for note in found.notes:
        print_line(f"note: {note}")
    if html is not None:
        from finetune.tracking.report.comparing import write_comparison

        print_line(f"page    {write_comparison(found, html)}")


def _names(found: Compared) -> list[str]:
    """The folders of the runs; in full where the last part is the same."""
    names = [run.path.name for run in found.runs]
    return names if len(set(names)) == len(names) else [str(run.path) for run in found.runs]


def _print_figures(found: Compared, names: Sequence[str]) -> None:
    tested = {one.metric: one for one in found.differences}
    rows = []
    for metric, values in found.figures.items():
        shown = tuple(format_figure(value) if value is not None else "" for value in values)
        rows.append((metric, *shown, tested[metric].describe() if metric in tested else ""))
    print_line("figures of the best checkpoints")
    print_rows(("metric", *names, "second - first, 95 % interval"), rows, empty="  none yet", titled=True)
    if found.wins is not None:
        wins = found.wins
        print_line(f"{format_number(found.examples, 'validation example')}: {wins.describe(*names[:2])}")
        for title, examples in (("gained most", wins.gains), ("lost most", wins.setbacks)):
            listed = ", ".join(f"{id} ({one:.3g} -> {other:.3g})" for id, one, other in examples[:5])
            if listed:
                print_line(f"  {title}: examples {listed}")
