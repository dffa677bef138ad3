"""W&B as a mirror of the journal: it may be late or incomplete, and training neither waits for it nor fails because of it.

All calls to wandb are made from a queue by a separate thread: a server that hangs blocks that thread, not training. If
the server cannot be reached, the run is recorded offline in the run folder, to be synced later.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from finetune.recipe.recipe import Recipe
from finetune.recipe.secrets import mask
from finetune.terminal import printable
from finetune.tracking import wandb_run
from finetune.tracking.atomic_files import plain
from finetune.tracking.background import Background
from finetune.tracking.example_history import prediction_files
from finetune.tracking.journal import list_tables, read_rows, read_table
from finetune.tracking.run import Run, shown
from finetune.tracking.run_names import unique_name
from finetune.tracking.wandb_ending import send_alert, tell_end
from finetune.tracking.wandb_lineage import record_inputs
from finetune.tracking.wandb_settings import data_versions, define_axes
from finetune.tracking.wandb_tables import TableLog

MAX_REPLAYED = 50_000  # rows logged again into a new W&B segment after a resume

_NOT_FIGURES = ("step", "epoch", "split", "time")


_DISTRIBUTIONS = ("lengths", "class_balance")  # facts that are no columns for a table of runs


class WandbMirror:
    """A Listener. Mode `auto`: online if there is an API key (environment, netrc), otherwise offline.

    say: called with one line for the user (from the mirror's thread). The W&B run has the run's own id, kept in run.json,
    so a resumed run continues the same W&B run. A row {"step", "split": "validation", "loss"} becomes "validation/loss"
    at that step. After a resume the rows that W&B lacks are logged again from metrics.jsonl: online those after the last
    step that the server has; offline all of them, so that the newest offline folder alone is complete.
    """

    def __init__(self, run: Run, recipe: Recipe, say: Callable[[str], None] = print) -> None:
        self._run, self._recipe, self._say = run, recipe, say
        self._background = Background("wandb-mirror", self._report)
        self._wandb: Any = None  # wandb's Run, once it is open
        self._tables = TableLog(run, say)
        self._best_step: int | None = None

    def started(self, *, start_step: int, total_steps: int, steps_per_epoch: int, facts: Mapping[str, Any]) -> None:
        if wandb_run.is_off(self._recipe.tracking.wandb):
            return
        size = self._run.metrics_file.stat().st_size if start_step and self._run.metrics_file.is_file() else 0
        tables = [path for path, _, step in list_tables(self._run.tables) if start_step and step <= start_step]
        self._background.start()
        self._later(lambda: self._open(dict(facts)))
        if start_step:
            self._later(lambda: self._replay(size, tables, start_step))

    def step(self, *, step: int, epoch: float, progress: Mapping[str, float]) -> None:
        """Not logged: rows are mirrored, not every step."""

    def row(self, row: Mapping[str, float | int | str]) -> None:
        copy = dict(row)
        self._later(lambda: self._log(copy))
        if row.get("split") == "validation":
            self._later(lambda: self._tables.log_predictions(self._wandb, int(copy["step"])))

    def table(self, name: str, *, step: int, columns: Sequence[str], rows: Sequence[Sequence[Any]]) -> None:
        kept, count = self._tables.bound(rows), len(rows)
        self._later(lambda: self._tables.log(self._wandb, name, step, list(columns), kept, count))

    def checkpoint(self, path: Path, *, step: int, best: bool) -> None:
        def note() -> None:
            self._wandb.summary["best_checkpoint" if best else "latest_checkpoint"] = path.name

        self._best_step = step if best else self._best_step
        self._later(note)

    def message(self, text: str) -> None:
        """Not logged: messages are for the console."""

    def finished(self, *, status: str, summary: Mapping[str, Any]) -> None:
        """Close the W&B run; waits for uploads, for about a minute at most."""
        if not self._background.running:
            return
        figures = mask(plain(dict(summary)))
        best_step = figures.get("best_step", self._best_step)
        # First of all what somebody waits for: the time until the process is ended may be short.
        self._later(lambda: send_alert(self._wandb, self._run, self._recipe, status, figures))
        self._later(lambda: tell_end(self._wandb, self._run, self._recipe, self._tables, status, figures, best_step))
        self._later(lambda: self._close(status, figures))
        if not self._background.finish(wandb_run.FINISH_SECONDS + 5):
            self._say(
                f"W&B did not finish within {wandb_run.FINISH_SECONDS:.0f} s; its files are in {self._run.path / 'wandb'}"
            )

    def _later(self, call: Callable[[], None]) -> None:
        self._background.later(call)

    def _report(self, error: Exception) -> None:
        reason = printable(str(mask(f"{type(error).__name__}: {error}"))).splitlines()[0]
        self._say(f"W&B is disabled, training continues ({reason})")

    def _open(self, facts: dict[str, Any]) -> None:
        tracking, recorded = self._recipe.tracking, self._run.read()
        name = unique_name(self._run, self._recipe)
        versions = data_versions(self._run)
        self._wandb = wandb_run.open_run(
            self._run.path,
            tracking.wandb,
            self._say,
            id=recorded.get("wandb", {}).get("id") or _agents_id() or self._run.id,
            name=name,
            project=tracking.project,
            entity=tracking.entity or None,
            group=printable(tracking.group or self._recipe.name),
            job_type="train",
            tags=list(map(printable, [*tracking.tags, *(["data-changed"] if versions else [])])) or None,
            notes=versions.notes if versions else None,
            resume="allow",
        )
        data = {
            split: {"rows": record["rows"], "digest": record.get("content", "")}
            for split, record in (recorded.get("data") or {}).items()
        }
        few = {key: value for key, value in facts.items() if key not in _DISTRIBUTIONS}
        known = {"facts": mask(plain(few)), "data_digests": data}
        if versions:
            known["data_changes"] = mask(plain(versions.changes))
            self._wandb.summary["data_versions"] = len(versions.changes) + 1
        self._wandb.config.update({**shown(self._recipe), **known}, allow_val_change=True)
        define_axes(self._wandb, self._run, self._recipe)
        self._report_location(name)
        record_inputs(self._wandb, self._run, self._recipe)

    def _report_location(self, name: str) -> None:
        address, line = wandb_run.describe_place(
            self._wandb, lacks="links to the data and the base model, which only a server records"
        )
        folder = Path(self._wandb.dir).parent.relative_to(self._run.path)
        self._run.update(wandb={"id": self._wandb.id, "name": name, "folder": str(folder), "url": address})
        self._say(line)

    def _replay(self, size: int, tables: Sequence[Path], start_step: int) -> None:
        """Log what W&B lacks, by ascending step: `size` bytes of metrics.jsonl, as it was when training resumed."""
        known = self._wandb.step if not self._wandb.offline else 0
        waiting = [table for table in list_tables(self._run.tables) if table[0] in tables and table[2] >= known]
        evaluated = {step for _, step in prediction_files(self._run.predictions) if known <= step <= start_step}
        for count, row in enumerate(read_rows(self._run.metrics_file, size)):
            step = int(row.get("step", 0))
            if count >= MAX_REPLAYED:
                self._say(
                    f"W&B: only the first {MAX_REPLAYED:,} earlier rows were logged again; metrics.jsonl has all of them"
                )
                break
            while waiting and waiting[0][2] < step:
                self._log_file(*waiting.pop(0))
            if step >= known:
                self._log(row)
                if row.get("split") == "validation" and step in evaluated:
                    self._tables.log_predictions(self._wandb, step)
        for table in waiting:
            self._log_file(*table)

    def _log_file(self, path: Path, name: str, step: int) -> None:
        columns, rows = read_table(path)
        self._tables.log(self._wandb, name, step, columns, self._tables.bound(rows), len(rows))

    def _log(self, row: Mapping[str, Any]) -> None:
        step, split = int(row["step"]), row.get("split", "train")
        figures = {key: value for key, value in plain(row).items() if key not in _NOT_FIGURES and value is not None}
        values = {f"{split}/{key}": value for key, value in figures.items()}
        own = {"step": step, "epoch": row.get("epoch"), "_timestamp": row.get("time")}
        self._wandb.log({**values, **{key: value for key, value in own.items() if value is not None}}, step=step)

    def _close(self, status: str, summary: dict[str, Any]) -> None:
        self._wandb.summary.update({"status": status, **summary})
        self._wandb.finish(exit_code=1 if status == "failed" else 0)
        if self._wandb.offline and wandb_run.disk_is_full(Path(self._wandb.dir)):
            self._say(
                f"W&B: the disk is full, so that its offline files may lack rows; {self._run.metrics_file} has all of them, "
                "and a resumed run writes them again"
            )


def _agents_id() -> str:
    """The id that the agent of a W&B sweep gives to the run that it started; "" without an agent."""
    return os.environ.get("WANDB_RUN_ID", "") if os.environ.get("WANDB_SWEEP_ID") else ""
